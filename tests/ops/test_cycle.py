"Rounds of refinement on a project in which the whole chain has run: driven by weak slices, recorded, taken up, refused"
import inspect, json

import pytest
from forge_nb.core.project import ROOT, load_params
from forge_nb.synthesis.filters import find_weak_kinds
from copies import FORGE, ask, refuse, sibling


@pytest.fixture(scope="module")
def cycled(tiny, tmp_path_factory):
    "One round, driven by an evaluation in which two kinds of question are weak beyond noise"
    copy = sibling(tiny, tmp_path_factory.mktemp("cycle")/"project")
    path = copy.root/"artifacts/evaluate/scores.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    weak = {"check_level", "setting_type"}
    for r in rows:  # the tiny model knows nothing; an evaluation of a better one stands in for its own
        if r["metric"] == "exact_match" and r["checkpoint"] == "rl": r["value"] = float(not any(k in r["item"] for k in weak))
    more = [r | dict(item=f"{r['item']} {n}") for r in rows if r["metric"] == "exact_match" and r["slice"].startswith("phrasing/") for n in range(20)]
    path.unlink(); path.write_text("".join(json.dumps(r) + "\n" for r in rows + more), encoding="utf-8")
    copy.line = "cycle --rounds 1 --paraphrases-per-fact 1 --name test"
    copy.before = {f: (copy.root/f).read_bytes() for f in ("params.yaml", "dvc.lock", *(p.relative_to(copy.root).as_posix() for p in (copy.root/"company").rglob("*") if p.is_file()))}
    copy.answer = ask(copy, copy.line)
    return copy


@pytest.mark.slow
def test_a_round_asks_for_more_of_what_is_weak_and_puts_everything_back(cycled):
    [result] = cycled.answer["rounds"]
    given = load_params(cycled.root/"params.yaml")["synth"]["paraphrase_weights"]
    assert set(result["weights"]) == {"check_level", "setting_type", *(w.partition("=")[0] for w in given)}
    assert all(w > 1 for w in result["weights"].values())
    assert {f: (cycled.root/f).read_bytes() for f in cycled.before} == cycled.before, "the working tree is not as it was"
    more = cycled(f"python -c \"import dvc.api; print(dvc.api.read('artifacts/synth/rows/sft.jsonl', rev='{result['experiment']}'))\"")
    count = lambda text, kind: sum(json.loads(line)["kind"] == kind for line in text.splitlines() if line.startswith("{"))
    had = (cycled.root/"artifacts/synth/rows/sft.jsonl").read_text(encoding="utf-8")
    grown = {k: count(more, k) - count(had, k) for k in ("check_level", "setting_type", "object_module")}
    assert grown["check_level"] > grown["object_module"] and grown["setting_type"] > grown["object_module"], grown


@pytest.mark.slow
def test_what_was_fixed_and_broken_adds_up(cycled):
    [result] = cycled.answer["rounds"]
    every, *parts = result["changes"]
    assert every["slice"] == "all" and every["n"] > 0 and round(every["n"] * every["diff"]) == every["fixed"] - every["broken"]
    kinds = [p for p in parts if p["slice"].startswith("phrasing/") or p["slice"].startswith("fact/")]
    assert sum(p["fixed"] for p in kinds) >= every["fixed"] and result["since_start"] == every


@pytest.mark.slow
def test_a_finished_round_is_not_run_again(cycled):
    experiments = cycled("dvc exp list --name-only")
    assert "cycle-test-1" in experiments
    assert ask(cycled, cycled.line) == cycled.answer and cycled("dvc exp list --name-only") == experiments


def test_the_default_evaluation_asks_enough_of_each_kind():
    each = load_params(ROOT/"params.yaml")["synth"]["num_eval_items"] // len(load_params(ROOT/"company/questions.yaml"))
    assert each >= inspect.signature(find_weak_kinds).parameters["min_items"].default, "no kind could ever be called weak"


@pytest.mark.slow
@pytest.mark.parametrize("line, words", [
    ("cycle --rounds 0", ["--rounds must be 1"]), ("cycle --paraphrases-per-fact 0", ["--paraphrases-per-fact must be 1"]),
    ("cycle --checkpoint nosuch", ["nothing about `nosuch`", "rl"])])
def test_bad_cycles_are_refused(cycled, line, words): refuse(cycled, line, 2, *words)


def test_nothing_weak_ends_it_at_once(tiny, tmp_path_factory):
    copy = sibling(tiny, tmp_path_factory.mktemp("strong")/"project")
    assert "no slice is below the average beyond noise" in copy(f"{FORGE} cycle --rounds 2 --name none")
