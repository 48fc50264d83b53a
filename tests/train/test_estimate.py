"Costs: what is counted follows the parameters, what is measured is kept, prices are checked, a budget ends a run"
import os, subprocess, sys, time
from datetime import date

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from copies import ENV
from forge_nb.core.project import Invalid, ROOT, all_params, load_params, read_json, read_stages, write_json, write_jsonl
from forge_nb.core.runner import merge_profile
from forge_nb.train import calibration
from forge_nb.train.calibration import load_rates
from forge_nb.train.estimate import find_downstream, forecast_stages
from forge_nb.train.ledger import compare_predictions, record_predictions
from forge_nb.train.prices import compare_own_and_rent, load_prices
from forge_nb.train.workload import STAGE_COUNTS, TEXT_PASSES, count_work, measure_sizes

SIZES = dict(megabytes=10., train_tokens=1e6, valid_tokens=5e4, test_tokens=5e4, rows=(1000, 50.), chosen=(500, 60.), rejected=(500, 58.),
             answers=(500, 14.), policy_pairs=(500, 60.), prompts=(300, 40.), items=(100, 140.), closed_items=(100, 20.),
             teacher=dict(hidden_size=256, num_hidden_layers=4, vocab_size=4096), checkpoints=load_params(ROOT/"config/checkpoints.yaml")["checkpoints"])
RATES = dict(megabytes=20., trained=5000., scored=10_000., generated=1000., start=.5)
SHEET = ROOT/"config/prices.yaml"


@pytest.mark.parametrize("profile", ["", *sorted(p.stem for p in (ROOT/"config/profiles").glob("*.yaml"))])
def test_every_stage_of_every_profile_is_counted(profile):
    params = all_params(ROOT)
    if profile: merge_profile(params, profile)
    for stage in (*TEXT_PASSES, *STAGE_COUNTS):
        assert stage in read_stages(ROOT), f"dvc.yaml has no stage {stage}"
        work = count_work(stage, params, SIZES)
        assert work.start > 0 and (work.megabytes or work.trained or work.scored or not params[stage].get("enabled", True)), stage


@pytest.mark.parametrize("stage, field, unit", [
    ("sft", "num_train_epochs", "trained"), ("dpo", "num_train_epochs", "trained"), ("rl", "max_steps", "trained"), ("rl", "num_generations", "generated"),
    ("rlhf", "num_prompts", "trained"), ("distill", "num_train_epochs", "trained"), ("reward", "num_train_epochs", "trained")])
def test_twice_as_much_is_twice_the_work(stage, field, unit):
    params = load_params(ROOT/"params.yaml")
    params[stage]["enabled"] = True
    once = getattr(count_work(stage, params, SIZES), unit)
    assert once > 0
    params[stage][field] *= 2
    assert getattr(count_work(stage, params, SIZES), unit) == pytest.approx(2 * once)


def test_a_stage_that_is_off_costs_its_start():
    params = load_params(ROOT/"params.yaml")
    params["rl"]["enabled"] = False
    work = count_work("rl", params, SIZES)
    assert work.trained == work.scored == work.generated == 0 and work.start


def test_passages_of_an_item_are_counted(tmp_path):
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path/"tokenizer/tokenizer").mkdir(parents=True)
    words.save(str(tmp_path/"tokenizer/tokenizer/tokenizer.json"))
    write_json(tmp_path/"tokenizer/metrics.json", dict(tokens=dict(train=1000)))
    write_json(tmp_path/"curate/metrics.json", {split: dict(bytes=4000) for split in ("train", "valid", "test")})
    items = [dict(question="what is it", prompt="nine words of a table row and then what is it", in_sample=kept) for kept in (True, False)]
    write_jsonl(tmp_path/"synth/eval_set/items.jsonl", items)
    sizes = measure_sizes(tmp_path)
    assert sizes["items"][0] == 1 and sizes["items"][1] - sizes["closed_items"][1] == 8 and sizes["rows"] == (0, 0.) and sizes["test_tokens"] == 1000
    (tmp_path/"tokenizer/tokenizer/tokenizer.json").unlink()
    with pytest.raises(Invalid, match="dvc repro tokenizer"): measure_sizes(tmp_path)


def test_rates_are_kept_by_machine_and_model_for_a_day(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(calibration, "measure_rates", lambda *_: dict(trained=float(measured.append(1) or len(measured))))
    ask = lambda config=dict(hidden_size=64): load_rates(None, config, tmp_path)
    assert ask() == ask() == dict(trained=1.) and ask(dict(hidden_size=128)) == dict(trained=2.)
    for path in tmp_path.iterdir(): os.utime(path, (time.time() - 90_000,) * 2)
    assert ask() == dict(trained=3.) == ask()


def test_predictions_learn_from_what_stages_took(tmp_path):
    params, stages = load_params(ROOT/"params.yaml"), ["curate", "sft", "card"]
    first = forecast_stages(stages, params, SIZES, RATES, tmp_path, None)
    assert first[1]["seconds"] == first[1]["counted_seconds"] and first[2]["seconds"] is None
    record_predictions(tmp_path, [row | dict(parameters=params[row["stage"]], gib=None) for row in first[:2]])
    ran = [dict(stage=stage, time=time.time() + 1, resumed=False, parameters=params[stage] | dict(seed=0), total_seconds=seconds, peak_gib=1.)
           for stage, seconds in (("sft", 3 * first[1]["counted_seconds"]), ("card", 7.))]
    write_jsonl(tmp_path/"stages.jsonl", ran)
    second = forecast_stages(stages, params, SIZES, RATES, tmp_path, None)
    assert second[0] == first[0] and second[2]["seconds"] == 7
    assert second[1]["seconds"] == pytest.approx(3 * first[1]["counted_seconds"]) and second[1]["counted_seconds"] == first[1]["counted_seconds"]
    params["sft"]["num_train_epochs"] = 9.
    write_jsonl(tmp_path/"stages.jsonl", [ran[0] | dict(parameters=params["sft"])])
    assert not compare_predictions(tmp_path)  # it was predicted for other parameters


def test_refinement_runs_again_what_learns_from_rows():
    again = find_downstream(read_stages(ROOT), "synth")
    assert {"synth", "sft", "dpo", "reward", "rlhf", "rl", "distill", "evaluate", "card"} <= set(again)
    assert not {"ingest", "curate", "retrieval", "tokenizer", "ngram", "pretrain"} & set(again)


def test_the_price_sheet_has_days_and_pages_and_fits_the_hardware():
    prices, hardware = load_prices(SHEET), load_params(ROOT/"config/hardware.yaml")
    assert set(prices.gpus) <= set(hardware["gpus"]) and len(prices.gpus) >= 3 and len(prices.apis) >= 3
    for price in (*prices.gpus.values(), *prices.apis.values(), prices.power, prices.tuning):
        assert price.source and date(2025, 1, 1) < price.date <= date.today()
    assert not prices.budget.minutes and not prices.budget.money


@pytest.mark.parametrize("old, new, words", [
    ("hour: 0.10", "hour: -1", "`this_machine.hour`"),
    ("budget: {minutes: 0,", "budget: {minute: 5,", "did you mean `minutes`?"),
    ("budget: {minutes: 0,", "budget: {minutes: ten,", "`budget.minutes` is 'ten'"),
    ("api: open", "api: opne", "`tuning.api` is opne"),
    ("date: 2026-04-26", "date: spring", "`power.date` is 'spring'")])
def test_a_fault_in_the_price_sheet_is_one_sentence(tmp_path, old, new, words):
    text = SHEET.read_text(encoding="utf-8")
    assert old in text
    (tmp_path/"prices.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(Invalid) as error: load_prices(tmp_path/"prices.yaml")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_own_or_rent_breaks_even_where_both_cost_the_same():
    prices = load_prices(SHEET)
    throughput = dict(prompt_tokens=300., answer_tokens=20., questions_per_hour=50_000.)
    evens = [row for row in compare_own_and_rent(1., prices, throughput) if row["break_even"]]
    assert evens
    for row in evens:
        at = {(r["api"], r["machine"]): r for r in compare_own_and_rent(row["break_even"], prices, throughput)}[row["api"], row["machine"]]
        assert at["own_cost"] == pytest.approx(at["rented_cost"])
    slow = compare_own_and_rent(1., prices, throughput | dict(questions_per_hour=1.))
    assert all(row["break_even"] is None for row in slow if row["machine"] == "this machine")


def test_a_run_began_when_dvc_did(tmp_path):
    "A real tree of processes: a program called dvc, a shell, and the one that asks"
    ask = ("import psutil; from forge_nb.train.budget import find_run_start; parents = psutil.Process().parents(); "
           "dvc = [p for p in parents if 'repro' in p.cmdline()][0]; print(find_run_start(parents) == dvc.create_time())")
    (tmp_path/"dvc").write_text(f"import subprocess\nsubprocess.run(['sh', '-c', '{sys.executable} ' + {str(tmp_path/'ask.py')!r} + '; true'])", encoding="utf-8")
    (tmp_path/"ask.py").write_text(ask, encoding="utf-8")
    said = subprocess.run([sys.executable, tmp_path/"dvc", "repro"], cwd=ROOT, env=ENV | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "True", said.stderr


def test_a_run_that_has_spent_its_budget_starts_no_stage(mend):
    path = mend.root/"config/prices.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("budget: {minutes: 0, money: 0}", "budget: {minutes: 0, money: 0.0000001}"), encoding="utf-8")
    (mend.root/"runs"/"history"/"stages.jsonl").unlink(missing_ok=True)  # it may have run in this copy
    said = mend("dvc repro --force ingest", rc=None)
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "stage ingest was next" in error and "`budget.money` is 1e-07 at 0.1 an hour" in error and "Traceback" not in said
    assert not (mend.root/"artifacts/ingest/documents").exists()
    mend("git checkout -q config/prices.yaml && dvc repro -q ingest")
    assert read_json(mend.root/"artifacts/ingest/metrics.json")["documents"]
