"A search over parameters, on a project in which the whole chain has run: taken over, killed and taken up again, ended early, failed, refused"
import json

import pytest
from copies import FORGE, ask, refuse, sibling


@pytest.fixture(scope="module")
def searched(tiny, tmp_path_factory):
    "A search of two trials"
    copy = sibling(tiny, tmp_path_factory.mktemp("sweep")/"project")
    copy.line = "sweep ngram.order=2,3 --trials 2 --metric ngram:bpb --name rates"
    copy.answer = ask(copy, copy.line)
    return copy


def check_search(copy, num_trials: int):
    "The trials are complete and in order, the working tree is as it was, and a finished search runs nothing"
    trials = copy.answer["trials"]
    assert [t["state"] for t in trials] == ["complete"] * num_trials and copy.answer["less_is_better"]
    assert trials[0]["value"] == min(t["value"] for t in trials) and len({t["trial"] for t in trials}) == num_trials
    assert (copy.root/copy.answer["folder"]/"parallel.png").exists() and not copy("git status --porcelain")
    assert ask(copy, copy.line) == copy.answer
    assert all(t["experiment"] in copy("dvc exp list --name-only") for t in trials)


def test_a_search_ends_and_leaves_the_working_tree_alone(searched): check_search(searched, 2)


@pytest.mark.slow
def test_a_killed_search_goes_on(tiny, tmp_path):
    "Proves: a search that is killed in its second trial keeps the first, finishes when it is called again, and leaves the working tree alone"
    copy = sibling(tiny, tmp_path/"project")
    copy.line = "sweep sft.learning_rate=0.001,0.002,0.004 --trials 3 --metric sft:loss_last --name rates"
    copy.kill_when(f"{FORGE} {copy.line}", "runs/sweeps/rates/trials.csv")
    copy.answer = ask(copy, copy.line)
    check_search(copy, 3)


def test_the_best_trial_can_be_taken_over(searched):
    best = searched.answer["trials"][0]
    said = searched(f"dvc exp run -S ngram.order={best['ngram.order']} ngram")
    assert set(searched.executed(said)) <= {"tangle"}, "a trial's work is done twice"
    assert f"order: {best['ngram.order']}" in (searched.root/"params.yaml").read_text(encoding="utf-8")
    assert json.loads((searched.root/"artifacts/ngram/metrics.json").read_text(encoding="utf-8"))["bpb"] == best["value"]
    searched("git checkout -q . && dvc repro && git diff --exit-code")


@pytest.mark.slow
def test_a_hopeless_trial_is_ended_and_leaves_nothing(searched):
    "Proves: a trial that is ended early leaves no experiment and no change in the working tree"
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


@pytest.mark.slow
def test_three_failures_at_the_beginning_are_a_mistake(searched):
    "Proves: a search whose first three trials fail ends with the sentence of the stage that failed"
    refuse(searched, "sweep tokenizer.vocab_size=1,2 --trials 4 --metric tokenizer:vocab_size --name small", 2, "first three trials failed", "tokenizer.vocab_size")
