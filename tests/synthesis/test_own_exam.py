"The company's own exam: every form is asked, and what nobody can judge is one sentence with file and row"
import csv, json

import pytest

from forge_nb.core.project import Invalid
from forge_nb.metrics import sandbox
from forge_nb.synthesis.own_exam import read_own_exam

OIL, WINTER = dict(question="Which oil does it take?", answer="46"), [dict(role="user", content="Which oil?"), dict(role="assistant", content="32"), dict(role="user", content="And in winter?")]


def read(folder, name, content):
    path = folder/name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".csv"):
        with open(path, "w", newline="", encoding="utf-8") as file: csv.writer(file).writerows(content)
    elif name.endswith(".jsonl"): path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else: path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_own_exam(folder, "unknown", 40)


@pytest.mark.parametrize("name, content, expected", [
    ("a.jsonl", [OIL], ("answer", ["46"])),
    ("a.jsonl", [dict(prompt=OIL["question"], completion="46")], ("answer", ["46"])),
    ("a.jsonl", [dict(question=OIL["question"], answers=["46", "oil 46"])], ("answer", ["46", "oil 46"])),
    ("a.json", dict(data=[dict(paragraphs=[dict(context="…", qas=[dict(question=OIL["question"], answers=[dict(text="46", answer_start=1), dict(text="oil 46", answer_start=1)])])])]), ("answer", ["46", "oil 46"])),
    ("a.csv", [["question", "answer"], [OIL["question"], "46"]], ("answer", ["46"])),
    ("a.csv", [["Frage", "Antwort"], ["Welches Öl nimmt sie?", "46"]], ("answer", ["46"])),
    ("a.csv", [["question", "A", "B", "answer"], [OIL["question"], "32", "46", "B"]], ("choices", ["46"])),
    ("a.jsonl", [dict(question=OIL["question"], choices=["32", "46"], answer=1)], ("choices", ["46"])),
    ("a.jsonl", [dict(question=OIL["question"], choices=["32", "46"], answer="46")], ("choices", ["46"])),
    ("a.jsonl", [dict(question=OIL["question"], choices=dict(text=["32", "46"], label=["A", "B"]), answerKey="B")], ("choices", ["46"])),
    ("a.jsonl", [dict(messages=[*WINTER, dict(role="assistant", content="46")])], ("messages", ["46"])),
    ("a.jsonl", [dict(messages=WINTER, reference="46")], ("messages", ["46"])),
    ("a.jsonl", [dict(question="Explain the pump.", rubric=["names the oil", "says when"])], ("rubric", None)),
    ("a.jsonl", [dict(prompt="Explain the pump.", rubric="names the oil")], ("rubric", None)),
    ("out_of_domain/a.jsonl", [OIL], ("answer", ["unknown"])),
    ("out_of_domain/a.jsonl", [dict(question="Explain the moon.", rubric="names the sun")], ("rubric", ["unknown"])),
])
def test_every_form_is_asked(tmp_path, name, content, expected):
    [item] = read(tmp_path, name, content)
    assert (item["kind"], item.get("answers")) == expected and item["part"] == "own_exam" and item["origin"] == name
    assert item.get("ungraded", False) == (expected[1] is None)
    if expected[0] == "choices": assert item["choices"][item["gold"]] == "46"


def test_a_row_that_moves_keeps_its_name_and_one_that_is_reworded_does_not(tmp_path):
    other = dict(question="Which coolant does it take?", answer="water")
    ids = [{item["question"]: item["id"] for item in read(tmp_path, "a.jsonl", rows)} for rows in ([OIL, other], [other, OIL], [OIL | dict(answer="68"), other])]
    assert ids[0] == ids[1] and ids[0][OIL["question"]] != ids[2][OIL["question"]] and ids[0][other["question"]] == ids[2][other["question"]]


@pytest.mark.parametrize("name, content, words", [
    ("a.jsonl", [OIL, dict(question="Which coolant does it take?", answer="")], "a.jsonl#2"),
    ("a.csv", [["question", "answer"], [OIL["question"], "46"], ["Which coolant does it take?", ""]], "a.csv#2: 'Which coolant does it take?' has no right answer"),
    ("a.csv", [["question", "answer"], ["Which coolant does it take?", "water"], [OIL["question"], ""]], "a.csv#2, line 3: expected a question and its answer, found one of them empty"),
    ("a.jsonl", [dict(prompt="Which pump is it then?")], "a.jsonl#1: 'Which pump is it then?' has no right answer; write `answer` or `rubric`"),
    ("a.jsonl", [dict(question=OIL["question"], choices=["32", "46"], answer="68")], "a.jsonl#1: 2 choices, and '68' is not among them"),
    ("a.jsonl", [dict(question=OIL["question"], choices=["32", "46"])], "a.jsonl#1: 2 choices, and none is the right one"),
    ("a.jsonl", [OIL, OIL], "a.jsonl#2: asks what a.jsonl#1 asks, with the same answer; take one of them out"),
    ("a.jsonl", [], "a.jsonl: no question in it"),
    ("a.json", [], "a.json: no question in it"),
    ("a.csv", [["name", "size"], ["pump", "46"]], "a.csv: no question in it"),
    ("faq.md", "# Pump\n\nWhich oil does it take? Oil 46.\n", "faq.md: a text, whose questions and answers nobody can tell apart"),
    ("a.yaml", "- question: Which oil\n  answer: 46\n", "a.yaml: a text"),
    ("a.jsonl", "{\"question\": \n", "a.jsonl"),
])
def test_what_nobody_can_judge_is_one_sentence(tmp_path, name, content, words):
    with pytest.raises(Invalid) as error: read(tmp_path, name, content)
    assert f"company/eval_sets/{words}" in str(error.value) and "\n" not in str(error.value), error.value


def test_a_set_may_be_kept_out_of_training_and_not_asked(tmp_path):
    assert read(tmp_path, "unasked/faq.md", "# Pump\n\nWhich oil does it take? Oil 46.\n") == []


def test_code_is_asked_with_its_tests_where_it_can_be_run(tmp_path, monkeypatch):
    human_eval = dict(task_id="a/1", prompt="def double(x):\n    \"Double a number\"\n", canonical_solution="    return 2 * x\n", test="def check(candidate):\n    assert candidate(2) == 4\n", entry_point="double")
    monkeypatch.setattr(sandbox, "can_cut_network", lambda: True)
    [item] = read(tmp_path, "a.jsonl", [human_eval])
    assert (item["kind"], item["ungraded"]) == ("code", True) and item["tests"].endswith("check(double)")
    monkeypatch.setattr(sandbox, "can_cut_network", lambda: False)
    with pytest.raises(Invalid, match="company/eval_sets/a.jsonl#1: code is to be run, and this system lets no process be without a network"): read(tmp_path, "a.jsonl", [human_eval])
