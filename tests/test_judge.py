"The stage `judge`: planted judges that must lose their vote and one that must keep it; servers that fail; labels that are wrong"
import json, os, signal, subprocess, sys, threading, time
from collections import Counter

import pytest
import torch
from copies import ENV, HANG, ROOT, wait_for
from judge_standin import (SECRET, JudgeServer, make_project, prefer_first, prefer_longer, prefer_right, prefer_right_in_four_of_five,
                           run_judge_stage, say)

from forge_nb.core.project import Invalid, hash_weights, load_params, read_csv, read_json, read_jsonl, write_json, write_jsonl
from forge_nb.judge import judge
from forge_nb.tokenizer import train_tokenizer
from forge_nb.train.architecture import ModelShape, build_model
from forge_nb.train.model import generate_texts, load_model, render_chat_prompt, save_model


@pytest.fixture(autouse=True)
def key(monkeypatch): monkeypatch.setenv("TEST_JUDGE_KEY", SECRET)


FULL = dict(num_people=110, min_labels=200, num_verified=100)  # as the parameters have it


def judge_with(rule, folder, num_people=22, min_labels=40, num_verified=20, num_compared=5, **changed) -> dict:
    make_project(folder, num_people)
    options = dict(min_labels=min_labels, num_verified=num_verified, num_compared=num_compared) | changed
    with JudgeServer(rule) as server: found = run_judge_stage(folder, server.url, **options)
    return found | dict(server=server)


def test_a_judge_that_is_right_in_four_of_five_has_a_vote(tmp_path):
    found = judge_with(prefer_right_in_four_of_five, tmp_path, **FULL)
    print(found["reason"])
    assert found["vote"] and (found["n"], found["people"]) == (210, 110)
    assert .7 < found["agreement"] < .9 and found["low"] < found["kappa"] < found["high"] and found["self_consistency"] == 1
    assert abs(found["length_bias"]) < .1 and found["position_bias"] == 0
    assert found["server"].keys == {f"Bearer {SECRET}"}
    assert SECRET not in "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.json*"))


def test_a_judge_that_always_says_a_loses_its_vote(tmp_path):
    found = judge_with(prefer_first, tmp_path, **FULL)
    print(found["reason"])
    assert not found["vote"] and "by its place: bias +1.00" in found["reason"]
    assert found["kappa"] == 0 and found["position_changes"] == 1 and found["self_consistency"] == 1


def test_a_judge_that_loves_length_loses_its_vote(tmp_path):
    found = judge_with(prefer_longer, tmp_path, **FULL)
    print(found["reason"])
    assert not found["vote"] and "for its length: bias +" in found["reason"] and "its kappa is" in found["reason"]
    assert found["position_changes"] == 0 and found["length_bias"] > .4


def test_a_judge_that_draws_its_verdicts_does_not_agree_with_itself(tmp_path):
    found = judge_with(lambda prompt, n: say(f"verdict: {'AB'[n % 2]}"), tmp_path, parallel=1)
    assert not found["vote"] and "asked again, it says the same in 0.00 of the cases" in found["reason"]


def test_everything_that_was_said_is_kept(tmp_path):
    found = judge_with(prefer_right, tmp_path)
    assert found["vote"] and found["kappa"] == 1
    rows = read_jsonl(tmp_path/"out"/"verdicts.jsonl")
    assert Counter(row["purpose"] for row in rows) == dict(calibration=42, comparison=5, grade=10)
    assert all(len(row["replies"]) == 4 and {reply["text"] for reply in row["replies"]} for row in rows if row["purpose"] != "grade")
    pairs, grade = read_csv(tmp_path/"out"/"comparisons.csv")
    assert float(pairs["low"]) > 0 and pairs["by"] == "pairs" and grade["difference"] == "0"
    assert read_json(tmp_path/"out"/"metrics.json") == {name: value for name, value in found.items() if name != "server"}
    with JudgeServer(prefer_first) as server: again = run_judge_stage(tmp_path, endpoint_url=found["server"].url, endpoint_name="m", min_labels=40, num_verified=20, num_compared=5)
    assert again["kappa"] == 1 and not server.asked  # what is kept is not asked again


def test_a_tie_of_orders_is_a_tie_and_the_first_in_one_order_no_win(tmp_path):
    found = judge_with(prefer_first, tmp_path)
    rows = [row for row in read_jsonl(tmp_path/"out"/"verdicts.jsonl") if row["purpose"] == "comparison"]
    assert {row["verdict"] for row in rows} == {"tie"} and found["position_bias"] == 1


@pytest.mark.parametrize("num_people, changed, words", [
    (0, {}, ["people labelled 0 of 20 pairs", "20 labelled pairs are fewer than 40"]),
    (12, {}, ["32 labelled pairs are fewer than 40", "people labelled 12 of 32 pairs"]),
    (20, dict(num_verified=24), ["people labelled 20 of 44 pairs, and 50% is asked for"]),
    (36, dict(num_verified=0), ["36 labelled pairs are fewer than 40"])])
def test_an_able_judge_needs_enough_labels_and_people(tmp_path, num_people, changed, words):
    found = judge_with(prefer_right, tmp_path, num_people, **changed)
    assert not found["vote"] and found["kappa"] == 1
    for w in [*words, "`forge label`"]: assert w in found["reason"], found["reason"]


def test_labels_of_people_alone_are_enough(tmp_path):
    assert judge_with(prefer_right, tmp_path, 40, num_verified=0)["vote"]


def test_nonsense_is_counted_and_never_guessed(tmp_path):
    def rule(prompt, n): return say("Both are nice; A, perhaps.") if "M4 " in prompt or "M5 " in prompt else prefer_right(prompt)
    some = judge_with(rule, tmp_path/"some")
    assert some["vote"] and 0 < some["unreadable"] < .1 and some["agreement"] < 1
    rows = [row for row in read_jsonl(tmp_path/"some"/"out"/"verdicts.jsonl") if row["purpose"] == "calibration"]
    assert {row["verdict"] for row in rows if "M4 " in row["question"]} == {"unreadable"}
    every = judge_with(lambda prompt, n: say("I like bolts."), tmp_path/"every")
    assert not every["vote"] and every["unreadable"] == 1 and "none of its replies could be read" in every["reason"]


@pytest.mark.parametrize("body", ['{"choices": [{"mess', "<html>Welcome</html>", '{"choices": []}'])
def test_what_is_no_completion_costs_its_question_and_is_not_kept(tmp_path, body):
    def rule(prompt, n): return (200, body) if "M8 " in prompt else prefer_right(prompt)
    found = judge_with(rule, tmp_path, num_verified=0)
    assert 0 < found["unreadable"] < .1
    rows = [row for row in read_jsonl(tmp_path/"out"/"verdicts.jsonl") if "M8 " in row["question"] and row["purpose"] == "calibration"]
    assert {reply["error"] for row in rows for reply in row["replies"]} == {"no chat completion"}
    replies = [reply for row in read_jsonl(tmp_path/"out"/"verdicts.jsonl") for reply in row["replies"]]
    assert len(list((tmp_path/"kept").glob("*.json"))) <= len([reply for reply in replies if "text" in reply]) < len(replies)


@pytest.mark.parametrize("rule, words", [
    (lambda prompt, n: (500, "oops"), ["no answer in 4 tries", "HTTP 500", "run again"]),
    (lambda prompt, n: (401, "no"), ["refuses the key", "TEST_JUDGE_KEY"]),
    (lambda prompt, n: (404, "no"), ["HTTP 404", "judge.endpoint_name"])])
def test_what_would_meet_every_question_ends_the_run(tmp_path, rule, words):
    with pytest.raises(Invalid) as said: judge_with(rule, tmp_path)
    for w in words: assert w in str(said.value)
    assert SECRET not in str(said.value) and "\n" not in str(said.value) and not (tmp_path/"out").exists()


def test_a_server_that_times_out_or_breaks_off_in_the_middle_ends_the_run_and_nothing_is_lost(tmp_path):
    slow = lambda prompt, n: (time.sleep(1), prefer_right(prompt))[1] if "M9 " in prompt else prefer_right(prompt)
    make_project(tmp_path, 22)
    with JudgeServer(slow) as server, pytest.raises(Invalid, match="no answer in 4 tries"): run_judge_stage(tmp_path, server.url, timeout=.3, parallel=1, num_verified=0)
    have = len(list((tmp_path/"kept").glob("*.json")))
    assert have > 10
    with JudgeServer(prefer_right, cut=20) as server, pytest.raises(Invalid, match="no answer in 4 tries"): run_judge_stage(tmp_path, server.url)
    assert len(list((tmp_path/"kept").glob("*.json"))) == have
    with pytest.raises(Invalid, match="see that the server is up"): run_judge_stage(tmp_path, server.url)
    with pytest.raises(Invalid, match="judge.endpoint_url is 'localhost'"): run_judge_stage(tmp_path, "localhost")


def test_killed_and_gone_on_asks_nothing_twice(tmp_path):
    gate = threading.Event()
    def rule(prompt, n):
        if len(server.asked) > 20: gate.wait(HANG)
        return prefer_right(prompt)
    make_project(tmp_path, 22)
    code = (f"import sys; sys.path[:0] = [{str(ROOT/'tests')!r}]; from pathlib import Path; from judge_standin import run_judge_stage; "
            "run_judge_stage(Path(sys.argv[2]), sys.argv[1], parallel=2, num_verified=0, num_compared=5)")
    with JudgeServer(rule) as server:
        running = subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path)], cwd=ROOT, env=ENV | dict(TEST_JUDGE_KEY=SECRET), start_new_session=True)
        wait_for(lambda: len(server.asked) >= 21 and list((tmp_path/"kept").glob("*.json")), running)
        os.killpg(running.pid, signal.SIGKILL); running.wait()
        have, before = len(list((tmp_path/"kept").glob("*.json"))), Counter(server.asked)
        gate.set()
        found = run_judge_stage(tmp_path, server.url, num_verified=0, num_compared=5)
        total = len(list((tmp_path/"kept").glob("*.json")))
        assert found["kappa"] == 1 and 0 < have < total and (server.asked - before).total() == total - have


@pytest.mark.parametrize("line, words", [
    ("q1#x,What?,1,2,left,A. Person", ["row 3", "`label` is 'left'", "a, b, tie"]),
    ("q0#one,What?,1,2,a,A. Person", ["row 3", "stands in row 2 too"]),
    ("q1#x,What?,1,2,a,", ["row 3", "`who` is empty"]),
    ("q1#x,What?,1,2,a,verifier", ["row 3", "the name of a person"]),
    ("q1#x,What?", ["row 3", "more or fewer fields"])])
def test_labels_that_are_wrong_are_a_sentence_with_and_without_a_judge(tmp_path, line, words):
    file = make_project(tmp_path, 1)/"judge_labels.csv"
    with open(file, "a", encoding="utf-8") as table: table.write(f"q0#one,What?,1,2,,\n{line}\n")
    for url in ("", "http://127.0.0.1:9/v1"):
        with pytest.raises(Invalid) as said: run_judge_stage(tmp_path, url)
        for w in ["judge_labels.csv", *words]: assert w in str(said.value)


def test_without_a_judge_the_stage_passes_and_says_so(tmp_path):
    found = run_judge_stage(make_project(tmp_path, 3))
    assert found["vote"] is False and "no judge is named" in found["reason"]
    assert read_jsonl(tmp_path/"out"/"verdicts.jsonl") == [] and json.loads((tmp_path/"out"/"metrics.json").read_text(encoding="utf-8")) == found


@pytest.fixture(scope="module")
def promoted(tmp_path_factory):
    "A small model with random weights, as it was promoted"
    tokenizer = train_tokenizer(["What does bolt M4 cost? It is `4 EUR`."] * 9, 300)
    torch.manual_seed(3)
    save_model(build_model(tokenizer, ModelShape(num_hidden_layers=1, hidden_size=64, intermediate_size=64, context_length=64)), tokenizer,
               folder := tmp_path_factory.mktemp("promoted")/"model")
    return folder


def with_prompts(folder):
    "The project's questions, as a model is asked them"
    items = [item | dict(part="fact", prompt=item["question"]) for item in read_jsonl(folder/"items.jsonl")]
    write_jsonl(folder/"items.jsonl", items)
    return items


def name_baseline(folder, model, **changed):
    write_json(folder/"baseline.yaml", dict(name="v1", folder=str(model), weights_sha256=hash_weights(model)) | changed)


def test_the_released_checkpoint_is_compared_with_the_promoted_model_once_there_is_one(promoted, tmp_path):
    items = with_prompts(make_project(tmp_path, 22))
    before = {row["text"] for row in read_jsonl(tmp_path/"answers.jsonl") if row["checkpoint"] == "sft"}
    options = dict(min_labels=40, num_verified=20, num_compared=12, max_answer_tokens=6)
    with JudgeServer(prefer_right) as server:
        first = run_judge_stage(tmp_path, server.url, **options)
        assert first["compared"] == "`rl` is compared with `sft`: no model was promoted yet."
        assert {row["against"] for row in read_csv(tmp_path/"out"/"comparisons.csv")} == {"sft"}
        name_baseline(tmp_path, promoted)
        second = run_judge_stage(tmp_path, server.url, **options)
    assert second["compared"] == "`rl` is compared with the last promoted model, v1, with the passages of today."
    assert {name: second[name] for name in first if name != "compared"} == {name: first[name] for name in first if name != "compared"}
    model, tokenizer = load_model(promoted)
    answers = {item["id"]: text.strip() for item, (text, _) in zip(items, generate_texts(
        model, tokenizer, [render_chat_prompt(tokenizer, item["prompt"]) for item in items], max_new_tokens=6))}
    compared = [row for row in read_jsonl(tmp_path/"out"/"verdicts.jsonl") if row["purpose"] == "comparison"]
    assert len(compared) == 12 and {row["against"] for row in compared} == {"promoted v1"}
    assert all(row["answer_b"] == answers[row["id"].rpartition("#")[0]] and row["answer_b"] not in before for row in compared)
    with JudgeServer(prefer_right) as server: assert run_judge_stage(tmp_path, server.url, **options, against="sft")["compared"] == \
        "`rl` is compared with `sft`, which `judge.against` names."


def test_a_promoted_model_that_is_not_the_one_is_a_sentence_where_a_judge_is_named(promoted, tmp_path):
    with_prompts(make_project(tmp_path, 22))
    name_baseline(tmp_path, promoted, weights_sha256="00")
    with pytest.raises(Invalid, match="are not those of v1; fetch the model that was promoted"): run_judge_stage(tmp_path, "http://127.0.0.1:9/v1")
    assert run_judge_stage(tmp_path)["compared"] == "`rl` is compared with the last promoted model, v1."  # nobody is asked, the gate says it


def test_the_chain_s_small_model_as_the_baseline(tiny, tmp_path):
    "The chain's own files; its sft is what was promoted, so the judge sees what `evaluate` wrote for sft, answer by answer"
    source = tiny.root/"artifacts"
    name_baseline(tmp_path, source/"sft"/"model")
    params = load_params(tiny.root/"params.yaml")["judge"] | dict(endpoint_name="m", endpoint_key="TEST_JUDGE_KEY", threads=1, num_compared=9)
    rows = read_jsonl(source/"evaluate"/"answers.jsonl")
    texts = {name: {row["id"]: row["text"].strip() for row in rows if (row["checkpoint"], row["prompt_field"]) == (name, "prompt")} for name in ("sft", "rl")}
    with JudgeServer(lambda prompt, n: say("score: 4" if "score:" in prompt else "verdict: tie")) as server:
        found = judge(source/"evaluate"/"answers.jsonl", source/"synth"/"eval_set"/"items.jsonl", tiny.root/"company"/"judge_labels.csv",
                      tiny.root/"company"/"style.yaml", tiny.root/"config"/"checkpoints.yaml", tmp_path/"baseline.yaml", tmp_path, tmp_path/"kept",
                      **params | dict(endpoint_url=server.url), out=tmp_path/"out")
    assert found["compared"] == "`rl` is compared with the last promoted model, v1, with the passages of today."
    compared = [row for row in read_jsonl(tmp_path/"out"/"verdicts.jsonl") if row["purpose"] == "comparison"]
    assert len(compared) == 9
    for row in compared:
        item = row["id"].rpartition("#")[0]
        assert (row["answer_a"], row["answer_b"]) == (texts["rl"][item], texts["sft"][item])
