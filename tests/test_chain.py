"The whole chain, real but tiny: what reruns, what is restored, what a kill leaves, and whether the bytes are the same"
import json, re
from pathlib import Path

import numpy as np
import pytest
from copies import Copy, make_tiny
from forge_nb.train.model import save_model
from forge_nb.tokenizer import train_tokenizer
from forge_nb.train.architecture import ModelShape, build_model

TUNED = "sft dpo reward rlhf rl distill".split()
STAGES = ["ingest", "assess", "curate", "retrieval", "synth", "decide", "tokenizer", "ngram", "pretrain", *TUNED, "evaluate", "judge", "gate", "export", "card"]


def swap(path: Path, old: str, new: str):
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def set_parameter(copy: Copy, stage: str, field: str, value) -> str:
    "Change a parameter in params.yaml; what it was"
    path = copy.root/"params.yaml"
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"(?m)^{stage}:\n(?:  .*\n)*?  {field}: (\S+)", text)
    path.write_text(f"{text[:found.start(1)]}{value}{text[found.end(1):]}", encoding="utf-8")
    return found[1]


def test_chain_leaves_everything(tiny):
    for name in STAGES:
        assert (tiny.root/"artifacts"/name/"metrics.json").exists() and (tiny.root/"reports"/f"{name}.ipynb").exists()
        log = [json.loads(line) for line in (tiny.root/"runs"/f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert log[0]["versions"]["torch"].startswith("2.13") and any("total_seconds" in row for row in log)
    assert not list((tiny.root/".ckpt").glob("*/*")), "checkpoints outlive their run"
    assert "Data and pipelines are up to date." in tiny("dvc repro")


def test_models_load_with_plain_transformers_and_hold_no_pickle(tiny):
    names = ("pretrain", "sft", "dpo", "rlhf", "rl", "distill")
    code = "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\nfor path in sys.argv[1:]:\n m, t = M.from_pretrained(path), T.from_pretrained(path); " \
           "assert m.get_input_embeddings().num_embeddings == len(t); print(t.apply_chat_template([dict(role='user', content='x')], tokenize=False, add_generation_prompt=True))"
    said = tiny(f'python -c "import sys; {code}" ' + " ".join(f"artifacts/{name}/model" for name in names))
    assert said.count("<|user|>x<|assistant|>") == len(names)
    files = [p.name for p in (tiny.root/"artifacts").rglob("*") if p.is_file()]
    assert "model.safetensors" in files and not [f for f in files if f not in ("grading.py", "plain_task.py", "poison_task.py") and Path(f).suffix not in (".safetensors", ".npy", ".json", ".jsonl", ".jinja", ".csv", ".yaml", ".md", ".parquet", "")]
    for path in (tiny.root/"artifacts").rglob("*.npy"): np.load(path, allow_pickle=False)


def test_reports_hold_no_times_and_no_errors(tiny):
    for name in STAGES:
        nb = json.loads((tiny.root/"reports"/f"{name}.ipynb").read_text(encoding="utf-8"))
        assert "papermill" not in nb["metadata"]
        assert not [c for c in nb["cells"] if set(c["metadata"]) - {"tags"}]
        outputs = [o for c in nb["cells"] for o in c.get("outputs", [])]
        assert outputs and not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


def test_card_cites_every_number(tiny):
    card = (tiny.root/"artifacts/card/README.md").read_text(encoding="utf-8")
    marks = set(re.findall(r"\[\^(\d+)\](?!:)", card))
    assert marks and marks == set(re.findall(r"^\[\^(\d+)\]:", card, re.M))
    numbers = {name: json.loads((tiny.root/f"artifacts/{name}/metrics.json").read_text(encoding="utf-8")) for name in ("pretrain", "synth", "curate")}
    for value in (numbers["pretrain"]["parameters"], numbers["pretrain"]["tokens"], numbers["synth"]["rows"], numbers["curate"]["test"]["bytes"]): assert f"{value:,}[^" in card
    assert "artifacts/evaluate/effects.csv" in card and re.search(r"^\[\^\d+\]: artifacts/evaluate/intervals.csv", card, re.M)


def test_evaluation_is_held_out(tiny):
    read = lambda p: [json.loads(line) for line in (tiny.root/p).read_text(encoding="utf-8").splitlines()]
    rows, exam = read("artifacts/synth/rows/sft.jsonl"), read("artifacts/synth/eval_set/items.jsonl")
    trained = {r["fact"] for r in rows}
    for name in ("sft", "pairs", "prompts"): assert not {r["question"] for r in read(f"artifacts/synth/rows/{name}.jsonl")} & {i["question"] for i in exam}
    assert {i["part"] for i in exam} == {"phrasing", "fact", "document", "absent", "own_exam"}
    assert not {p for r in rows if r["generator"] == "company/extracts.yaml" for p in r["parents"]} & {p for i in exam if i["part"] == "document" for p in i["parents"]}
    assert not trained & {i["fact"] for i in exam if i["part"] == "fact"}
    assert {i["fact"] for i in exam if i["part"] == "phrasing"} <= trained
    splits = {s: {d["id"] for d in read(f"artifacts/curate/documents/{s}.jsonl")} for s in ("train", "valid", "test")}
    assert not splits["train"] & splits["test"] and not splits["train"] & splits["valid"] and not splits["valid"] & splits["test"]


def test_prose_reruns_tangle_alone(tiny):
    before = (tiny.root/"dvc.lock").read_text(encoding="utf-8")
    swap(tiny.root/"nbs/50_sft.ipynb", "What it costs, bits per byte", "What that costs, bits per byte")
    said = tiny("dvc repro")
    assert tiny.executed(said) == ["tangle"]
    swap(tiny.root/"nbs/50_sft.ipynb", "Either is reported with", "Either one is reported with")
    assert tiny.executed(tiny("dvc repro")) == ["tangle"]
    tiny("git checkout -q nbs && dvc repro")
    assert (tiny.root/"dvc.lock").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("stage, field, file", [
    ("evaluate", "max_new_tokens", "artifacts/evaluate/answers.jsonl"),
    pytest.param("rl", "learning_rate", "artifacts/rl/model/model.safetensors", marks=pytest.mark.slow)])
def test_parameter_reruns_its_stage_and_what_follows_and_reverting_restores(tiny, stage, field, file):
    "Proves: a changed parameter reruns its stage and what follows, and changed back it restores every byte"
    before, made = (tiny.root/"dvc.lock").read_text(encoding="utf-8"), (tiny.root/file).read_bytes()
    value = set_parameter(tiny, stage, field, 0)
    set_parameter(tiny, stage, field, 2 * type(json.loads(value))(value))
    order = ["rl", "distill", "evaluate", "judge", "gate", "export", "card"]
    assert tiny.executed(tiny("dvc repro")) == ["tangle", *order[order.index(stage):]]
    assert (tiny.root/file).read_bytes() != made
    tiny("git checkout -q params.yaml")
    said = tiny("dvc repro")
    assert not set(tiny.executed(said)) - {"tangle"} and f"Stage '{stage}' is cached" in said
    assert (tiny.root/"dvc.lock").read_text(encoding="utf-8") == before and (tiny.root/file).read_bytes() == made
    assert not tiny("git status --porcelain")


@pytest.mark.slow
def test_second_run_killed_twice_gives_the_same_bytes(tiny, tmp_path_factory):
    "Proves: a chain whose training stages are each killed and called again ends with the bytes of one that was not"
    copy = Copy(tmp_path_factory.mktemp("again"))
    make_tiny(copy)
    copy("dvc repro tokenizer ngram")
    copy.kill_when("dvc repro pretrain", ".ckpt/pretrain/*/last/state.json")
    copy("dvc repro pretrain")
    assert "resumed at step" in (copy.root/"runs/pretrain.jsonl").read_text(encoding="utf-8")
    for name in TUNED:
        copy.kill_when(f"dvc repro {name}", f".ckpt/{name}/**/checkpoint-*/trainer_state.json")
        copy(f"dvc repro {name}")
        assert "resumed from checkpoint-" in (copy.root/f"runs/{name}.jsonl").read_text(encoding="utf-8"), name
    copy("dvc repro")
    assert (copy.root/"dvc.lock").read_text(encoding="utf-8") == (tiny.root/"dvc.lock").read_text(encoding="utf-8"), copy(f"diff dvc.lock {tiny.root}/dvc.lock", rc=None)
    for path in (tiny.root/"artifacts").glob("*/*.*"): assert path.read_bytes() == (copy.root/path.relative_to(tiny.root)).read_bytes(), path


@pytest.mark.slow
def test_experiments_compare(tiny):
    "Proves: an experiment of the whole chain beside the tree is shown, compared and removed, and the tree stays as it is"
    said = tiny("dvc exp run --temp -n shorter -S sft.num_train_epochs=0.5 sft")
    assert tiny.executed(said) == ["tangle", "sft"] and not tiny("git status --porcelain")
    shown = json.loads(tiny("dvc exp show --json"))
    assert "shorter" in json.dumps(shown)
    diff = json.loads(tiny("dvc exp diff HEAD shorter --json"))
    assert diff["params"]["params.yaml"]["sft.num_train_epochs"]["new"] == .5 and diff["metrics"]["artifacts/sft/metrics.json"]
    tiny("dvc plots show -o .cache/plots && rm -r .cache/plots")
    tiny("dvc exp remove shorter")


@pytest.mark.parametrize("cause, line, words", [
    ("a loss that is no number", "embedding_lr: 1.0e+38", ["pretrain.matrix_lr", "step", "being read: "]),
    ("a depth of nothing", "depth: 0", ["pretrain.depth", "1 or more"]),
    ("an optimiser nobody knows", "optimizer: sgd", ["pretrain.optimizer", "muon or adamw"])])
def test_a_failing_stage_names_its_cause(tiny, cause, line, words):
    set_parameter(tiny, "pretrain", *line.split(": "))
    said = tiny("python -m forge_nb.core.runner pretrain", rc=2)
    error = [row for row in said.splitlines() if row.startswith("error: ")]
    assert len(error) == 1 and all(w in error[0] for w in words), said
    assert "Traceback" not in said
    tiny("git checkout -q params.yaml && git diff --exit-code")


@pytest.mark.slow
def test_a_budget_that_is_too_small_ends_the_run_before_the_stage(tiny):
    "Proves: a stage that would take longer than the budget is not started, and what is finished stays"
    before = {p: p.read_bytes() for p in (tiny.root/"artifacts/pretrain").rglob("*") if p.is_file()}
    swap(tiny.root/"config/prices.yaml", "budget: {minutes: 0, money: 0}", "budget: {minutes: 0.001, money: 0}")
    error = tiny("python -m forge_nb.core.runner pretrain", rc=2).strip().splitlines()[-1]
    assert error.startswith("error: config/prices.yaml: stage pretrain would take about ") and "`budget.minutes` is 0.001" in error
    assert {p: p.read_bytes() for p in before} == before
    swap(tiny.root/"config/prices.yaml", "minutes: 0.001", "minutes: 1000")
    tiny("python -m forge_nb.core.runner card && git checkout -q config/prices.yaml && git diff --exit-code")


def test_a_failing_stage_ends_the_pipeline_and_the_way_back_restores_its_results(tiny):
    set_parameter(tiny, "pretrain", "depth", 0)
    assert "`pretrain.depth` is 0" in tiny("dvc repro pretrain", rc=None)
    tiny("git checkout -q params.yaml && dvc repro && git diff --exit-code")


@pytest.mark.parametrize("stage, file, old, new, words", [
    ("rl", "company/kpi.py", "def near(", "def near(question, answer, row): return 1 / 0\n\n\ndef _near(", ["kpi.py", "near() raises ZeroDivisionError", "a number for every text"]),
    pytest.param("rl", "company/kpi.py", "def near(", "def near(question, answer, row): return float('nan')\n\n\ndef _near(", ["kpi.py", "near() gives nan", "from 0 to 1"], marks=pytest.mark.slow),
    pytest.param("rl", "company/kpi.py", "def near(", "def near(question, answer, row): import time; time.sleep(300)\n\n\ndef _near(", ["kpi.py", "near() took more than 2 s"], marks=pytest.mark.slow),
    ("rl", "params.yaml", "  reward_function: near", "  reward_function: nearly", ["kpi.py has no function `nearly`"]),
    ("rlhf", "company/policies.yaml", "  verifier: 'holds", "  # verifier: 'holds", ["company/policies.yaml", "field `source.verifier` is missing; add it"]),
    pytest.param("dpo", "company/style.yaml", "house: house", "house: plain", ["company/style.yaml", "an answer of the house voice"], marks=pytest.mark.slow),
    ("dpo", "artifacts/synth/rows/pairs.jsonl", "]}\n", "], " + ", ".join(f'"{side}": [{{"role": "assistant", "content": "`5`."}}]' for side in ("chosen", "rejected")) + "}\n", ["pairs.jsonl", "chosen and rejected are equal"]),
    ("distill", "params.yaml", "  student: ''", "  student: other", ["other", "entries of its vocabulary", "train the student with the teacher's tokenizer"])])
def test_bad_input_of_a_tuning_stage_is_a_sentence_and_leaves_its_results(tiny, stage, file, old, new, words):
    save_model(build_model(letters := train_tokenizer(["abc"] * 9, 285), ModelShape(num_hidden_layers=1, hidden_size=64, intermediate_size=64, context_length=64)), letters, tiny.root/"other")
    before = {p: p.read_bytes() for p in (tiny.root/"artifacts"/stage).rglob("*") if p.is_file()}
    kept = (tiny.root/file).read_bytes()
    swap(tiny.root/file, old, new)
    said = tiny(f"python -m forge_nb.core.runner {stage}", rc=2)
    error = [row for row in said.splitlines() if row.startswith("error: ")]
    assert len(error) == 1 and all(w in error[0] for w in words) and "Traceback" not in said, said
    assert {p: p.read_bytes() for p in (tiny.root/"artifacts"/stage).rglob("*") if p.is_file()} == before
    (tiny.root/file).unlink(); (tiny.root/file).write_bytes(kept)
    tiny("rm -r other && git diff --exit-code")
