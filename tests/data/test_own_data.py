"`make data FROM=folder`: what is copied, what stays behind, and which files are evaluation sets"
import gzip, json

import pytest

from forge_nb.core.project import Invalid
from forge_nb.data.own_data import copy_data, find_eval_sets, list_copied, replace_data

ASKED = dict(question="Which bolt holds the flange of pump seven?")
FORMS = dict(
    choices=ASKED | dict(choices=["M3", "M4"], answer="B"),
    arc=ASKED | dict(choices=dict(text=["M3", "M4"], label=["A", "B"]), answerKey="B"),
    hellaswag=dict(ctx="The bolt of pump seven", endings=["holds.", "sings."], label="0"),
    options=dict(Question=ASKED["question"], Options=["M3", "M4"], Answer="M4"), options_in_text=dict(Problem=ASKED["question"], options="a ) M3 , b ) M4", correct="b"),
    named_choices=ASKED | dict(choice_a="M3", choice_b="M4", answer="B"), sciq=ASKED | dict(correct_answer="M4", distractor1="M3", distractor2="M5", support=""),
    arc_as_published=dict(id="7", question=dict(stem=ASKED["question"], choices=[dict(text="M3", label="A"), dict(text="M4", label="B")]), answerKey="B"),
    truthful=ASKED | dict(best_answer="M4", correct_answers=["M4"], incorrect_answers=["M3"]), boolq=ASKED | dict(passage="The bolt is an M4.", answer=True), boolq_in_words=ASKED | dict(passage="The bolt is an M4.", answer="no"),
    bbh=dict(input="Which bolt holds the flange? Options:\n(A) M3\n(B) M4", target="(B)"), gsm8k=ASKED | dict(answer="2 + 2 = 4\n#### 4"),
    nested_squad=dict(title="Bolts", paragraphs=[dict(context="The bolt is an M4.", qas=[ASKED | dict(id="1", answers=[dict(text="M4", answer_start=15)])])]),
    code=dict(task_id="1", prompt="def grease(): ...", canonical_solution="pass", test="grease()"),
    letters=ASKED | dict(A="M3", B="M4", answer="B"),
    squad=ASKED | dict(context="The bolt is an M4.", answers=dict(text=["M4"], answer_start=[15])))


def write_lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_items_of_an_exam_are_found_by_their_shape_wherever_they_lie(tmp_path, form, packed):
    write_lines(tmp_path/"notes"/"a.jsonl", *[FORMS[form]] * 3)
    name = "notes/a.jsonl"
    if packed:
        (tmp_path/"notes"/"a.jsonl.gz").write_bytes(gzip.compress((tmp_path/name).read_bytes()))
        (tmp_path/name).unlink()
        name += ".gz"
    assert find_eval_sets(tmp_path, [name]) == [name]


@pytest.mark.parametrize("name, text", [
    ("mmlu.csv", "".join(f"Which bolt holds flange {n} of the pump?,M{n},M4,none,both,B\n" for n in range(5))), ("numbers.csv", "".join(f"How many bolts hold flange {n}?,{n},4,2,9,B\n" for n in range(5))),
    ("squad.json", json.dumps(dict(version="2.0", data=[dict(title="Bolts", paragraphs=[dict(context="It is an M4.", qas=[dict(question="Which?", id="1", answers=[dict(text="M4", answer_start=9)])])])]))),
    ("bbh.json", json.dumps(dict(canary="b-1", examples=[dict(input="not ( True ) and", target="False")] * 3))),
    ("truthful.csv", "Type,Question,Best Answer,Correct Answers,Incorrect Answers\nA,Which bolt holds it?,M4,M4,M3\n")])
def test_sets_as_they_are_published_are_found(tmp_path, name, text):
    (tmp_path/name).write_text(text, encoding="utf-8")
    assert find_eval_sets(tmp_path, [name]) == [name]


@pytest.mark.parametrize("name, text", [
    ("tasks.csv", "Task of the whole shift,Part,Class\nGrease the arm of press three,arm,A\nTighten the belt of press four,belt,B\n"), ("prices.csv", "Article,M3,M4,Answer\nBolt,1,2,yes\nNut,3,4,no\n"),
    ("faq.csv", "Question,Answer,Category\nIs it open on the first of May?,No.,hours\n"), ("setpoints.json", json.dumps([dict(machine="Press 3", input="raw steel", target="12 mm")])),
    ("alpaca.json", json.dumps([dict(instruction="Name a bolt that holds the flange.", input="", output="M4")])), ("choices.json", json.dumps([dict(machine="Press 3", choices=["heated", "cooled"])]))])
def test_tables_and_questions_of_a_company_stay(tmp_path, name, text):
    (tmp_path/name).write_text(text, encoding="utf-8")
    assert find_eval_sets(tmp_path, [name]) == []


def test_what_is_trained_on_is_no_evaluation_set(tmp_path):
    said = [dict(role="user", content="Is it open?"), dict(role="assistant", content="From nine.")]
    write_lines(tmp_path/"faq.jsonl", ASKED | dict(answer="An M4."))
    write_lines(tmp_path/"chats.jsonl", dict(messages=said))
    write_lines(tmp_path/"pairs.jsonl", dict(prompt="a", chosen="b", rejected="c"))
    write_lines(tmp_path/"options.jsonl", dict(machine="Press 3", options="heated"))  # a price list, not a question
    (tmp_path/"facts").mkdir()
    (tmp_path/"facts"/"grades.csv").write_text("question,A,B,answer\nQ,1,2,A\n", encoding="utf-8")  # a table of facts is asked about
    names = list_copied(tmp_path)[0]
    assert len(names) == 5 and find_eval_sets(tmp_path, names) == []
    for name in ("faq.jsonl", "chats.jsonl"): write_lines(tmp_path/"Evaluation sets"/name, *map(json.loads, (tmp_path/name).read_text(encoding="utf-8").splitlines()))
    assert find_eval_sets(tmp_path, list_copied(tmp_path)[0]) == ["Evaluation sets/chats.jsonl", "Evaluation sets/faq.jsonl"]


def test_a_folder_without_anything_to_read_replaces_nothing(tmp_path):
    (tmp_path/"from").mkdir()
    (tmp_path/"from"/"scan.pdf").write_bytes(b"%PDF-1.4 torn")
    with pytest.raises(Invalid, match="no file in it can be read"): copy_data(tmp_path/"from", tmp_path/"data", tmp_path/"sets")


def test_links_stay_links_and_environments_stay_behind(tmp_path):
    source = tmp_path/"from"
    for name in ("docs/a.md", "docs/b/c.md", "tools/pyvenv.cfg", "tools/lib/x.py", "src/.idea/w.xml", "src/a.py"):
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        (source/name).write_text("# Bolts hold what is screwed together\n", encoding="utf-8")
    (source/"again").symlink_to("docs/b")
    taken = copy_data(source, tmp_path/"data", tmp_path/"sets")
    assert taken.copied == ["again", "docs/a.md", "docs/b/c.md", "src/a.py"] and (tmp_path/"data"/"again").is_symlink()
    assert taken.left == {"folders of tools": ["src/.idea/", "tools/"]} and not (tmp_path/"sets").exists()


def test_data_come_back_when_the_new_cannot_be_recorded(tmp_path):
    for name in ("data", "new"):
        (tmp_path/name).mkdir()
        (tmp_path/name/f"{name}.md").write_text(name, encoding="utf-8")
    def interrupt(): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): replace_data(tmp_path/"new", tmp_path/"data", tmp_path/"before", interrupt)
    assert [p.name for p in (tmp_path/"data").iterdir()] == ["data.md"] and not (tmp_path/"before").exists()
