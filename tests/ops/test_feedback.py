"What people say of answers: kept only with an answer that is there, masked, and made into rows of customary shapes"
import json, shutil, sys
from collections import Counter
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from jsonschema import validate

from forge_nb.core.project import ROOT, Invalid, NotFound, read_json, read_jsonl, write_jsonl
from forge_nb.core.rules import Rules
from forge_nb.data.shapes import detect_shape, read_training_row
from forge_nb.evals.release import judge_candidate
from forge_nb.ops import feedback as page
from forge_nb.ops.api_keys import KeyEntry, hash_key
from forge_nb.ops.check import survey_data
from forge_nb.ops.cli import answer_schema
from forge_nb.ops.gateway import make_app
from forge_nb.synthesis.own_rows import make_own_rows
from gateway_standin import Echo, make_gateway

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_curate import run

DAY = page.DAY


@pytest.fixture
def store(tmp_path):
    return page.AnswerStore(tmp_path/"runs"/"answers", 30, ["email", "phone"])


def keep(store, n, day=1000, **changed):
    fields = dict(id=f"a{n}", time=day * DAY + n, release="r1", key="desk", question=f"What does part {n} cost?", sources=["docs/parts.txt"],
                  prompt=f"parts: name `{n}`; price `{n} EUR`. Ask kim@bolts.de. Source: ab12.\nWhat does part {n} cost?", answer=f"`{n} EUR`. Source: ab12.")
    store.keep(page.KeptAnswer(**fields | changed))


def say(root, store, n, key="desk", now=0., **said):
    return page.record_feedback(store, root/"runs"/"feedback", page.FeedbackRequest(id=f"a{n}", **said), key, now)


@pytest.fixture
def project(tmp_path):
    for name in ("data", "company"): (tmp_path/name).mkdir()
    shutil.copy(ROOT/"company"/"style.yaml", tmp_path/"company")
    return tmp_path


def test_from_answers_to_rows(project, store):
    for n in range(6): keep(store, n)
    assert all([say(project, store, 0, thumb="up"), say(project, store, 1, thumb="down"), say(project, store, 2, correction="`2`. Source: ab12."),
                say(project, store, 3, comment="nice"), say(project, store, 4, thumb="up", now=1.), say(project, store, 4, thumb="down", now=2.)])
    answer = page.feedback(project)
    validate(json.loads(answer.model_dump_json()), answer_schema("feedback"))
    assert (answer.judgements, answer.rows) == (6, dict(kto=3, pairs=1, chat=1))
    assert answer.left_out == {"judged again": 1, "a comment alone": 1} and answer.releases == {"r1": 6}
    for kind, count in answer.rows.items():
        rows = read_jsonl(project/"data"/"feedback"/f"{kind}.jsonl")
        assert len(rows) == count and all(detect_shape(row) == kind and row["source"] == "docs/parts.txt" for row in rows)
        for row in rows: read_training_row(row, kind)
    labels = {row["completion"][0]["content"]: row["label"] for row in read_jsonl(project/"data"/"feedback"/"kto.jsonl")}
    assert labels == {"`0 EUR`. Source: ab12.": True, "`1 EUR`. Source: ab12.": False, "`4 EUR`. Source: ab12.": False}


def test_personal_data_never_reaches_a_file(project, store):
    keep(store, 1, question="Is kim@bolts.de there?", answer="Call +49 30 901820")
    say(project, store, 1, correction="lee@bolts.de", comment="I am lee@bolts.de")
    page.feedback(project)
    text = "".join(path.read_text(encoding="utf-8") for path in project.rglob("*.jsonl"))
    assert len(list(project.rglob("*.jsonl"))) == 5 and page.feedback(project).rows["pairs"] == 1 and "bolts.de" not in text and "901820" not in text and "[email]" in text and "[phone]" in text


def test_only_who_asked_may_judge_and_only_what_is_there(project, store):
    keep(store, 1)
    assert not say(project, store, 1, key="other", thumb="up") and not say(project, store, 2, thumb="up") and say(project, store, 1, thumb="up")
    assert len(read_jsonl(project/"runs"/"feedback"/"feedback.jsonl")) == 1


def test_answers_are_removed_after_their_days(store):
    for day in (1000, 1020, 1031): keep(store, day, day=day)
    assert [store.find(f"a{day}") is not None for day in (1000, 1020, 1031)] == [False, True, True]


def test_what_was_said_goes_with_its_answer(project, store):
    keep(store, 1, day=1000)
    say(project, store, 1, thumb="up")
    store.remove_old(1030 * DAY)
    assert len(read_jsonl(project/"runs"/"feedback"/"feedback.jsonl")) == 1
    store.remove_old(1031 * DAY)
    assert read_jsonl(project/"runs"/"feedback"/"feedback.jsonl") == [] and store.find("a1") is None


def test_passages_of_a_group_are_not_taught_to_everyone(project, store):
    keep(store, 1, readers=[["everyone"], ["hr"]])
    keep(store, 2, readers=[["everyone", "hr"]])
    for n in (1, 2): say(project, store, n, thumb="down")
    assert page.feedback(project).left_out == {"shows what not everyone may read": 1}
    (project/"params.yaml").write_text("synth: {groups: [hr]}\n", encoding="utf-8")
    answer = page.feedback(project)
    assert answer.left_out == {} and answer.rows["kto"] == 2


def test_one_key_cannot_outvote_all_others(project, store):
    for n in range(40): keep(store, n, key="loud" if n < 30 else "calm")
    for n in range(40): say(project, store, n, key="loud" if n < 30 else "calm", now=float(n), thumb="down" if n < 30 else "up")
    answer = page.feedback(project, max_share=.25)
    labels = [row["label"] for row in read_jsonl(project/"data"/"feedback"/"kto.jsonl")]
    assert (labels.count(False), labels.count(True)) == (10, 10) and answer.left_out == {"too many by one key": 20}


def test_what_the_exam_asks_is_left_out_by_name(project, store):
    (project/"artifacts"/"synth"/"eval_set").mkdir(parents=True)
    write_jsonl(project/"artifacts"/"synth"/"eval_set"/"items.jsonl", [dict(question="What does part 1 cost?")])
    for n in (1, 2): keep(store, n); say(project, store, n, thumb="up")
    answer = page.feedback(project)
    assert answer.rows["kto"] == 1 and answer.left_out == {"asked in the exam": 1}


def test_rows_of_before_do_not_stay_behind(project, store):
    keep(store, 1); say(project, store, 1, correction="`1`. Source: ab12.", now=1.)
    assert page.feedback(project).rows["pairs"] == 1
    say(project, store, 1, thumb="up", now=2.)
    assert page.feedback(project).rows == dict(kto=1, pairs=0, chat=0) and sorted(p.name for p in (project/"data"/"feedback").iterdir()) == [".origin.json", "kto.jsonl"]


def test_bad_feedback_is_a_sentence(project):
    with pytest.raises(NotFound, match="nobody has said anything yet"): page.feedback(project)
    for bad in (dict(), dict(comment="  "), dict(thumb="sideways"), dict(correction="a" * 4001), dict(thumb="up", other=1)):
        with pytest.raises(ValueError): page.FeedbackRequest(id="a", **bad)
    (project/"runs"/"feedback").mkdir(parents=True)
    (project/"runs"/"feedback"/"feedback.jsonl").write_text("{}", encoding="utf-8")
    (project/"data").rmdir()
    with pytest.raises(Invalid, match="data is missing"): page.feedback(project)


# ---- what is set aside, by name and counted

def named(project): return {(row["id"], row["reason"]) for row in read_jsonl(project/"runs"/"feedback"/"left_out.jsonl")}


def test_what_the_passages_do_not_bear_out_is_set_aside_by_name(project, store):
    said = {1: "`9 EUR`. Source: ab12.", 2: "`2 EUR`. Source: ffff.", 3: "It costs a fortune.", 4: "4 EUR", 5: "not known", 6: "`6`. Source: ab12."}
    for n, correction in said.items(): keep(store, n); say(project, store, n, correction=correction)
    keep(store, 7, answer="`77 EUR`. Source: ab12."); say(project, store, 7, thumb="up")
    answer = page.feedback(project)
    assert answer.rows == dict(kto=0, pairs=2, chat=2) and answer.left_out_file == "runs/feedback/left_out.jsonl"
    assert named(project) == {("a1", "says what the passage that it cites does not"), ("a2", "cites a passage that was not shown"), ("a3", "says what no passage says that was shown"),
                              ("a4", "corrected to what it was"), ("a7", "says what the passage that it cites does not")}
    assert sum(answer.left_out.values()) == 5 and "5" not in answer.left_out and page.format_feedback(answer).count("left out:") == 4
    told = read_json(project/"data"/"feedback"/".origin.json")
    assert told == dict(judgements=7, releases={"r1": 7}, rows=answer.rows, left_out=answer.left_out)
    [first, second] = read_jsonl(project/"data"/"feedback"/"pairs.jsonl")
    assert (first["answer_id"], first["release"], second["chosen"][0]["content"]) == ("a5", "r1", "`6`. Source: ab12.")


def test_of_those_who_asked_the_same_the_most_count(project, store):
    for n, key in enumerate(("ann", "bob", "cid", "dan", "eve")): keep(store, n, key=key, question="What does it cost?" if n < 3 else "Which part?")
    for n, key in enumerate(("ann", "bob", "cid", "dan", "eve")):
        wrong = dict(correction=f"`{n}`. Source: ab12.")
        say(project, store, n, key, **(wrong if n in (2, 3, 4) else dict(correction="not known")))
    answer = page.feedback(project)
    assert answer.rows["pairs"] == 2 and named(project) == {
        ("a2", "outvoted by others who asked the same"), ("a3", "others who asked the same say otherwise"), ("a4", "others who asked the same say otherwise")}


def test_a_correction_that_repeats_the_exam_is_set_aside_by_name(project, store):
    (project/"artifacts"/"synth"/"eval_set").mkdir(parents=True)
    write_jsonl(project/"artifacts"/"synth"/"eval_set"/"items.jsonl", [dict(question="Which hall keeps the spare bolts?"), dict(question="Why?")])
    asked = {1: ("which  hall keeps the spare bolts", "not known"), 2: ("What now?", "Which hall keeps the spare bolts? `2`"), 3: ("Please: which hall keeps the spare bolts?", "not known"),
             4: ("Why?", "not known"), 5: ("Tell me why?", "not known")}
    for n, (question, correction) in asked.items(): keep(store, n, question=question); say(project, store, n, correction=correction)
    assert page.feedback(project).rows["pairs"] == 1
    assert named(project) == {("a1", "asked in the exam"), ("a2", "its correction repeats the exam"), ("a3", "asked in the exam"), ("a4", "asked in the exam")}


def plant_scores(false_share: float) -> dict:
    "Scores of 400 questions, of which a share turned from right to false"
    turned = round(400 * false_share)
    right = {f"q{n}": float(n >= 40 + turned) for n in range(400)}
    return {("tables", "exact_match"): right, ("tables", "false_answer_rate"): {name: 1 - value for name, value in right.items()}}


@pytest.mark.parametrize("false_share, verdict", [(0., "pass"), (.01, "pass"), (.2, "fail"), (.5, "fail")])
def test_the_gate_names_the_slice_that_was_attacked(false_share, verdict):
    slices = [dict(slice="tables", metric=metric, max_drop=.1, min_items=400) for metric in ("exact_match", "false_answer_rate")]
    origin = dict(baseline="forge@v1.0.0", rules_sha256="r", eval_set_sha256="e")
    judged = judge_candidate(plant_scores(false_share), plant_scores(0.), Rules(slices=slices), origin=origin)
    assert judged["verdict"] == verdict and (verdict == "pass") == (judged["because"] == [])
    for reason, metric in zip(judged["because"], ("exact_match", "false_answer_rate")): assert reason.startswith(f"tables, {metric}: ")


# ---- through the server

ANSWER = "`3 EUR`. Source: ab12."


@pytest.fixture
def gateway(project):
    keys = {name: KeyEntry(sha256=hash_key(name * 20)) for name in ("desk", "other")}
    return make_gateway(project/"runs", Echo(answer=ANSWER), keys)


def call(client, path, sent, key="desk"): return client.post(path, json=sent, headers=dict(Authorization=f"Bearer {key * 20}"))
def ask(client, **more):
    return call(client, "/v1/chat/completions", dict(model="forge", messages=[dict(role="user", content="What does a bolt of kim@bolts.de cost?")]) | more).json()


def test_an_answer_that_may_be_judged_is_judged_by_who_asked(gateway, project):
    client = TestClient(make_app(gateway), base_url="http://127.0.0.1", raise_server_exceptions=False)
    kept, other = ask(client, store=True), ask(client)
    said = call(client, "/feedback", dict(id=kept["id"], correction="M3"))
    assert (said.status_code, said.json()) == (200, dict(id=kept["id"], status="kept"))
    for answer, key in ((other["id"], "desk"), (kept["id"], "other"), ("nosuch", "desk")):
        refused = call(client, "/feedback", dict(id=answer, thumb="up"), key)
        assert refused.status_code == 404 and refused.json()["error"]["code"] == "answer_not_found"
    assert call(client, "/feedback", dict(id=kept["id"])).status_code == 400
    assert client.post("/feedback", json=dict(id=kept["id"], thumb="up")).status_code == 401
    assert page.feedback(project).rows == dict(kto=0, pairs=1, chat=1)
    [pair] = read_jsonl(project/"data"/"feedback"/"pairs.jsonl")
    assert pair["chosen"][0]["content"].startswith("`M3`. Source: ") and pair["rejected"][0]["content"] == ANSWER and "[email]" in pair["prompt"][0]["content"] and "kim@" not in json.dumps(pair)
    assert "docs/bolts.txt" in pair["source"]


def test_a_full_disk_keeps_nobody_from_an_answer(gateway, monkeypatch):
    def fail(answer): raise OSError(28, "No space left on device")
    monkeypatch.setattr(gateway.answers, "keep", fail)
    client = TestClient(make_app(gateway), base_url="http://127.0.0.1", raise_server_exceptions=False)
    assert ask(client, store=True)["choices"][0]["message"]["content"] == ANSWER and gateway.log.lost == 1


def test_from_an_answer_of_the_server_to_rows_of_the_stages(gateway, project):
    client = TestClient(make_app(gateway), base_url="http://127.0.0.1", raise_server_exceptions=False)
    for n in range(30):
        kept = call(client, "/v1/chat/completions", dict(model="forge", store=True, messages=[dict(role="user", content=f"What does bolt number {n} of hall {n * 7} cost today?")])).json()
        assert call(client, "/feedback", dict(id=kept["id"], thumb="up") if n % 3 else dict(id=kept["id"], correction="M3")).status_code == 200
    assert page.feedback(project).rows == dict(kto=0, pairs=10, chat=10)
    (project/"data"/"notes.txt").write_text("A hall has a gate, and a gate has a lamp that burns all night, so that nobody who comes late stumbles.\n" * 3, encoding="utf-8")
    seen = survey_data(project/"data", [], {})[0]
    assert [seen[kind, f"feedback/{kind}.jsonl"]["items"] for kind in ("pairs", "chat")] == [10, 10], "forge check does not see the rows"
    run(project/"data", project/"artifacts", validation_percent=10., test_percent=10.)
    curated = [row for split in ("train", "valid", "test") for row in read_jsonl(project/"artifacts"/"curate"/"rows"/f"{split}.jsonl")]
    assert Counter(row["kind"] for row in curated)["pairs"] > 0, "no row of feedback came through curate"
    own = make_own_rows(project/"artifacts"/"curate"/"rows"/"train.jsonl", 0)
    assert own["own_pairs"] and own["own_chat"]
    ids = {row["id"] for row in read_jsonl(project/"runs"/"feedback"/"feedback.jsonl")}
    for row in own["own_pairs"] + own["own_chat"]:
        [parent] = row["parents"]
        file, number = parent.split("#")
        said = read_jsonl(project/"data"/file)[int(number) - 1]
        assert said["answer_id"] in ids and said["release"] == "hash-of-v1.0.0"
