"Questions of real documents: each is answered by its passage to the letter, by one passage alone, and does not give the answer away"
import re
from collections import defaultdict

import pytest
from copies import ROOT

from forge_nb.core.project import read_csv
from forge_nb.core.settings import ColumnPhrasings, ExtractKinds, QuestionKinds, load_settings
from forge_nb.data.passages import make_document_passages
from forge_nb.synthesis.columns import make_column_questions
from forge_nb.synthesis.extract import find_extracts, keep_single, make_extractive_questions, match_unit, split_units

KINDS = load_settings(ROOT/"company"/"extracts.yaml", ExtractKinds)
PAGES = ["docs/ref/forms/fields.txt", "docs/ref/settings.txt", "docs/releases/5.2.3.txt", "docs/releases/4.2.txt", "docs/topics/http/sessions.txt",
         "docs/ref/exceptions.txt", "docs/ref/contrib/auth.txt", "code/core/validators.py", "code/forms/widgets.py", "code/core/cache/backends/base.py"]


def document(page):
    return dict(kind=page.partition("/")[0], language="en", source=page, text=(ROOT/"data"/page).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def passages(): return make_document_passages([document(page) for page in PAGES], {}, "en", 1200)


def test_each_is_answered_by_its_passage_alone(passages):
    by_id, extracts = {passage["id"]: passage for passage in passages}, keep_single(find_extracts(passages, KINDS))
    questions = [q for part in make_extractive_questions(keep_single(find_extracts(passages, KINDS)), KINDS, held_out_sources=set(PAGES[:2]), num_phrasings=99) for q in part]
    assert len({extract["kind"] for extract in extracts}) >= 12 and len(extracts) > 300
    assert len({q["id"] for q in questions}) == len(questions) == sum(
        len(KINDS[e["kind"]].ask_held_out if e["source"] in PAGES[:2] else KINDS[e["kind"]].ask) for e in extracts)
    for q in questions:
        word = rf"(?<!\w){re.escape(q['answer'])}(?!\w)"
        assert re.search(word, by_id[q["passage"]]["text"]) and re.search(word, q["sentence"]) and q["source"] == by_id[q["passage"]]["source"]
        assert len(q["answer"]) <= 40 and len(q["sentence"]) <= 200 and not re.search(r"[`\n\ufffc]", q["answer"]) and "\ufffc" not in q["question"]
    for e in extracts: assert not any(re.search(rf"(?<!\w){re.escape(e['answer'])}(?!\w)", value, re.I) for value in e["fill"].values())


def test_what_has_two_answers_or_two_sources_is_not_asked(passages):
    found = defaultdict(set)
    for passage in passages:
        for unit in split_units(passage):
            for e in match_unit(unit, passage, {name: kind for name, kind in KINDS.items() if unit.form in kind.patterns}):
                found[e["kind"], *e["fill"].values()].add((e["answer"], e["passage"]))
    kept = {(e["kind"], *e["fill"].values()) for e in keep_single(find_extracts(passages, KINDS))}
    assert kept == {key for key, answers in found.items() if len(answers) == 1} and len(kept) < len(found) - 20


def test_a_document_keeps_its_side(passages):
    split = lambda some, **how: [{q["source"] for q in part} for part in make_extractive_questions(keep_single(find_extracts(some, KINDS)), KINDS, held_out_sources={PAGES[0]}, **how)]
    training, held_out = split(passages, held_out_percent=40.)
    assert not training & held_out and PAGES[0] in held_out and len(held_out) > 1 and len(training) > 1
    fewer, fewer_held_out = split([p for p in passages if p["source"] != PAGES[4]], held_out_percent=40.)
    assert fewer == training - {PAGES[4]} and fewer_held_out == held_out - {PAGES[4]}


def test_phrasings_of_the_two_sides_are_not_shared(passages):
    training, held_out = make_extractive_questions(keep_single(find_extracts(passages, KINDS)), KINDS, held_out_sources={PAGES[0]}, num_phrasings=99)
    assert training and held_out and {q["source"] for q in held_out} == {PAGES[0]}
    assert not {(q["kind"], q["question"]) for q in training} & {(q["kind"], q["question"]) for q in held_out}


def test_excluded_names_are_not_asked_about(passages):
    everything, names = keep_single(find_extracts(passages, KINDS)), {"SESSION_COOKIE_AGE", "CharField", "widget"}
    left = keep_single(find_extracts(passages, KINDS), names)
    parts = lambda e: {part for value in e["fill"].values() for part in (value, value.rpartition(".")[2])}
    assert 0 < len(left) < len(everything) and not any(names & parts(e) for e in left)


def test_another_text_of_a_company_without_tables():
    "Markdown with fenced code, and prose without any markup but numbers"
    text = ("# Pump P7\n\nThe pump must be serviced every 1200 hours by somebody who is trained for it.\n\n```\n# a program\n\nThe valve of the pump must be `closed` before anybody opens the lid.\n\n```\n\n"
            "## Alarm\n\n* `E17`: The oil pressure fell below the limit for a minute\n\nIf the red lamp is on, press the button `RESET` for three seconds.\n")
    passages = make_document_passages([dict(kind="docs", language="en", source="docs/pump.md", text=text)], {}, "en", 1200)
    assert {(e["kind"], e["answer"]) for e in keep_single(find_extracts(passages, KINDS))} == {("gap_number", "1200"), ("described", "E17"), ("gap_name", "RESET")}


def test_columns_of_held_out_rows_are_not_asked():
    kinds, phrasings = load_settings(ROOT/"company"/"questions.yaml", QuestionKinds), load_settings(ROOT/"company"/"columns.yaml", ColumnPhrasings)
    tables, excluded = ROOT/"data"/"facts", {f"settings.csv:{line}" for line in range(2, 60)}
    asked = make_column_questions(tables, kinds, phrasings.ask, excluded_rows=excluded, num_questions=3000)
    assert len(asked) == 3000 and len({q["table"] for q in asked}) == len(list(tables.glob("*.csv")))
    keys = {row["name"] for row in read_csv(tables/"settings.csv")[:58]}
    assert not [q for q in asked if q["table"] == "settings.csv" and q["key"] in keys]
    for q in asked:
        row = read_csv(tables/q["table"])[int(q["row"].partition(":")[2]) - 2] if q["table"] == "settings.csv" else None
        assert row is None or row[q["column"]].strip("`") == q["answer"]
        assert q["column"].replace("_", " ") in q["question"] and q["key"] in q["question"] and "verified" != q["column"]
