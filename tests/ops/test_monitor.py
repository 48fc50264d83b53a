"`forge monitor`: the log read and judged; drift that fires when it is planted, and stays quiet when it is not"
import json, random, shutil
from datetime import datetime, timezone

import numpy as np
import pytest
from jsonschema import validate

from forge_nb.core.project import Invalid, NotFound, read_jsonl, write_jsonl
from forge_nb.data.passages import load_index, search
from forge_nb.evals.general import read_general
from forge_nb.ops import monitor as page
from forge_nb.ops.cli import answer_schema
from forge_nb.ops.drift import find_shifts, measure_question
from forge_nb.ops.gguf import write_gguf
from forge_nb.ops.replay import open_llama
from test_export import ITEMS, save_model


@pytest.fixture(scope="module")
def questions(chain) -> tuple:
    "What a log keeps of the exam's questions, and of general ones that no document of the company answers"
    index = load_index(chain.root/"artifacts"/"retrieval"/"live")
    asked = [item["question"] for item in read_jsonl(chain.root/"artifacts"/"synth"/"eval_set"/"items.jsonl")]
    general = [row["question"] for row in read_general(9)[0]]
    def measure(texts): return [measure_question(index, text, found, []) for text, found in zip(texts, search(index, texts, 2, []))]
    return measure(asked), measure(general)


def draw(rows, count, seed): return random.Random(seed).choices(rows, k=count)


def count_alarms(questions, trials, unseen):
    known, general = questions
    def alarm(n):
        window = [*draw(known, 200 - unseen, f"window {n}"), *draw(general, unseen, f"general {n}")]
        return any(shift.alarms for shift in find_shifts(draw(known, 1000, f"reference {n}"), window))
    return sum(alarm(n) for n in range(trials))


def test_general_questions_are_covered_less(questions):
    known, general = (np.array([row["coverage"] for row in rows]) for rows in questions)
    assert np.median(general) < np.quantile(known, .1) and len(general) >= 50


def test_drift_over_four_hundred_windows(questions):
    "Of 400 windows of 200 questions, most of those with 20 unseen questions raise an alarm, and of quiet ones no more than chance allows"
    seen, quiet = count_alarms(questions, 400, 20), count_alarms(questions, 400, 0)
    print(f"unseen: {seen} of 400; quiet: {quiet} of 400")
    assert seen >= 240 and quiet <= 20  # over the few passages of the small chain; the default's figures are in docs/LOG.md


def write_log(root, rows):
    (root/"runs"/"requests").mkdir(parents=True, exist_ok=True)
    stamp = lambda seconds: datetime.fromtimestamp(seconds, timezone.utc).isoformat()
    named = [{page.LOGGED[name]: stamp(value) if name == "time" else value for name, value in row.items()} for row in rows]
    write_jsonl(root/"runs"/"requests"/"a.jsonl", named)


def make_log(count, **changed):
    rng = np.random.default_rng(0)
    return [dict(time=float(n), operation="chat", release="r1", status=200, seconds=.2, first_token=.1, answer_tokens=int(rng.poisson(12)), declined=bool(rng.random() < .2),
                 question_words=int(rng.poisson(10)), coverage=float(rng.uniform(.4, 1)), passages=["a"], form_kept=True, source_valid=True) | changed
            for n in range(count)]


def test_the_verb_writes_page_and_figures(tmp_path):
    write_log(tmp_path, make_log(1200))
    answer = page.monitor(tmp_path)
    validate(json.loads(answer.model_dump_json()), answer_schema("monitor"))
    assert answer.verdict == "quiet" and not answer.alarms and answer.missing == 0 and answer.false_alarms <= .15
    html = (tmp_path/answer.page).read_text(encoding="utf-8")
    assert html.count("<svg") >= 5 and "http" not in html.split("<body", 1)[1].split("<svg")[0]
    assert "forge_monitor_alarm 0.0" in (tmp_path/"runs"/"monitor"/"metrics.prom").read_text(encoding="utf-8")


@pytest.mark.parametrize("changed, signal", [(dict(declined=True), "not known"), (dict(form_kept=False), "house style"), (dict(source_valid=False), "sources"),
                                             (dict(answer_tokens=25), "tokens of an answer"), (dict(coverage=.1), "best passage holds little")])
def test_what_is_planted_is_named(tmp_path, changed, signal):
    rows = make_log(1200)
    write_log(tmp_path, [*rows[:1140], *(row | changed for row in rows[1140:])])
    answer = page.monitor(tmp_path)
    assert answer.verdict == "alarm" and any(signal in alarm for alarm in answer.alarms), answer.alarms


def test_failures_are_an_alarm_though_drift_cannot_be_told_yet(tmp_path):
    write_log(tmp_path, [*make_log(90), *make_log(10, status=503, answer_tokens=None)])
    answer = page.monitor(tmp_path)
    assert answer.verdict == "alarm" and answer.alarms == ["10 of the latest 100 requests failed"] and answer.missing == 1110


def test_a_release_is_held_against_itself_alone(tmp_path):
    write_log(tmp_path, [*make_log(1200), *(row | dict(time=row["time"] + 2000) for row in make_log(300, release="r2", answer_tokens=40))])
    answer = page.monitor(tmp_path)
    assert (answer.verdict, answer.release, answer.missing) == ("too few", "r2", 900)


def test_no_log_and_a_short_window_are_a_sentence(tmp_path):
    with pytest.raises(NotFound, match="no request was logged yet"): page.monitor(tmp_path)
    with pytest.raises(Invalid, match="fewer than 50 tell nothing"): page.monitor(tmp_path, num_window=10)


def test_a_canary_is_asked_where_nothing_was_logged(tmp_path, monkeypatch):
    "A schedule starts with the service, before anybody asked anything"
    canary = page.FrozenCanary(form="gguf-f16", asked=6, equal=50., different=["a"], alarms=True)
    monkeypatch.setattr(page, "read_served", lambda root, stage: "v1.0.0")
    monkeypatch.setattr(page, "run_canary", lambda folder, work: canary)
    answer = page.monitor(tmp_path, with_canary=True)
    assert (answer.verdict, answer.usage.requests, answer.release) == ("alarm", 0, "") and "50 % of 6 frozen questions" in answer.alarms[0]
    assert "forge_monitor_canary 50.0" in (tmp_path/"runs"/"monitor"/"metrics.prom").read_text(encoding="utf-8") and (tmp_path/answer.page).exists()
    assert page.format_monitor(answer).startswith("alarm")


def test_what_writes_no_answer_is_not_read(tmp_path):
    write_log(tmp_path, [*make_log(60), *make_log(60, operation="feedback", coverage=None), *make_log(9, operation="models")])
    assert page.monitor(tmp_path).usage.requests == 60


def test_broken_lines_are_counted(tmp_path):
    write_log(tmp_path, make_log(5))
    with open(tmp_path/"runs"/"requests"/"b.jsonl", "w", encoding="utf-8") as f: f.write('{"time": 1\n[1]\n{"time": "x"}\n\n')
    assert page.monitor(tmp_path).unread == 3


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    "A release as promote unpacks it: a model, its forms with what they answered, the exam"
    folder = tmp_path_factory.mktemp("release")
    save_model(folder/"model", steps=80)
    write_gguf(folder/"model", folder/"export"/"gguf-f16"/"model.gguf")
    turns = [item["prompt"] for item in ITEMS]
    answers = open_llama(folder/"export"/"gguf-f16"/"model.gguf", 512).answer(turns, 24)
    write_jsonl(folder/"export"/"answers.jsonl", [dict(format="gguf-f16", id=item["id"], **answer) for item, answer in zip(ITEMS, answers)])
    (folder/"exam").mkdir()
    write_jsonl(folder/"exam"/"items.jsonl", ITEMS)
    return folder


def test_frozen_questions_are_answered_as_they_were(release, tmp_path):
    canary = page.run_canary(release, tmp_path)
    assert (canary.form, canary.asked, canary.equal, canary.alarms) == ("gguf-f16", len(ITEMS), 100., False)


def test_other_weights_are_noticed(release, tmp_path):
    "The same file with the weights of a model that learned nothing"
    shutil.copytree(release, tmp_path/"release")
    save_model(tmp_path/"other", steps=0)
    write_gguf(tmp_path/"other", tmp_path/"release"/"export"/"gguf-f16"/"model.gguf")
    canary = page.run_canary(tmp_path/"release", tmp_path/"work")
    assert canary.alarms and canary.equal < 50 and canary.different[0].startswith("price:")


def test_a_release_without_a_form_that_can_be_asked_is_a_sentence(release, tmp_path):
    shutil.copytree(release/"exam", tmp_path/"exam")
    with pytest.raises(Invalid, match="holds no GGUF form"): page.run_canary(tmp_path, tmp_path/"work")
