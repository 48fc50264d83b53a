"The phrasings of company/: enough of them, none of the held-out ones near what is trained, judged by the functions that judge rows"
import re

import pytest
from copies import ROOT

from forge_nb.core.settings import ColumnPhrasings, ExtractKinds, QuestionKinds, Style, load_settings
from forge_nb.core.project import load_params
from forge_nb.data.shingles import find_contamination, jaccard
from forge_nb.synthesis.eval_set import names_column
from forge_nb.synthesis.facts import load_facts
from forge_nb.synthesis.filters import find_named_columns, hash_bigrams, index_eval_wording, mask_names
from forge_nb.synthesis.paraphrase import load_grammar, paraphrase_with_grammar
from forge_nb.synthesis.rows import make_paraphrase_jobs

EXTRACTS = load_settings(ROOT/"company"/"extracts.yaml", ExtractKinds)
COLUMNS = load_settings(ROOT/"company"/"columns.yaml", ColumnPhrasings)
KINDS = load_settings(ROOT/"company"/"questions.yaml", QuestionKinds)
THRESHOLD = load_params(ROOT/"params.yaml")["synth"]["dedup_threshold"]
MANUAL = dict(kind="docs", source="docs/howto/deploy.txt", text="".join(f"How to go live in {n} steps\n===========================\n\nText.\n\n" for n in range(9)))


@pytest.fixture(scope="module")
def facts() -> list: # a few facts of each kind
    style = load_settings(ROOT/"company"/"style.yaml", Style)
    return load_facts(ROOT/"company"/"questions.yaml", KINDS, ROOT/"data"/"facts", [MANUAL], style, max_answer_characters=40, limit=4)


def mask(text, fact):
    return mask_names(text, [str(fact["fill"][column]) for column in find_named_columns(KINDS[fact["kind"]])])


def nearest(questions, others):
    return max((jaccard(hash_bigrams(a), hash_bigrams(b)), a, b) for a in questions for b in others)


@pytest.mark.parametrize("name", KINDS)
def test_there_are_phrasings_enough(name):
    kind = KINDS[name]
    assert len(kind.ask) >= 7 and len(kind.ask_held_out) >= 5
    assert sum(not names_column(phrasing, kind) for phrasing in kind.ask_held_out) >= 2
    assert sum(not names_column(phrasing, kind) for phrasing in kind.ask) >= 2


@pytest.mark.parametrize("name", KINDS)
def test_held_out_phrasings_are_not_near_trained_ones(name, facts):
    kind, of_kind = KINDS[name], [fact for fact in facts if fact["kind"] == name]
    assert of_kind
    for fact in of_kind:
        held_out, asked = ([mask(text.format(**fact["fill"]), fact) for text in texts] for texts in (kind.ask_held_out, kind.ask))
        assert nearest(held_out, asked)[0] < THRESHOLD
        for n, text in enumerate(asked): assert nearest([text], asked[:n] or ["none"])[0] < THRESHOLD, "a phrasing is there twice"


def test_nor_near_what_the_grammar_makes_of_them(facts):
    grammar = load_grammar(ROOT/"company"/"paraphrases.yaml", {name: {c for f in facts if f["kind"] == name for c in f["fill"]} for name in KINDS})
    jobs = make_paraphrase_jobs(facts, KINDS, 40, {})
    replies = paraphrase_with_grammar(jobs, grammar, 0)
    for name, kind in KINDS.items():
        index = index_eval_wording(kind, {})
        for fact in [fact for fact in facts if fact["kind"] == name]:
            held_out = [mask(text.format(**fact["fill"]), fact) for text in kind.ask_held_out]
            made = [mask(reply["question"], fact) for job, reply in zip(jobs, replies) if job["fact"] == fact["id"]]
            assert len(set(made)) > 20 and nearest(held_out, made)[0] < THRESHOLD
            for text in {*made, *(mask(text.format(**fact["fill"]), fact) for text in kind.ask)}:
                assert not find_contamination(text, index), f"the filters would reject a trained phrasing: {text}"
            for text in held_out: assert find_contamination(text, index), f"the filters would let a held-out phrasing pass: {text}"


@pytest.mark.parametrize("name, kind, least", [("columns", COLUMNS, 10), *((name, kind, 8) for name, kind in EXTRACTS.items())])
def test_so_it_is_with_columns_and_extracts(name, kind, least):
    assert len(kind.ask) >= least and len(kind.ask_held_out) >= 5
    held_out, asked = ([re.sub(r"\{\w+\}", " X ", text) for text in texts] for texts in (kind.ask_held_out, kind.ask))
    assert nearest(held_out, asked)[0] < THRESHOLD
    for texts in (held_out, asked):
        for n, text in enumerate(texts): assert nearest([text], texts[:n] or ["none"])[0] < THRESHOLD, "a phrasing is there twice"
