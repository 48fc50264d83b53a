"Reasoning effort: a served model honours it, a run again gives the same bytes, and bad input is a sentence"
import hashlib, json, socket, subprocess, sys, urllib.error, urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from copies import ENV, HANG, wait_for

from forge_nb.studies import effort as page
from forge_nb.train.model import load_model, save_model
from forge_nb.core.project import Invalid, read_json, read_jsonl
from forge_nb.tokenizer import CHAT_TEMPLATE, train_tokenizer
from forge_nb.train.architecture import ModelShape, build_model

GIVEN = dict(max_terms=3, num_train_rows=48, num_eval_items=6, learning_rate=.002, batch_size=8, num_seeds=2, seed=0)
SUM = "4 + 3 - 2"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "A model of one layer that has learned nothing"
    root = tmp_path_factory.mktemp("effort")
    words = train_tokenizer(["State the final answer to the following arithmetic problem: Reasoning effort: low. medium. high. 0 1 2 3 4 5 6 7 8 9 + - = ` , :"] * 9, 340)
    torch.manual_seed(0)
    save_model(build_model(words, ModelShape(num_hidden_layers=1, hidden_size=64, intermediate_size=128, context_length=128)), words, root/"model")
    return SimpleNamespace(root=root, words=words)


def run(toy, out, monkeypatch, checkpoints, **given):
    monkeypatch.setenv("FORGE_CKPT", str(checkpoints)); torch.set_num_threads(1)
    return page.effort(toy.root/"model", **GIVEN | given, out=out)


def digests(folder): return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def server(toy, tmp_path):
    "`transformers serve` with a model that knows one sum, at each effort; a function that asks it"
    torch.set_num_threads(1)
    rows = [dict(question=SUM, effort=e, text=page.write_reasoning(SUM, e)) for e in page.EFFORT_SHARES] * 240
    model, words, _ = page.fine_tune_with_effort(toy.root/"model", rows, tmp_path/"c", learning_rate=.01, batch_size=6, seed=0)
    save_model(model, words, tmp_path/"served")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    (tmp_path/"home"/"hub").mkdir(parents=True)
    line = [str(Path(sys.executable).parent/"transformers"), "serve", str(tmp_path/"served"), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with open(tmp_path/"log", "w", encoding="utf-8") as log: running = subprocess.Popen(line, env=ENV | dict(HF_HOME=str(tmp_path/"home"), OMP_NUM_THREADS="1"), stdout=log, stderr=log)
    def ask(**more):
        body = json.dumps(dict(messages=[dict(role="user", content=SUM)], max_tokens=80) | more).encode()
        return json.load(urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}), timeout=HANG))
    def healthy():
        try: return urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
        except OSError: return None
    try:
        wait_for(healthy, running, pause=.2)
        yield ask
    finally: running.kill(); running.wait()


def test_a_served_model_reasons_as_long_as_it_is_asked_to(server):
    replies = {e: server(chat_template_kwargs=dict(reasoning_effort=e)) for e in page.EFFORT_SHARES}
    assert {e: r["choices"][0]["message"]["content"] for e, r in replies.items()} == {e: page.write_reasoning(SUM, e) for e in page.EFFORT_SHARES}
    low, medium, high = (replies[e]["usage"]["completion_tokens"] for e in page.EFFORT_SHARES)
    assert low < medium < high
    # this server's own field of that name is accepted and ignored: the day it is not, the page must say so
    plain = server()["usage"]["prompt_tokens"]
    assert server(reasoning_effort="high")["usage"]["prompt_tokens"] == plain < replies["high"]["usage"]["prompt_tokens"]
    with pytest.raises(urllib.error.HTTPError): server(chat_template_kwargs=dict(reasoning_effort="most"))


def test_a_run_again_and_a_run_that_was_interrupted_give_the_same_bytes(toy, tmp_path, monkeypatch):
    table = run(toy, tmp_path/"a", monkeypatch, tmp_path/"ca")
    assert [(r["variant"], r["against"]) for r in table] == page.EFFORT_PAIRS
    whole, calls = page.fine_tune_with_effort, []
    def broken(*a, **k):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return whole(*a, **k)
    monkeypatch.setattr(page, "fine_tune_with_effort", broken)
    with pytest.raises(KeyboardInterrupt): run(toy, tmp_path/"b", monkeypatch, tmp_path/"cb")
    run(toy, tmp_path/"b", monkeypatch, tmp_path/"cb")
    assert len(calls) == 3, "what was trained before the interruption was trained again"
    assert digests(tmp_path/"a") == digests(tmp_path/"b")
    answers = read_jsonl(tmp_path/"a"/"answers.jsonl")
    assert len(answers) == 2 * 3 * GIVEN["num_eval_items"] and len({r["question"] for r in answers}) == GIVEN["num_eval_items"]
    assert load_model(tmp_path/"a"/"model")[1].chat_template == CHAT_TEMPLATE
    assert read_json(tmp_path/"a"/"metrics.json")["problems"] == GIVEN["num_eval_items"]


def test_no_problem_is_trained_on_and_asked():
    held = page.make_eval_problems(max_terms=4, num_eval_items=300, seed=0)
    for seed in range(3): assert not {p["question"] for p in held} & {r["question"] for r in page.make_effort_rows(held, max_terms=4, num_train_rows=3600, seed=seed)}


@pytest.mark.parametrize("given, said", [(dict(max_terms=1), "`effort.max_terms` is 1"), (dict(max_terms=2, num_eval_items=500), "raise `effort.max_terms`"), (dict(num_eval_items=1), "`effort.num_eval_items` is 1"),
                                         (dict(num_train_rows=0), "`effort.num_train_rows` is 0"), (dict(num_seeds=0), "`effort.num_seeds` is 0")], ids=str)
def test_what_cannot_be_done_is_said_before_training(toy, tmp_path, monkeypatch, given, said):
    monkeypatch.setattr(page, "fine_tune_with_effort", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(Invalid, match=said): run(toy, tmp_path/"o", monkeypatch, tmp_path/"c", **given)
    assert not (tmp_path/"o").exists()
