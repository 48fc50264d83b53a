"Pairs with known labels: right by the graders, in an order that says nothing, the same every time; a file of labels as programs save it"
from collections import Counter

import pytest

from forge_nb.core.project import ROOT, Invalid
from forge_nb.core.settings import Style, load_settings
from forge_nb.evals.answer_pairs import (LABEL_COLUMNS, VERIFIER, append_pairs, collect_labelled, draw_pairs, make_verified_pairs,
                                         pair_checkpoints, read_judge_labels)
from forge_nb.metrics.graders import grade_answer

STYLE = load_settings(ROOT/"company"/"style.yaml", Style)


def make_rows(num: int = 300) -> list:
    "Answers of two checkpoints with passages and from memory: right, false, declined, and right in other words"
    def row(n, name, field, text): return dict(checkpoint=name, id=f"q{n}", prompt_field=field, question=f"Price of {n}?", truth=f"{n} EUR", text=text, finished=True)
    texts = lambda n: [f"`{n} EUR`, by p.", f"`{n} EUR`. Source: p.", f"`{n + 1} EUR`, by p." if n % 3 else "`not known`, by none.", f"Perhaps {n} EUR."]
    return [row(n, name, field, text) for n in range(num)
            for (name, field), text in zip([("sft", "prompt"), ("rl", "prompt"), ("sft", "question"), ("rl", "question")], texts(n))]


ROWS = make_rows()


def test_a_verifiers_labels_are_the_graders():
    pairs = make_verified_pairs(ROWS, STYLE, 120)
    right = lambda text, n: grade_answer(text, True, f"{n} EUR", STYLE)["exact_match"]
    for pair in pairs:
        grades = [right(pair[f"answer_{x}"], int(pair["id"][1:].partition("#")[0])) for x in "ab"]
        assert grades == dict(a=[1, 0], b=[0, 1], tie=[1, 1])[pair["label"]] and pair["who"] == VERIFIER
        assert "Perhaps" not in pair["answer_a"] + pair["answer_b"], "right in words that no comparison sees"
    counts = Counter(pair["label"] for pair in pairs)
    assert counts["tie"] == 40 and min(counts["a"], counts["b"]) > 25, "neither place is the better one's"
    assert len({pair["id"] for pair in pairs}) == len({pair["question"] for pair in pairs}) == 120
    assert make_verified_pairs(ROWS, STYLE, 120) == pairs


def test_what_people_labelled_is_not_labelled_again_and_costs_the_verifier_no_pair():
    verified = make_verified_pairs(ROWS, STYLE, 120)
    people = [pair | dict(label="tie", who="A. Person") for pair in verified[:50]]
    found = collect_labelled(people, ROWS, STYLE, 120)
    assert found[:50] == people and len(found) == 170 and len({pair["id"] for pair in found}) == 170
    assert Counter(pair["who"] for pair in found) == {"A. Person": 50, VERIFIER: 120}


def test_people_are_never_shown_a_pair_twice_and_every_question_comes_first():
    seen, first = set(), draw_pairs(ROWS, set(), 600)
    assert len({pair["question"] for pair in first}) == 300
    while pairs := draw_pairs(ROWS, seen, 400):
        assert not seen & {pair["id"] for pair in pairs}
        seen |= {pair["id"] for pair in pairs}
    assert len(seen) == 300 * 6  # four different answers


@pytest.mark.parametrize("encoding, end", [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_a_file_that_a_spreadsheet_saved_is_read_and_added_to(tmp_path, encoding, end):
    path = tmp_path/"judge_labels.csv"
    lines = [",".join([*LABEL_COLUMNS, "remark"]), 'x#1,"Was heißt ""netto""?","3 EUR,\nnetto",4 €,tie,Ä. Person,']
    path.write_bytes((end.join(lines) + end).encode(encoding))
    before = path.read_bytes()
    append_pairs(path, draw_pairs(ROWS, set(), 3))
    rows = read_judge_labels(path)
    assert path.read_bytes().startswith(before) and [row["label"] for row in rows] == ["tie", "", "", ""]
    assert rows[0]["answer_a"] == "3 EUR,\nnetto" and rows[0]["who"] == "Ä. Person"


def test_a_file_with_other_signs_between_its_columns_is_a_sentence(tmp_path):
    path = tmp_path/"judge_labels.csv"
    path.write_text(";".join(LABEL_COLUMNS) + "\nx;What?;1;2;a;A. Person\n", encoding="utf-8")
    with pytest.raises(Invalid, match="the column `id` is missing; the first line is id,question,answer_a"): read_judge_labels(path)


def test_checkpoints_are_paired_on_what_both_answered_with_passages():
    pairs = pair_checkpoints(ROWS, "rl", "sft", 50)
    assert len(pairs) == 50 and all("Source" in pair["answer_a"] and ", by p." in pair["answer_b"] for pair in pairs)
    assert pair_checkpoints(ROWS, "rl", "dpo", 0) == []
