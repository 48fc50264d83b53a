"What people say of answers: kept only with an answer that is there, masked, and made into rows of customary shapes"
import json

import pytest
from fastapi.testclient import TestClient
from jsonschema import validate

from forge_nb.core.project import Invalid, NotFound, read_jsonl, write_jsonl
from forge_nb.data.shapes import detect_shape, read_training_row
from forge_nb.ops import feedback as page
from forge_nb.ops.api_keys import KeyEntry, hash_key
from forge_nb.ops.cli import answer_schema
from forge_nb.ops.gateway import make_app
from gateway_standin import Echo, make_gateway

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
    (tmp_path/"data").mkdir()
    return tmp_path


def test_from_answers_to_rows(project, store):
    for n in range(6): keep(store, n)
    assert all([say(project, store, 0, thumb="up"), say(project, store, 1, thumb="down"), say(project, store, 2, correction="`9 EUR`. Source: ab12."),
                say(project, store, 3, comment="nice"), say(project, store, 4, thumb="up", now=1.), say(project, store, 4, thumb="down", now=2.)])
    answer = page.feedback(project)
    validate(json.loads(answer.model_dump_json()), answer_schema("feedback"))
    assert (answer.judgements, answer.rows) == (6, dict(kto=3, pairs=1, chat=1))
    assert answer.left_out == {"judged again by the same key": 1, "a comment alone": 1} and answer.releases == {"r1": 6}
    for kind, count in answer.rows.items():
        rows = read_jsonl(project/"data"/"feedback"/f"{kind}.jsonl")
        assert len(rows) == count and all(detect_shape(row) == kind and row["source"] == "docs/parts.txt" for row in rows)
        for row in rows: read_training_row(row, kind)
    labels = {row["completion"][0]["content"]: row["label"] for row in read_jsonl(project/"data"/"feedback"/"kto.jsonl")}
    assert labels == {"`0 EUR`. Source: ab12.": True, "`1 EUR`. Source: ab12.": False, "`4 EUR`. Source: ab12.": False}


def test_personal_data_never_reaches_a_file(project, store):
    keep(store, 1, question="Is kim@bolts.de there?", answer="Call +49 30 901820")
    say(project, store, 1, correction="Write to lee@bolts.de", comment="I am lee@bolts.de")
    page.feedback(project)
    text = "".join(path.read_text(encoding="utf-8") for path in project.rglob("*.jsonl"))
    assert len(list(project.rglob("*.jsonl"))) == 4 and "bolts.de" not in text and "901820" not in text and "[email]" in text and "[phone]" in text


def test_only_who_asked_may_judge_and_only_what_is_there(project, store):
    keep(store, 1)
    assert not say(project, store, 1, key="other", thumb="up") and not say(project, store, 2, thumb="up") and say(project, store, 1, thumb="up")
    assert len(read_jsonl(project/"runs"/"feedback"/"feedback.jsonl")) == 1


def test_answers_are_removed_after_their_days(store):
    for day in (1000, 1020, 1031): keep(store, day, day=day)
    assert [store.find(f"a{day}") is not None for day in (1000, 1020, 1031)] == [False, True, True]


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
    keep(store, 1); say(project, store, 1, correction="`2 EUR`. Source: ab12.", now=1.)
    assert page.feedback(project).rows["pairs"] == 1
    say(project, store, 1, thumb="up", now=2.)
    assert page.feedback(project).rows == dict(kto=1, pairs=0, chat=0) and [p.name for p in (project/"data"/"feedback").iterdir()] == ["kto.jsonl"]


def test_bad_feedback_is_a_sentence(project):
    with pytest.raises(NotFound, match="nobody has said anything yet"): page.feedback(project)
    for bad in (dict(), dict(comment="  "), dict(thumb="sideways"), dict(correction="a" * 4001), dict(thumb="up", other=1)):
        with pytest.raises(ValueError): page.FeedbackRequest(id="a", **bad)
    (project/"runs"/"feedback").mkdir(parents=True)
    (project/"runs"/"feedback"/"feedback.jsonl").write_text("{}", encoding="utf-8")
    (project/"data").rmdir()
    with pytest.raises(Invalid, match="data is missing"): page.feedback(project)


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
    said = call(client, "/feedback", dict(id=kept["id"], correction="`4 EUR`. Source: ab12."))
    assert (said.status_code, said.json()) == (200, dict(id=kept["id"], status="kept"))
    for answer, key in ((other["id"], "desk"), (kept["id"], "other"), ("nosuch", "desk")):
        refused = call(client, "/feedback", dict(id=answer, thumb="up"), key)
        assert refused.status_code == 404 and refused.json()["error"]["code"] == "answer_not_found"
    assert call(client, "/feedback", dict(id=kept["id"])).status_code == 400
    assert client.post("/feedback", json=dict(id=kept["id"], thumb="up")).status_code == 401
    assert page.feedback(project).rows == dict(kto=0, pairs=1, chat=1)
    [pair] = read_jsonl(project/"data"/"feedback"/"pairs.jsonl")
    assert pair["rejected"][0]["content"] == ANSWER and "[email]" in pair["prompt"][0]["content"] and "kim@" not in json.dumps(pair)
    assert "docs/bolts.txt" in pair["source"]


def test_a_full_disk_keeps_nobody_from_an_answer(gateway, monkeypatch):
    def fail(answer): raise OSError(28, "No space left on device")
    monkeypatch.setattr(gateway.answers, "keep", fail)
    client = TestClient(make_app(gateway), base_url="http://127.0.0.1", raise_server_exceptions=False)
    assert ask(client, store=True)["choices"][0]["message"]["content"] == ANSWER and gateway.log.lost == 1
