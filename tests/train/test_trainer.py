"Every stage that trl trains, on a model of bytes: its parameters reach the trainer, and with nothing to do it passes the model before it on"
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

import forge_nb.distill
import forge_nb.dpo  # noqa: F401
import forge_nb.reward  # noqa: F401
import forge_nb.rl
import forge_nb.rlhf  # noqa: F401
import forge_nb.sft  # noqa: F401
from forge_nb.core.project import Invalid, ROOT, load_params, pin, read_json, write_json, write_jsonl
from forge_nb.distill import OnPolicyConfig, make_on_policy_trainer
from forge_nb.tokenizer import train_tokenizer
from forge_nb.train.trainer import TrainingConfig, load_verified, read_skipped, save_with_manifest, write_skipped_model

SHAPE = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=128)
SHARED = dict(seed=7, learning_rate=.0123, lr_scheduler_type="linear", warmup_ratio=.5, weight_decay=.07, max_grad_norm=.3)
SAMPLED = dict(num_prompts=2, num_generations=4, max_steps=6, beta=.03, temperature=.8, max_new_tokens=5)
TUNED = dict(batch_size=4, num_train_epochs=2., max_length=64)
OWN = dict(
    sft=dict(TUNED, method="full", matrix_lr=0., lora_r=4, lora_alpha=6, lora_dropout=.1, lora_target_modules=["q_proj"], packing=False, replay_percent=0., replay_window=8, max_bpb_increase=9.),
    dpo=dict(TUNED, method="dpo", num_pairs=0, num_policy_pairs=0, beta=.3, sft_loss_weight=1.5, max_new_tokens=9, temperature=.7, max_chosen_logp_drop=9., max_bpb_increase=9.),
    reward=dict(TUNED, num_pairs=0, held_out_percent=30., corrupted_percent=0., center_rewards_coefficient=.02),
    rlhf=dict(SAMPLED, normalize_advantages=False, stop_window=4, max_kl=9., min_entropy=0., max_length_increase=9., max_bpb_increase=9., num_eval_items=2),
    rl=dict(SAMPLED, reward_function="kpi", scale_rewards="group", loss_type="grpo", stop_window=5, max_kl=9., min_entropy=0., max_reward_drop=9., max_bpb_increase=9.),
    distill=dict(student="", width=16, depth=1, questions_per_fact=2, num_passages=1, top_k=4, batch_size=4, num_train_epochs=2., on_policy_steps=1, on_policy_lr=.01, beta=.5, temperature=.6,
                 max_new_tokens=4, num_eval_items=2))
KPI = "def kpi(question, answer, row): return float(answer == row['reference'])\n"
POLICY = dict(rule="An answer names its source.", verifier="holds Source: ", passing_examples=["`5`. Source: a/b."], failing_examples=["`5`."],
              adversarial_prompts=["{question} Just the value."], adversarial_prompts_held_out=["Only the value. {question}"], noncompliant_answers=["{value}."])
turn = lambda role, text: dict(role=role, content=text)


class Reached(Exception):
    "A trainer was about to train"


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    "A model, rows of every kind, and the company's files"
    pin(0, 1)
    here = tmp_path_factory.mktemp("company")
    tokenizer = train_tokenizer(["the bolt costs `3 EUR`. Source: parts/list."] * 9, 300)
    config = Qwen3Config(**SHAPE, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, num_labels=1)
    torch.manual_seed(0)
    save_with_manifest(Qwen3ForCausalLM(config), tokenizer, here/"base")
    save_with_manifest(Qwen3ForSequenceClassification(config), tokenizer, here/"reward")
    house = lambda n: f"`{n} EUR`. Source: {n:04x}."
    write_jsonl(here/"sft.jsonl", [dict(id=f"s{n}", fact=f"f{n}", voice="house", messages=[turn("user", f"bolt M{n}?"), turn("assistant", house(n))]) for n in range(16)])
    def asked(question, n):
        shown, tempted = f"name `M{n}`; price `{n} EUR`. Source: {n:04x}.\n", f"{question} Just the value."
        return dict(question=question, adversarial_question=tempted, prompt=shown + question, adversarial_prompt=shown + tempted)
    pairs = [dict(id=f"p{n}", fact=f"f{n}", kind="price", reason="style", prompt=[turn("user", f"bolt M{n}?")], chosen=[turn("assistant", house(n))],
                  rejected=[turn("assistant", f"It costs `{n} EUR`.")]) for n in range(16)]
    for name in ("pairs", "policy_pairs"): write_jsonl(here/f"{name}.jsonl", pairs)
    write_jsonl(here/"prompts.jsonl", [dict(fact=f"f{n}", **asked(f"bolt M{n}?", n), answer=f"{n} EUR", sources=[f"{n:04x}"], wrong="0 EUR",
                                            reference=house(n)) for n in range(8)])
    write_jsonl(here/"dev.jsonl", [dict(id=f"i{n}", **asked(f"nut M{n}?", n), policy="source", answer=f"{n} EUR", sources=[f"{n:04x}"]) for n in range(2)])
    for split in ("train", "valid"): write_jsonl(here/f"{split}.jsonl", [dict(text="the bolt costs three\n" * 9)] * 3)
    (here/"kpi.py").write_text(KPI, encoding="utf-8")
    write_json(here/"policies.yaml", dict(source=POLICY))
    return here


def run(stage, here, out, **given):
    "A stage's entry function on the files of a company"
    files = dict(
        sft=dict(rows=here/"sft.jsonl", documents=here), dpo=dict(rows=here/"pairs.jsonl", documents=here/"valid.jsonl", style_file=ROOT/"company/style.yaml"), reward=dict(rows=here),
        rlhf=dict(reward_folder=here/"reward", prompts_file=here/"prompts.jsonl", dev_set=here/"dev.jsonl", policies_file=here/"policies.yaml", documents=here/"valid.jsonl"),
        rl=dict(prompts_file=here/"prompts.jsonl", kpi_file=here/"kpi.py", style_file=ROOT/"company/style.yaml", documents=here/"valid.jsonl"),
        distill=dict(rows=here, dev_set=here/"dev.jsonl", documents=here, kpi_file=here/"kpi.py", style_file=ROOT/"company/style.yaml"))[stage]
    pin(0, 1)
    return getattr(getattr(forge_nb, stage), stage)(here/"base", **files, **dict(SHARED, enabled=True) | OWN[stage] | given, out=out)


def reach(stage, here, out, monkeypatch, **given):
    "The trainer that a stage would run"
    def stop(trainer, *args): raise Reached(trainer)
    monkeypatch.setenv("FORGE_CKPT", str(out/"kept"))
    monkeypatch.setattr(getattr(forge_nb, stage), "run_trainer", stop)
    monkeypatch.setattr(forge_nb.rl, "run_preflight", lambda *args: {})  # a model that knows nothing earns nothing
    with pytest.raises(Reached) as e: run(stage, here, out, **given)
    return e.value.args[0]


@pytest.mark.parametrize("stage", OWN)
def test_the_shared_settings_reach_the_trainer(company, tmp_path, monkeypatch, stage):
    args = (trainer := reach(stage, company, tmp_path, monkeypatch)).args
    assert (args.learning_rate, args.lr_scheduler_type, args.weight_decay, args.max_grad_norm) == (.0123, "linear", .07, .3)
    assert args.seed == args.data_seed == 7
    steps = OWN[stage]["max_steps"] if "max_steps" in OWN[stage] else -(-len(trainer.train_dataset) // args.per_device_train_batch_size) * args.num_train_epochs
    assert args.warmup_steps == round(.5 * steps) > 1
    assert args.per_device_train_batch_size == OWN[stage].get("batch_size", 8)


@pytest.mark.parametrize("stage, given, expected", [
    ("dpo", {}, dict(beta=.3, max_length=64, loss_weights=[1., 1.5])),
    ("dpo", dict(method="kto"), dict(beta=.3, max_length=64, per_device_train_batch_size=8)),
    ("dpo", dict(method="online"), dict(beta=.3, max_new_tokens=9, temperature=.7)),
    ("reward", {}, dict(center_rewards_coefficient=.02, max_length=64)),
    ("rlhf", {}, dict(beta=.03, temperature=.8, max_completion_length=5, num_generations=4, max_steps=6, normalize_advantages=False)),
    ("rl", {}, dict(beta=.03, temperature=.8, max_completion_length=5, num_generations=4, scale_rewards="group", loss_type="grpo"))], ids=str)
def test_the_settings_of_a_stage_reach_the_trainer(company, tmp_path, monkeypatch, stage, given, expected):
    args = reach(stage, company, tmp_path, monkeypatch, **given).args
    assert {k: getattr(args, k) for k in expected} == expected


def test_the_settings_of_an_adapter_reach_peft(company, tmp_path, monkeypatch):
    adapter = reach("sft", company, tmp_path, monkeypatch, method="lora").model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout, adapter.target_modules) == (4, 6, .1, {"q_proj"})


def test_the_settings_of_the_on_policy_phase_reach_the_trainer(company, tmp_path):
    model, tokenizer = load_verified(company/"base")
    args = make_on_policy_trainer(model, model, tokenizer, [dict(question="bolt?")], tmp_path, TrainingConfig(7, .01, 2, 3.), OnPolicyConfig(5, .02, .5, .6, 4)).args
    assert (args.learning_rate, args.beta, args.temperature, args.max_completion_length, args.num_train_epochs) == (.02, .5, .6, 4, 1)


@pytest.mark.parametrize("stage", OWN)
def test_a_wrong_setting_is_a_sentence(company, tmp_path, stage):
    with pytest.raises(Invalid, match=f"`{stage}.lr_scheduler_type` is 'cosin'; it must be one of"): run(stage, company, tmp_path, lr_scheduler_type="cosin")


@pytest.mark.parametrize("stage, cause", [*((stage, cause) for stage in OWN for cause in ("no rows", "switched off")), ("rlhf", "no reward model")])
def test_a_stage_with_nothing_to_do_writes_every_out_and_passes_the_model_on(company, tmp_path, stage, cause):
    here, out = tmp_path/"company", tmp_path/"artifacts"/stage
    shutil.copytree(company, here)
    if cause == "no reward model": write_skipped_model(here/"reward", "no better than chance")
    if cause == "no rows":
        for name in ("sft", "pairs", "policy_pairs", "prompts"): write_jsonl(here/f"{name}.jsonl", [])
    if stage == "sft": (here/"base"/"manifest.json").unlink()                     # the model of pretrain has none yet
    metrics = run(stage, here, out, enabled=cause != "switched off")
    assert read_json(out/"metrics.json") == metrics and dict([("no rows", "nothing to train on"), ("switched off", f"`{stage}.enabled` is false"),
                                                              ("no reward model", "no reward model: no better than chance")])[cause] in metrics["skipped"]
    entry = load_params(ROOT/"dvc.yaml")["stages"][stage]
    paths = [p if isinstance(p, str) else next(iter(p)) for kind in ("outs", "metrics", "plots") for p in entry.get(kind, [])]
    made = [Path(p) for p in paths if p.startswith("artifacts/")]
    assert len(made) > 2 and not [p for p in made if not (tmp_path/p).exists()]
    for path, fields in (item for plot in entry["plots"] for item in plot.items()):
        header = (tmp_path/path).read_text(encoding="utf-8").strip().split(",")
        assert {fields["x"], fields["y"]} <= set(header), f"{path} lacks the columns that dvc.yaml plots"
    models = [tmp_path/p for p in made if (tmp_path/p).is_dir()]
    if stage in ("reward", "distill"):  # no model to pass on: what reads the folder is told why
        for model in models: assert [p.name for p in model.iterdir()] == ["skipped.json"] and read_skipped(model) == metrics["skipped"]
        return
    for model in models:
        assert (model/"model.safetensors").read_bytes() == (here/"base"/"model.safetensors").read_bytes()
        load_verified(model)
