"A search over parameters, on a project in which the whole chain has run: killed and taken up again, ended early, failed, refused"
import json

import pytest
from copies import FORGE, ask, refuse, sibling


@pytest.fixture(scope="module")
def searched(tiny, tmp_path_factory):
    "A search of three trials, killed in the second one and called again"
    copy = sibling(tiny, tmp_path_factory.mktemp("sweep")/"project")
    line = "sweep sft.learning_rate=0.001,0.002,0.004 --trials 3 --metric sft:loss_last --name rates"
    copy.kill_when(f"{FORGE} {line}", "runs/sweeps/rates/trials.csv")
    copy.line, copy.answer = line, ask(copy, line)
    return copy


def test_a_killed_search_goes_on_and_leaves_the_working_tree_alone(searched):
    trials = searched.answer["trials"]
    assert [t["state"] for t in trials] == ["complete"] * 3 and searched.answer["less_is_better"]
    assert trials[0]["value"] == min(t["value"] for t in trials) and len({t["trial"] for t in trials}) == 3
    assert (searched.root/searched.answer["folder"]/"parallel.png").exists() and not searched("git status --porcelain")
    assert ask(searched, searched.line) == searched.answer, "a finished search runs nothing"
    assert all(t["experiment"] in searched("dvc exp list --name-only") for t in trials)


def test_the_best_trial_can_be_taken_over(searched):
    best = searched.answer["trials"][0]
    said = searched(f"dvc exp run -S sft.learning_rate={best['sft.learning_rate']} sft")
    assert set(searched.executed(said)) <= {"tangle"}, "a trial's work is done twice"
    assert f"learning_rate: {best['sft.learning_rate']}" in (searched.root/"params.yaml").read_text(encoding="utf-8")
    assert json.loads((searched.root/"artifacts/sft/metrics.json").read_text(encoding="utf-8"))["loss_last"] == best["value"]
    searched("git checkout -q . && dvc repro && git diff --exit-code")


def test_a_hopeless_trial_is_ended_and_leaves_nothing(searched):
    code = "from forge_nb.ops.sweep import run_watched; print(run_watched('early', {'pretrain.warmup_steps': 4}, 'sft', 'pretrain', lambda *_: True))"
    assert searched(f'python -c "{code}"').strip().splitlines()[-1] == "False"
    assert "early" not in searched("dvc exp list --name-only") and not searched("git status --porcelain")
    assert "up to date" in searched("dvc repro")


@pytest.mark.parametrize("line, words", [
    ("sft.learnin_rate=1,2", ["did you mean `sft.learning_rate`"]),
    ("'sft.batch_size=uniform(1,2)'", ["`sft.batch_size` is of type int"]),
    ("'sft.learning_rate=log(0,1)'", ["above zero"]),
    ("sft.batch_size=8,16 --metric loss", ["STAGE:KEY"]),
    ("sft.batch_size=8,16 --metric sft:lost", ["there is no `lost`", "loss_last"]),
    ("sft.batch_size=8,16 --trials 0", ["--trials of 1 or more"]),
    ("sft.learning_rate=0.001,0.008 --metric sft:loss_last --name rates", ["other axes", "--name"])])
def test_bad_searches_are_refused_before_they_run(searched, line, words): refuse(searched, f"sweep {line}", 2, *words)


def test_three_failures_at_the_beginning_are_a_mistake(searched):
    refuse(searched, "sweep tokenizer.vocab_size=1,2 --trials 4 --metric tokenizer:vocab_size --name small", 2, "first three trials failed", "tokenizer.vocab_size")
