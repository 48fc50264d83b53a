"A paraphraser may be down, slow, refuse the key or talk nonsense: a clear sentence, and no answer lost; a bad answer costs its row alone"
import os, signal, subprocess, sys, threading, time
from collections import Counter

import pytest
from copies import ENV, HANG, ROOT, fails_with, sibling, wait_for
from teacher_standin import Server, chat, propose

from forge_nb.core.project import Invalid, read_jsonl
from forge_nb.synthesis.paraphrase import ParaphraseConfig, paraphrase_with_endpoint

JOBS = [dict(id=f"price:bolt M{n}~0", kind="price", ask=f"What does bolt M{n} cost?", names=[f"bolt M{n}"], answer=f"{n} EUR", fill={}) for n in range(12)]
SECRET = "sk-of-nobody-0815"


def good(question, _): return chat(f"Could you tell me: {question}")


def ask(url, folder, **how):
    config = dict(teacher="endpoint", model="", url=url, name="m", key="TEST_TEACHER_KEY", temperature=1., parallel=3, timeout=60.)
    return paraphrase_with_endpoint(JOBS, ParaphraseConfig(**config | how), seed=0, folder=folder)


@pytest.fixture(autouse=True)
def key(monkeypatch): monkeypatch.setenv("TEST_TEACHER_KEY", SECRET)


@pytest.mark.parametrize("answer, words", [
    (lambda q, n: (500, "oops"), ["no answer in 4 tries", "HTTP 500", "run again"]),
    (lambda q, n: (429, "slower"), ["HTTP 429"]),
    (lambda q, n: (401, f"the key {SECRET} is wrong"), ["refuses the key", "TEST_TEACHER_KEY"]),
    (lambda q, n: (404, "no such model"), ["HTTP 404", "'m'", "teacher_name"]),
    (lambda q, n: chat("I am a teapot, short and stout."), ["answers nonsense", "I am a teapot"]),
    (lambda q, n: (200, "<html>Welcome</html>"), ["answers nonsense", "no chat completion"]),
    (lambda q, n: (200, '{"choices": []}'), ["answers nonsense", "no chat completion"])])
def test_what_would_meet_every_question_ends_the_run(answer, words, tmp_path):
    with Server(answer) as server, pytest.raises(Invalid) as said: ask(server.url, tmp_path)
    for w in [server.url, *words]: assert w in str(said.value)
    assert SECRET not in str(said.value) and "\n" not in str(said.value)
    assert not list(tmp_path.iterdir()), "what is no answer was kept"


def test_a_server_that_is_down_or_slow(tmp_path):
    with Server(good) as server: url = server.url
    with pytest.raises(Invalid, match="see that the server is up"): ask(url, tmp_path)
    with Server(lambda q, n: (time.sleep(1), chat(q))[1]) as server, pytest.raises(Invalid, match="no answer in 4 tries"): ask(server.url, tmp_path, timeout=.1)
    with pytest.raises(Invalid, match="teacher_url is 'localhost'"): ask("localhost", tmp_path)


def test_a_bad_answer_costs_its_row_alone_and_a_hiccup_nothing(tmp_path):
    bad = {JOBS[3]["ask"]: (400, "no"), JOBS[5]["ask"]: (200, "{"), JOBS[7]["ask"]: chat("No.")}
    with Server(lambda q, n: (503, "wait") if q == JOBS[9]["ask"] and n == 1 else bad.get(q) or good(q, n)) as server: replies = ask(server.url, tmp_path)
    assert {n: r["error"] for n, r in enumerate(replies) if "error" in r} == {3: "HTTP 400", 5: "no chat completion", 7: "no question: 'No.'"}
    assert replies[9]["question"] == f"Could you tell me: {JOBS[9]['ask']}" and server.keys == {f"Bearer {SECRET}"}
    assert SECRET not in "".join(p.read_text(encoding="utf-8") for p in tmp_path.iterdir())


def test_killed_and_gone_on_asks_nothing_twice(tmp_path):
    gate = threading.Event()
    def answer(question, n):
        if len(server.asked) > 6: gate.wait(HANG)
        return good(question, n)
    code = f"import sys; sys.path[:0] = [{str(ROOT/'tests')!r}, {str(ROOT/'tests'/'synthesis')!r}]; from pathlib import Path; from test_paraphrase import ask; ask(sys.argv[1], Path(sys.argv[2]))"
    with Server(answer) as server:
        running = subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path/"kept")], cwd=ROOT, env=ENV, start_new_session=True)
        wait_for(lambda: len(server.asked) >= 8 and list((tmp_path/"kept").glob("*.json")), running)
        os.killpg(running.pid, signal.SIGKILL); running.wait()
        have, before = len(list((tmp_path/"kept").glob("*.json"))), Counter(server.asked)
        assert 0 < have < len(JOBS)
        gate.set()
        whole = ask(server.url, tmp_path/"kept")
        assert (server.asked - before).total() == len(JOBS) - have + 1  # the one more is the preflight
        assert whole == ask(server.url, tmp_path/"unbroken")


def test_the_stage_refuses_and_leaves_earlier_rows_alone(chain, tmp_path):
    copy = sibling(chain, tmp_path/"project")
    rows, params = (copy.root/p for p in ("artifacts/synth/rows/sft.jsonl", "params.yaml"))
    before, said = rows.read_bytes(), params.read_text(encoding="utf-8")
    def teacher(**fields):
        text = said
        for k, v in fields.items():
            assert f"  {k}: " in text
            text = "".join(f"  {k}: {v}\n" if line.startswith(f"  {k}: ") else line for line in text.splitlines(keepends=True))
        params.write_text(text, encoding="utf-8")
    with Server(good) as server: url = server.url
    for fields, words in [(dict(teacher="oracle"), ["`synth.teacher` is 'oracle'", "templates, model, endpoint"]),
                          (dict(teacher="model", teacher_model="nbs"), ["nbs holds no *.safetensors"]),
                          (dict(teacher="endpoint", teacher_url=url, teacher_name="m"), [url, "no answer"]),
                          (dict(paraphrase_weights="[check_levle=2.0]"), ["`check_levle`", "did you mean `check_level`"])]:
        teacher(**fields); fails_with(copy, "python -m forge_nb.core.runner synth", *words)
    params.write_text(said, encoding="utf-8")
    assert rows.read_bytes() == before
    with Server(lambda content, _: propose(content), read=str) as server:
        teacher(teacher="endpoint", teacher_url=server.url, teacher_name="m", paraphrases_per_fact=.2, paraphrase_weights="[check_level=20.0]")
        copy("dvc repro synth")
        taught = [r for r in read_jsonl(rows) if r["generator"] == "m"]
        assert Counter(r["kind"] for r in taught).most_common(1)[0][0] == "check_level" and all(r["verdict"] == "true" for r in taught)
