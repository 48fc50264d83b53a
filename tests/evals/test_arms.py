"The arms without a model on the default company's own tables, and on names that are hard to look up"
import pytest

from forge_nb.core.project import ROOT, read_csv, write_csv
from forge_nb.core.settings import QuestionKinds, load_settings
from forge_nb.evals.arms import (find_answer_rank, find_nearest_name, guess_commonest, index_keys, list_known_answers, look_up_value, read_tables,
                                      show_first_passage)

QUESTIONS = ROOT/"company"/"questions.yaml"


@pytest.fixture(scope="module")
def tables():
    kinds = load_settings(QUESTIONS, QuestionKinds)
    return read_tables(ROOT/"data"/"facts", {kind.table: kind.key for kind in kinds.values()})


def test_a_look_up_finds_key_and_column_in_the_default_tables(tables):
    index = index_keys(tables)
    row = next(row for row in read_csv(ROOT/"data"/"facts"/"settings.csv") if row["name"] == "EMAIL_TIMEOUT")
    assert look_up_value("What is the default of EMAIL_TIMEOUT?", tables, index) == (row["default"], "settings.csv")
    assert look_up_value("What type has EMAIL_TIMEOUT?", tables, index) == (row["type"], "settings.csv")
    assert look_up_value("If a project leaves EMAIL_TIMEOUT alone, what is it set to?", tables, index) == (None, "")
    assert look_up_value("What is the default of EMAIL_TIMEOUTS?", tables, index) == (None, "")


def test_the_longest_key_wins_and_two_truths_are_none(tmp_path):
    write_csv(tmp_path/"parts.csv", [dict(name=name, size=size, price=price) for name, size, price in
                                     [("bolt", "M3", "1"), ("bolt M3", "M3", "2"), ("nut", "M3", "3"), ("nut", "M3", "4"), ("", "M4", "5")]])
    tables = read_tables(tmp_path, {"parts.csv": ["name"]})
    index = index_keys(tables)
    assert look_up_value("What is the price of a bolt M3?", tables, index)[0] == "2"
    assert look_up_value("What is the price of a nut?", tables, index)[0] is None
    assert look_up_value("", tables, index) == (None, "")
    pairs = read_tables(tmp_path, {"parts.csv": ["name", "size"]})
    assert look_up_value("Price of a bolt in M3?", pairs, index_keys(pairs))[0] == "1"


def test_the_fact_itself_is_left_out_of_both_guesses():
    facts = [dict(id=f"price:bolt M{n}", kind="price", answer=answer) for n, answer in ((3, "1"), (4, "2"), (44, "2"), (5, "1"))]
    known = list_known_answers(facts, [])
    item = dict(kind="price", part="fact", fact="price:bolt M4", question="?", answer="2")
    assert guess_commonest(item, known) == "1" and find_nearest_name("bolt M4", list(known["price"])) == "bolt M44"
    assert guess_commonest(item | dict(kind="colour"), known) is None and find_nearest_name("x", ["x"]) is None


def test_what_is_shown_is_an_answer_only_where_it_says_the_answer_first():
    row = dict(id="p", source="facts/parts.csv", text="parts: name `bolt`; size `M3`; price `3 EUR`")
    assert "bolt;" in show_first_passage("What does a bolt of M3 cost?", [row]) and "`3 EUR`" in show_first_passage("How big is a bolt?", [row])
    assert show_first_passage("?", []) == ""


def test_the_page_of_a_document_is_shown_last():
    page = dict(id="p", source="docs/a.txt", text="page `ref/a`; Oil: `oil 7` is for threads")
    assert show_first_passage("Which oil is for threads?", [page]) == "Oil: `oil 7` is for threads (page `ref/a`)"


def test_an_answer_has_the_place_of_the_first_passage_that_holds_it():
    found = [dict(id=name) for name in "abc"]
    assert [find_answer_rank(found, holding) for holding in (["c", "b"], ["x"], [])] == [2, 0, 0]
