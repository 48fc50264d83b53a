"Fine-tuning in all its ways on a model of bytes: plain folders come out, the same bytes twice and after a kill, and what is wrong is said before anything is trained"
import json, random, shutil, subprocess
from contextlib import contextmanager

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer

from forge_nb.studies.adapters import adapters
from forge_nb.core.project import ROOT
from forge_nb.dpo import dpo
from forge_nb.train.model import load_model, save_model
from forge_nb.train.trainer import load_verified
from forge_nb.core.project import Invalid, pin, read_json, run_cli, write_jsonl
from forge_nb.sft import sft
from forge_nb.tokenizer import train_tokenizer

SCHEDULE = dict(lr_scheduler_type="cosine", warmup_ratio=.05, weight_decay=0., max_grad_norm=1.)
GIVEN = dict(enabled=True, method="full", lora_r=4, lora_alpha=32, lora_dropout=0., lora_target_modules=[], learning_rate=1e-2, matrix_lr=0., batch_size=4, num_train_epochs=2., packing=False,
             max_length=48, replay_percent=30., replay_window=16, max_bpb_increase=9., seed=0, **SCHEDULE)
PAIRED = dict(enabled=True, method="dpo", num_pairs=0, num_policy_pairs=0, learning_rate=1e-3, batch_size=4, num_train_epochs=1., beta=.1, sft_loss_weight=1., max_length=48, max_new_tokens=48, temperature=.9,
              max_chosen_logp_drop=99., max_bpb_increase=9., seed=0, **SCHEDULE)
turn = lambda role, text: dict(role=role, content=text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A base, conversations, pairs and documents"
    pin(0, 1)
    here, draw = tmp_path_factory.mktemp("tune"), random.Random(0)
    words = train_tokenizer(["the cat and the hat and the bat sat on a mat"] * 9, 290)
    shape = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=64)
    save_model(Qwen3ForCausalLM(Qwen3Config(vocab_size=len(words), eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, **shape)), words, here/"base")
    say = lambda n: " ".join(draw.choice("cat hat bat mat".split()) for _ in range(n))
    write_jsonl(here/"rows.jsonl", [dict(id=str(n), messages=[turn("user", f"{say(2)}?"), turn("assistant", say(1 + n % 4))]) for n in range(40)])
    write_jsonl(here/"pairs.jsonl", [dict(id=str(n), prompt=[turn("user", f"{say(2)}?")], chosen=[turn("assistant", f"the {say(1)}")], rejected=[turn("assistant", say(3))]) for n in range(24)])
    for split in ("train", "valid"): write_jsonl(here/f"{split}.jsonl", [dict(text=f"the {say(9)}.\n" * 6) for _ in range(6)])
    return here


def tune(made, out, monkeypatch, kept=None, **given):
    monkeypatch.setenv("FORGE_CKPT", str(kept or out/"kept"))
    pin(0, 1)
    return sft(made/"base", made/"rows.jsonl", made, **GIVEN | given, out=out)


@contextmanager
def killed(monkeypatch, after, trainer=Trainer):
    "A run inside is killed after some steps"
    step, done = trainer.training_step, []

    def dying(self, *args, **kwargs):
        if len(done) == after: raise KeyboardInterrupt
        done.append(1)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(trainer, "training_step", dying)
        yield


def weights(out): return (out/"model"/"model.safetensors").read_bytes()


@pytest.mark.parametrize("given", [dict(), dict(matrix_lr=.01), dict(packing=True), dict(method="lora"), dict(method="qlora")], ids=str)
def test_twice_and_killed_gives_the_same_bytes_of_a_plain_model(made, tmp_path, monkeypatch, given):
    said = tune(made, tmp_path/"a", monkeypatch, **given)
    assert said["loss_last"] < said["loss_first"] and (said.get("merge_error", 0.) < 1e-3)
    model, _ = load_verified(tmp_path/"a"/"model")
    assert type(model) is Qwen3ForCausalLM and not list((tmp_path/"a"/"model").glob("*adapter*"))
    with killed(monkeypatch, 15): tune(made, tmp_path/"b", monkeypatch, **given)
    assert list((tmp_path/"b"/"kept").glob("checkpoint-*"))
    assert tune(made, tmp_path/"b", monkeypatch, **given) == said
    assert weights(tmp_path/"a") == weights(tmp_path/"b")


@pytest.mark.parametrize("row, said", [
    (dict(id="q", messages=[turn("user", "cat?")]), ["line 41", "row q", "no assistant turn"]),
    (dict(messages=[turn("user", "cat?"), turn("assistant", "hat")]), ["line 41", "no `id`"]),
    (dict(id="q", messages=[turn("user", "cat?"), turn("assistant", "hat " * 90)]), ["row q", "more than the model's context of 64"]),
    (dict(id="q", messages=[turn("user", "cat?"), turn("assistant", "hat " * 45)]), ["row q", "more than `sft.max_length` = 48"])], ids=lambda v: "")
def test_bad_rows_are_refused_before_a_model_is_loaded(made, tmp_path, monkeypatch, capsys, row, said):
    (tmp_path/"rows.jsonl").write_text((made/"rows.jsonl").read_text(encoding="utf-8") + json.dumps(row) + "\n", encoding="utf-8")
    shutil.copytree(made/"base", tmp_path/"base")
    (tmp_path/"base"/"model.safetensors").write_bytes(b"nothing that loads")
    with pytest.raises(SystemExit) as e: run_cli(lambda: sft(tmp_path/"base", tmp_path/"rows.jsonl", made, **GIVEN, out=tmp_path/"out"))
    told = capsys.readouterr().err
    assert e.value.code == 2 and all(s in told for s in ["rows.jsonl", *said]), told
    assert not (tmp_path/"out").exists()


def test_less_than_a_pass(made, tmp_path, monkeypatch):
    said = tune(made, tmp_path, monkeypatch, num_train_epochs=.3, replay_percent=0.)
    assert said["replay_windows"] == 0 and len(read_json(tmp_path/"mask.json")) == 3
    with pytest.raises(Invalid, match="`sft.num_train_epochs` is 0.001"): tune(made, tmp_path/"no", monkeypatch, num_train_epochs=.001)


def test_a_stage_that_forgot_too_much_passes_the_model_on(made, tmp_path, monkeypatch):
    said = tune(made, tmp_path, monkeypatch, kept=tmp_path/"kept", max_bpb_increase=-9.)
    assert set(said) == {"skipped"} and "`sft.max_bpb_increase` allows -9" in said["skipped"]
    assert (tmp_path/"model"/"model.safetensors").read_bytes() == (made/"base"/"model.safetensors").read_bytes()


def test_standing_still_fails(made, tmp_path, monkeypatch):
    with pytest.raises(Invalid, match="no weight changed"): tune(made, tmp_path, monkeypatch, kept=tmp_path/"other", learning_rate=0.)
    assert not (tmp_path/"model").exists()


def test_four_bits_without_their_library(made, tmp_path, monkeypatch):
    import forge_nb.train.lora as module
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Invalid, match="bitsandbytes.*pip install"): tune(made, tmp_path, monkeypatch, method="qlora")


def test_the_next_stage_asks_for_the_manifest_and_stops_by_rule(made, tmp_path, monkeypatch):
    tune(made, tmp_path, monkeypatch)
    prefer = lambda base, out, **given: (pin(0, 1), monkeypatch.setenv("FORGE_CKPT", str(out/"kept")), dpo(base, made/"pairs.jsonl", made/"valid.jsonl", ROOT/"company/style.yaml", **PAIRED | given, out=out))[2]
    with pytest.raises(Invalid, match="no manifest.json"): prefer(made/"base", tmp_path/"no")
    whole = prefer(tmp_path/"model", tmp_path/"d")
    assert not whole["broken_rule"] and read_json(tmp_path/"d"/"model"/"manifest.json") == read_json(tmp_path/"model"/"manifest.json")
    short = prefer(tmp_path/"model", tmp_path/"e", max_chosen_logp_drop=-99.)        # a fall of less than nothing: broken as soon as a window is full
    assert short["broken_rule"].startswith("stopped at step 5: `logps/chosen` falls")
    with killed(monkeypatch, 4): prefer(tmp_path/"model", tmp_path/"g", max_chosen_logp_drop=-99.)
    assert list((tmp_path/"g"/"kept").glob("checkpoint-*")) and prefer(tmp_path/"model", tmp_path/"g", max_chosen_logp_drop=-99.) == short
    assert weights(tmp_path/"g") == weights(tmp_path/"e") != weights(tmp_path/"d")
    template = tmp_path/"model"/"chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>"), encoding="utf-8")
    with pytest.raises(Invalid, match="chat template and loss mask changed"): prefer(tmp_path/"model", tmp_path/"f")


@pytest.mark.parametrize("method", ["dpo", "kto", "online"])
def test_each_method_of_preference_gives_the_same_bytes_twice_and_after_a_kill(made, tmp_path, monkeypatch, method):
    tune(made, tmp_path, monkeypatch)
    write_jsonl(tmp_path/"pairs.jsonl", [dict(id=str(n), prompt=[turn("user", f"cat {n}?")], chosen=[turn("assistant", f"`{n}`. Source: mat.")], rejected=[turn("assistant", f"the cat {n}")]) for n in range(24)])
    def prefer(out):
        pin(0, 1); monkeypatch.setenv("FORGE_CKPT", str(out/"kept"))
        return dpo(tmp_path/"model", tmp_path/"pairs.jsonl", made/"valid.jsonl", ROOT/"company/style.yaml", **PAIRED | dict(method=method, max_length=64), out=out)
    said = prefer(tmp_path/"a")
    assert said["method"] == method and weights(tmp_path/"a") != weights(tmp_path)
    from trl.experimental.online_dpo import OnlineDPOTrainer  # has a step of its own
    with killed(monkeypatch, 4, OnlineDPOTrainer if method == "online" else Trainer): prefer(tmp_path/"b")
    assert list((tmp_path/"b"/"kept").glob("checkpoint-*")) and prefer(tmp_path/"b") == said
    assert weights(tmp_path/"a") == weights(tmp_path/"b")


def test_packed_rows_do_not_see_one_another(made, tmp_path, monkeypatch):
    import forge_nb.sft as module
    monkeypatch.setattr(module, "packing_leak", lambda model, rows: .5)
    with pytest.raises(Invalid, match="set `sft.packing` to false"): tune(made, tmp_path, monkeypatch, packing=True)
    model, words = load_model(made/"base")
    rows = [torch.tensor([words(t)["input_ids"]]) for t in ("the cat?", "the hat and the bat")]
    loss = lambda ids, **more: torch.nn.functional.cross_entropy(model(input_ids=ids, use_cache=False, **more).logits[0, :-1], ids[0, 1:], reduction="none")
    both = loss(torch.cat(rows, 1), position_ids=torch.cat([torch.arange(r.shape[1]) for r in rows])[None])
    assert torch.allclose(torch.cat([both[:rows[0].shape[1] - 1], both[rows[0].shape[1]:]]), torch.cat([loss(r) for r in rows]), atol=1e-6)


@pytest.mark.slow
def test_three_ways_compared(made, tmp_path, monkeypatch):
    "Proves: full, LoRA and QLoRA train and merge, QLoRA takes least memory, and what was run is not run again"
    monkeypatch.setenv("FORGE_CKPT", str(tmp_path/"kept"))
    write_jsonl(tmp_path/"items.jsonl", [dict(id=str(n), question="?", prompt="cat?", answer="hat") for n in range(4)])
    given = dict(num_train_rows=16, lora_r=2, full_lr=1e-2, adapter_lr=1e-2, batch_size=4, replay_percent=20., replay_window=16, num_eval_items=4, max_new_tokens=4, seed=0, threads=1)
    compare = lambda out: adapters(made/"base", made/"rows.jsonl", made, tmp_path/"items.jsonl", **given, out=out)
    table = compare(tmp_path/"a")
    full, lora, qlora = (r["memory_mb"] for r in table)
    assert qlora < lora < full and all(r["merge_error"] < 1e-3 for r in table)
    monkeypatch.setattr(subprocess, "run", None)                        # variants that were run are not run again
    assert compare(tmp_path/"b") == table and (tmp_path/"a"/"comparisons.csv").read_bytes() == (tmp_path/"b"/"comparisons.csv").read_bytes()
    with pytest.raises(Invalid, match="`adapters.lora_r` is 0"): adapters(made/"base", made/"rows.jsonl", made, tmp_path/"items.jsonl", **given | dict(lora_r=0), out=tmp_path/"c")
