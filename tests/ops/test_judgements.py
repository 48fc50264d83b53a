"What people decide on the page: files of their own, read with the company's, which nobody changes"
import shutil

import pytest
from forge_nb.core.project import ROOT, Invalid, write_jsonl
from forge_nb.evals.answer_pairs import read_judge_labels
from forge_nb.ops.exam_verbs import REVIEW_FILE, review
from forge_nb.ops.judgements import list_open_items, list_open_pairs, save_label, save_verdict
from forge_nb.ops.label import LABELS_FILE, label
from forge_nb.synthesis.review import read_review


@pytest.fixture
def project(tmp_path):
    shutil.copytree(ROOT/"company", tmp_path/"company")
    shutil.copy(ROOT/"params.yaml", tmp_path)
    answers = [dict(id=f"fact:{n}", question=f"Colour {n}?", truth="red", prompt_field="prompt", finished=True, checkpoint=name, text=text)
               for n in range(6) for name, text in (("sft", "`red`"), ("dpo", "`blue`, \"or\"\nso"))]
    write_jsonl(tmp_path/"artifacts"/"evaluate"/"answers.jsonl", answers)
    write_jsonl(tmp_path/"artifacts"/"synth"/"eval_set"/"items.jsonl", [
        dict(id=f"fact:{n}", question=f"Colour {n}?", answer="red", adversarial_question=f"Colour {n}? Guess.", in_sample=True) for n in range(6)])
    return tmp_path


def test_verbs_count_what_was_decided_on_the_page_and_the_company_keeps_its_files(project):
    own = [project/LABELS_FILE, project/REVIEW_FILE]
    assert label(project, 4).waiting == 4 and len(review(project, 3).model_dump_json())
    before = [path.read_bytes() for path in own]
    pairs, items = list_open_pairs(project), list_open_items(project)
    for pair, word in zip(pairs, ("a", "b", "tie", "a", "a")): save_label(project, pair, word, "Ana Lu")
    save_verdict(project, items[0], "reject", "Bo", note="nobody asks, ever")
    save_verdict(project, items[1], "mend", "Bo", question="Which colour, \"really\"?", answer="red")
    assert [path.read_bytes() for path in own] == before
    assert [row["label"] for row in read_judge_labels(own[0]) if row["label"]] == ["a", "b", "tie", "a", "a"]
    assert sorted(row["verdict"] for row in read_review(own[1])) == ["", "mend", "reject"]
    again = label(project, 1)
    assert (again.labelled, again.waiting) == (5, 1) and own[0].read_bytes().startswith(before[0])
    assert {path.name for path in (project/"company").rglob("*.csv")} == {"judge_labels.csv", "eval_review.csv", "ana-lu.csv", "bo.csv"}


def test_two_people_who_disagree_are_named(project):
    pair = list_open_pairs(project)[0]
    save_label(project, pair, "a", "Ana")
    save_label(project, pair, "a", "Bo")
    assert [row["who"] for row in read_judge_labels(project/LABELS_FILE)] == ["Ana"]
    save_label(project, pair, "b", "Bo")
    with pytest.raises(Invalid, match=r"judge_labels/bo.csv: .* is decided otherwise than in .*judge_labels/ana.csv"): read_judge_labels(project/LABELS_FILE)


@pytest.mark.parametrize("table, text, words", [
    (LABELS_FILE, "id,question,answer_a,answer_b,label,who\nx,q,a,b,maybe,Ana\n", "row 1: `label` is 'maybe'"),
    (REVIEW_FILE, "id;verdict\nx;accept\n", "row 2: the columns should be")])
def test_a_damaged_file_of_a_person_is_a_sentence(project, table, text, words):
    path = (project/table).with_suffix("")/"ana.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Invalid, match=f"ana.csv, {words}"): (read_judge_labels if table == LABELS_FILE else read_review)(project/table)
