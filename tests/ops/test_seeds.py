"What `make effects` writes for the gate: how far seeds of one recipe lie apart, from their scores to the floor that a verdict shows"
import random, shutil

import pytest

from forge_nb.core.project import ROOT, read_csv, write_json
from forge_nb.core.rules import Rules
from forge_nb.evals.predictions import read_measured
from forge_nb.evals.release import collect_scores, describe_release, judge_candidate, measure_floors, read_floors
from forge_nb.metrics.paired import measure_seed_floor
from forge_nb.ops import seeds as seeds_page

RIGHT = {0: .80, 1: .83, 2: .785}  # share of right answers about tables, by seed
EXAM = "5761" * 16


def make_scores(seed, checkpoint="rl"):
    "Rows of a run: one slice with right answers by share, bits of documents, and a kind, which has no floor"
    draw, row = random.Random(seed), dict(checkpoint=checkpoint, weight=1.)
    right = round(RIGHT[seed] * 400)
    rows = [row | dict(metric="exact_match", slice=part, item=f"q{n}", value=float(n < right)) for n in range(400) for part in ("tables", "fact/price")]
    return rows + [row | dict(metric="bpb", slice="all", item=f"d{n}", value=round(1.3 + .01 * seed + draw.random() / 100, 6)) for n in range(9)]


@pytest.fixture
def effects(tmp_path, monkeypatch):
    "Run `make effects` over three seeds whose chains are made up"
    for name in ("config/checkpoints.yaml", "company/style.yaml"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT/name, tmp_path/name)
    answer = dict(checkpoint="rl", prompt_field="prompt", question="Price?", truth="3 EUR", text="`3 EUR`. Source: p.")
    rows = {"scores.jsonl": lambda seed: make_scores(seed) + make_scores(seed, "dpo"), "answers.jsonl": lambda seed: [answer]}
    changed = dict(ROOT=tmp_path, require_commit=lambda root: None, run_git=lambda *arguments: "", run_seed=str,
                   read_experiment_rows=lambda name, seed: rows[name](int(seed)), read_compared=lambda seed: {("rl", "dpo")})
    for name, value in changed.items(): monkeypatch.setattr(seeds_page, name, value)
    write_json(tmp_path/"eval_set.lock", dict(exam=dict(sha256=EXAM)))
    monkeypatch.setattr("sys.argv", ["seeds", "0", "1", "2"])
    seeds_page.main()
    return tmp_path/"results"


def test_floors_are_written_and_the_gate_shows_them(effects):
    rows = read_csv(effects/"floors.csv")
    assert {(row["slice"], row["metric"]) for row in rows} == {("tables", "exact_match"), ("all", "bpb")} and {row["seeds"] for row in rows} == {"3"}
    assert read_measured(rows, EXAM) == dict(tables=(pytest.approx((.8 + .83 + .785) / 3, abs=1e-5), pytest.approx(measure_seed_floor([.8, .83, .785]) / 6 ** .5, abs=1e-5)))
    assert read_measured(rows, "another exam") == {}
    floors = read_floors(rows)
    assert floors["tables", "exact_match"] == pytest.approx(measure_seed_floor([.8, .8300, .785]), abs=1e-5)
    assert floors["tables", "exact_match"] > .05 and 0 < floors["all", "bpb"] < .1
    before, after = (collect_scores(make_scores(seed), "rl") for seed in (1, 2))
    rules = Rules(slices=[dict(slice="tables", metric="exact_match", max_drop=.2)])
    origin = dict(baseline="v1", rules_sha256="0" * 64, eval_set_sha256="1" * 64)
    alone, with_floor = (judge_candidate(after, before, rules, origin=origin, floors=f) for f in ({}, floors))
    assert (alone["verdict"], with_floor["verdict"]) == ("fail", "pass") and "no more than another seed brings" in with_floor["slices"][0]["reason"]
    assert "floor between seeds not measured" in describe_release(alone)
    assert f"floor between seeds {100 * floors['tables', 'exact_match']:.1f} points" in describe_release(with_floor)


def test_no_two_seeds_of_the_recipe_block_each_other(effects):
    "The floor is that of the same seeds: each stands as the candidate of each other"
    floors = read_floors(read_csv(effects/"floors.csv"))
    rules = Rules(slices=[dict(slice="tables", metric="exact_match", max_drop=.2), dict(slice="all", metric="bpb", max_drop=.1, min_items=2)])
    origin = dict(baseline="v1", rules_sha256="0" * 64, eval_set_sha256="1" * 64)
    scores = {seed: collect_scores(make_scores(seed), "rl") for seed in RIGHT}
    verdicts = {(a, b): judge_candidate(scores[a], scores[b], rules, origin=origin, floors=floors) for a in scores for b in scores if a != b}
    assert len(verdicts) == 6 and not [pair for pair, verdict in verdicts.items() if any(row["decision"] == "blocks" and row["reason"].startswith("worse") for row in verdict["slices"])]


def test_a_slice_that_one_seed_lacks_has_no_floor():
    lacking = [row for row in make_scores(1) if row["metric"] != "bpb"]
    assert [(row["slice"], row["metric"]) for row in measure_floors([make_scores(0), lacking], "rl", EXAM)] == [("tables", "exact_match")]
