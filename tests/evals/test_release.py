"""The gate's errors: how often it stops a model that is as good, and whether it finds planted damage. The answers in
answers_of_two.csv are those that two checkpoints of the default run, `sft` and the released one, wrote to the same 320 questions;
shares of right answers and of questions on which the two differ are counted there."""
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from forge_nb.core.project import ROOT, Invalid, NotFound, read_csv, read_json, write_json
from forge_nb.core.rules import Bounds, Rules, check_rule_names, load_rules
from forge_nb.core.settings import Style, load_settings
from forge_nb.evals.suites import list_slices
from forge_nb.evals.release import TRIVIAL_ARMS, choose_trivial, describe_release, judge_candidate, require_pass, seal_verdict, sign_waiver
from forge_nb.metrics.graders import grade_answer
from forge_nb.metrics.paired import measure_seed_floor

ANSWERS = read_csv(Path(__file__).with_name("answers_of_two.csv"))
STYLE = load_settings(ROOT/"company"/"style.yaml", Style)
RULES = load_rules(ROOT/"company"/"rules.yaml")
NO_BOUNDS = RULES.model_copy(update=dict(bounds=Bounds()))
EXAM = dict(tables=1400, document=700, absent=130)  # questions of the default exam
RETRAINED = 49 / 320  # share of questions on which a model and one that was trained once more differ: results/cycle.csv, round 1
ORIGIN = dict(baseline="v1", rules_sha256="0" * 64, eval_set_sha256="1" * 64)


def grade(texts, truths): return [grade_answer(t, True, truth, STYLE)["exact_match"] for t, truth in zip(texts, truths)]


def read_grades(column) -> dict:
    "Scores of one of the two models, by (slice, metric)"
    scores = {}
    for n, (row, value) in enumerate(zip(ANSWERS, grade([r[column] for r in ANSWERS], [r["truth"] for r in ANSWERS]))):
        scores.setdefault((row["slice"], "exact_match"), {})[n] = float(value)
    return scores


def rules_of(*parts, **fields): return Rules(slices=[dict(slice=part, metric="exact_match", max_drop=.05) | fields for part in parts])


def observe() -> dict:
    "Share of right answers and share of questions on which the two real models differ, by slice"
    sft, released = read_grades("sft"), read_grades("released")
    return {part: (np.mean([*before.values(), *released[part, metric].values()]), np.mean([before[n] != released[part, metric][n] for n in before]))
            for (part, metric), before in sft.items()}


def draw_pair(rng, shape, drop=0.) -> tuple:
    "Baseline and candidate that differ by luck alone, but for a drop in `document`; shape: slice → items, share right, share that differs"
    before, after = {}, {}
    for part, (items, right, differs) in shape.items():
        loss = drop if part == "document" else 0.
        kinds = rng.choice(4, size=items, p=[(differs + loss) / 2, (differs - loss) / 2, right - differs / 2, 1 - right - differs / 2])
        before[part, "exact_match"] = dict(enumerate(((kinds == 0) | (kinds == 2)).astype(float).tolist()))
        after[part, "exact_match"] = dict(enumerate(((kinds == 1) | (kinds == 2)).astype(float).tolist()))
    return before, after


def count_blocked(shape, rules=NO_BOUNDS, drop=0., floors={}, pairs=2000) -> float:
    rng, blocked = np.random.default_rng(19), 0
    for _ in range(pairs):
        before, after = draw_pair(rng, shape, drop)
        blocked += judge_candidate(after, before, rules, origin=ORIGIN, floors=floors)["verdict"] == "fail"
    return blocked / pairs


def test_shares_are_those_of_real_answers():
    observed = observe()
    assert {part: (round(float(right), 3), round(float(differs), 3)) for part, (right, differs) in observed.items()} == dict(
        tables=(.815, .047), document=(.536, .031), absent=(.859, .031))


@pytest.mark.parametrize("differ", ["as observed", "retrained"])
def test_of_equal_models_at_most_one_in_twenty_is_blocked(differ):
    "With the default rules and exam, and no floor, which would only lower it"
    shape = {part: (EXAM[part], right, differs if differ == "as observed" else RETRAINED) for part, (right, differs) in observe().items()}
    share = count_blocked(shape)
    print(f"{differ}: {100 * share:.1f} % of equal models blocked")
    assert share <= .05


def test_of_equal_models_on_four_hundred_questions_each_at_most_one_in_twenty_is_blocked():
    shape = {part: (400, right, differs) for part, (right, differs) in observe().items()}
    share = count_blocked(shape, rules_of("tables", "document", "absent"))
    print(f"{100 * share:.1f} % blocked")
    assert share <= .05


def test_a_loss_of_the_bound_is_found_in_four_of_five():
    shape = {part: (EXAM[part], right, max(differs, .05)) for part, (right, differs) in observe().items()}
    assert count_blocked(shape, drop=.05, pairs=300) >= .8
    shape["document"] = (EXAM["document"], shape["document"][1], RETRAINED)
    assert count_blocked(shape, drop=.05, pairs=300) >= .8


def test_luck_of_the_seed_is_no_loss_where_the_floor_is_measured():
    "Models of one recipe whose quality varies by a point and a half of standard deviation: the test alone stops many, with the floor of six seeds few"
    rng, stopped = np.random.default_rng(20), np.zeros(2)
    luck = lambda: rng.normal(0, .015)
    for _ in range(300):
        floors = {("tables", "exact_match"): measure_seed_floor([.81 + luck() for _ in range(6)])}
        worse = luck() - luck()
        differs = max(.06, abs(worse))
        kinds = rng.choice(3, size=1400, p=[(differs + worse) / 2, (differs - worse) / 2, 1 - differs])
        before, after = ({("tables", "exact_match"): dict(enumerate((kinds != k).astype(float).tolist()))} for k in (1, 0))
        rules = rules_of("tables", max_drop=.2)
        stopped += [judge_candidate(after, before, rules, origin=ORIGIN, floors=f)["verdict"] == "fail" for f in ({}, floors)]
    print(f"stopped: {stopped / 300}")
    assert stopped[0] / 300 > .1 and stopped[1] / 300 <= .06


@pytest.mark.parametrize("damaged", ["tables", "document", "absent"])
def test_shuffled_answers_in_one_slice_are_found_and_named(damaged):
    "The released model's own answers, those of one slice handed to other questions of it"
    rng, before = np.random.default_rng(21), read_grades("released")
    rows = [n for n, row in enumerate(ANSWERS) if row["slice"] == damaged]
    texts = rng.permutation([ANSWERS[n]["released"] for n in rows]).tolist()
    if damaged == "absent": texts = ["`None`. Source: 584b."] * len(rows)  # whoever does not know says the same to all: no shuffle shows
    key = damaged, "exact_match"
    after = before | {key: dict(zip(rows, map(float, grade(texts, [ANSWERS[n]["truth"] for n in rows]))))}
    rules = rules_of("tables", "document", "absent", min_items=2, max_drop=.3)
    verdict = judge_candidate(after, before, rules, origin=ORIGIN)
    assert verdict["verdict"] == "fail"
    assert [row["slice"] for row in verdict["slices"] if row["decision"] == "blocks"] == [damaged]
    assert len(verdict["because"]) == 1 and verdict["because"][0].startswith(f"{damaged}, exact_match: worse by ")
    assert judge_candidate(before, before, rules, origin=ORIGIN)["verdict"] == "pass"


def test_few_questions_block_unless_somebody_decided():
    same = read_grades("released")
    verdict = judge_candidate(same, same, rules_of("absent"), origin=ORIGIN)
    assert verdict["because"] == ["absent, exact_match: 32 items, and 400 are asked for"]
    verdict = judge_candidate(same, same, rules_of("absent", without_power="The exam has no more."), origin=ORIGIN)
    assert verdict["verdict"] == "pass" and "The exam has no more." in verdict["slices"][0]["reason"]
    assert verdict["slices"][0]["smallest_seen"] > .05


def test_other_items_are_left_out_and_counted():
    same = read_grades("released")
    key, rules = ("tables", "exact_match"), rules_of("tables", min_items=2, max_drop=.5)
    fewer = same | {key: {n: v for n, v in same[key].items() if n % 3}}
    row = judge_candidate(fewer, same, rules, origin=ORIGIN)["slices"][0]
    assert row["n"] + row["left_out"] == len(same[key]) and row["left_out"] > 50 and row["decision"] == "passes"
    others = same | {key: {f"other{n}": v for n, v in same[key].items()}}
    assert "is among the baseline" in judge_candidate(others, same, rules, origin=ORIGIN)["because"][0]
    broken = same | {key: same[key] | {next(iter(same[key])): float("nan")}}
    assert "is no number" in judge_candidate(broken, same, rules, origin=ORIGIN)["because"][0]


def test_means_are_gated_as_well():
    "Bits per byte: a rise is a loss"
    rng, key = np.random.default_rng(22), ("all", "bpb")
    rules = Rules(slices=[dict(slice="all", metric="bpb", max_drop=.05, min_items=50)])
    before = {key: dict(zip(count(), rng.normal(1.3, .2, size=75).tolist()))}
    worse, better = ({key: {n: v + shift + rng.normal(0, .02) for n, v in before[key].items()}} for shift in (.03, -.03))
    verdicts = [judge_candidate(after, before, rules, origin=ORIGIN) for after in (worse, better, before)]
    assert [verdict["verdict"] for verdict in verdicts] == ["fail", "pass", "pass"]
    assert verdicts[0]["slices"][0]["permutations"] == 9999 and verdicts[0]["because"][0].startswith("all, bpb: worse by 0.0")


def test_the_first_release_is_compared_with_the_best_trivial_answer():
    rng = np.random.default_rng(23)
    shares = dict(zip(TRIVIAL_ARMS, (.25, .45, .35)))
    rows = [dict(checkpoint=arm, metric="exact_match", slice="tables", item=n, value=float(rng.random() < share))
            for arm, share in shares.items() for n in range(1400)]
    predictions = [dict(slice="tables", metric="exact_match", decision="both")]
    baseline, chosen, not_compared = choose_trivial(rows, predictions, RULES)
    assert chosen == {("tables", "exact_match"): "nearest_name"}
    assert not_compared == {(part, "exact_match"): "decide predicts nothing for it" for part in ("document", "absent")}
    for right, expected in ((.8, "pass"), (.35, "fail")):
        after = {(part, "exact_match"): dict(enumerate((rng.random(1400) < right).astype(float))) for part in EXAM}
        verdict = judge_candidate(after, baseline, NO_BOUNDS, origin=ORIGIN, not_compared=not_compared)
        assert verdict["verdict"] == expected, verdict["because"]


def test_the_default_rules_name_what_the_exam_has():
    parts = [dict(part=part, kind="price", names_column=True) for part in ("phrasing", "fact", "document", "absent")]
    check_rule_names(RULES, [(name, "exact_match") for item in parts for name in list_slices(item)])
    assert len(RULES.slices) == 3
    with pytest.raises(Invalid, match="company/rules.yaml: `slices.2.slice` is 'absent', which was not measured"):
        check_rule_names(RULES, [("tables", "exact_match"), ("document", "exact_match")])


def test_a_waiver_leaves_the_decisions_as_they_are():
    same = read_grades("released")
    verdict = judge_candidate(same, same, RULES, origin=ORIGIN)  # too few questions, and nobody measured the bounds
    assert {row["reason"] for row in verdict["bounds"]} >= {"seconds was not measured", "megabytes was not measured"}
    waived = sign_waiver(verdict, "J. Doe", "Before the audit.")
    assert waived["verdict"] == "pass" and waived["waiver"]["waived"] == verdict["because"] and waived["slices"] == verdict["slices"]
    for name, reason in (("", "x"), ("J. Doe", "  ")):
        with pytest.raises(Invalid, match="waiver: `"): sign_waiver(verdict, name, reason)


def test_a_slice_that_could_not_see_its_bound_blocks_unless_somebody_decided():
    "Four hundred questions, a third of which change sides both ways: no loss, and no sight of one of five points"
    kinds = np.random.default_rng(24).permutation(np.repeat([0, 1, 2, 3], [66, 66, 200, 68]))
    before, after = ({("tables", "exact_match"): dict(enumerate(np.isin(kinds, keep).astype(float).tolist()))} for keep in ((0, 2), (1, 2)))
    verdict = judge_candidate(after, before, rules_of("tables"), origin=ORIGIN)
    [row] = verdict["slices"]
    assert row["difference"] == 0 and row["smallest_seen"] > .05 and row["items_needed"] > 400
    assert verdict["verdict"] == "fail" and verdict["because"][0].startswith("tables, exact_match: a loss of 5.0 points would have passed unseen, the smallest that shows is ")
    assert f"{row['items_needed']} items would show one of 5.0 points" in verdict["because"][0]
    decided = judge_candidate(after, before, rules_of("tables", without_power="We have no more questions."), origin=ORIGIN)
    assert decided["verdict"] == "pass" and "Released because: We have no more questions." in decided["slices"][0]["reason"]
    assert judge_candidate(after, before, rules_of("tables", max_drop=.15), origin=ORIGIN)["verdict"] == "pass", "one of fifteen points it could see"
    assert f"{row['items_needed']} items would show a loss of 5.0 points in four of five cases" in describe_release(decided)


def lost(share) -> dict:
    "Verdict on a candidate that has lost a share of its answers to documents"
    scores = {("document", "exact_match"): dict(enumerate([1.] * 500))}
    after = {("document", "exact_match"): {n: float(n >= 500 * share) for n in range(500)}}
    return judge_candidate(after, scores, rules_of("document"), origin=ORIGIN | dict(candidate=dict(name="rl", weights_sha256="ab" * 32)))


def test_nothing_goes_out_without_a_pass(tmp_path):
    path = tmp_path/"verdict.json"
    with pytest.raises(NotFound, match="verdict.json is missing, so nobody has judged the model"): require_pass(path)
    write_json(path, seal_verdict(lost(0)))
    assert require_pass(path)["verdict"] == require_pass(path, "ab" * 32)["verdict"] == "pass"
    with pytest.raises(Invalid, match=r"is about other weights \(abababababab\) than those that are to go out \(cdcdcdcdcdcd\)"): require_pass(path, "cd" * 32)
    write_json(path, seal_verdict(lost(.2)))
    with pytest.raises(Invalid, match="does not let the model out: document, exact_match: worse by 20.0 points"): require_pass(path)
    write_json(path, seal_verdict(sign_waiver(lost(.2), "J. Doe", "Before the audit.")))
    assert require_pass(path, "ab" * 32)["waiver"]["name"] == "J. Doe"


@pytest.mark.parametrize("change", [
    lambda v: v | dict(verdict="pass"), lambda v: v | dict(because=[]), lambda v: v | dict(waiver=dict(name="J. Doe", reason="x", waived=[])),
    lambda v: v | dict(slices=[v["slices"][0] | dict(decision="passes")]), lambda v: v | dict(candidate=dict(weights_sha256="cd" * 32)),
    lambda v: v | dict(note="fine"), lambda v: {k: x for k, x in v.items() if k != "sha256"}, lambda v: [v], lambda v: {}])
def test_a_verdict_that_somebody_edited_is_noticed(tmp_path, change):
    path = tmp_path/"verdict.json"
    write_json(path, seal_verdict(lost(.2)))
    write_json(path, change(read_json(path)))
    with pytest.raises(Invalid, match="is not what the gate wrote, by the hash of its own content; `dvc repro --force gate`"): require_pass(path)


def test_the_order_of_keys_is_no_edit(tmp_path):
    path = tmp_path/"verdict.json"
    write_json(path, dict(reversed(seal_verdict(lost(0)).items())))
    assert require_pass(path)["verdict"] == "pass"
