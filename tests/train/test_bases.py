"Continuing a base: it learns, gain and loss are told, and what does not belong together is refused with one sentence"
import hashlib, random, shutil, subprocess, sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from copies import ENV
from forge_nb.train.base_tokenizer import CHATML_TEMPLATE, load_base_tokenizer
from forge_nb.train.bases import load_base
from forge_nb.studies.continued import continued
from forge_nb.train.model import load_model, save_model
from forge_nb.train.estimate import estimate_pretraining
from forge_nb.pretrain import pretrain
from forge_nb.core.project import Invalid, ROOT, load_params, pin, read_json, run_cli, write_json, write_jsonl
from forge_nb.sft import sft
from forge_nb.tokenizer import tokenizer, train_tokenizer
from forge_nb.train.architecture import model_from_config

RUN = dict(depth=1, tie_word_embeddings=True, lookup_heads=2, tokens_per_parameter=1., context_length=32, optimizer="adamw", batch_size=4, max_steps=60, matrix_lr=3e-3, embedding_lr=3e-3, lm_head_lr=3e-3, warmup_steps=2, warmdown_ratio=.5, z_loss_weight=0.,
           num_experts=0, num_experts_per_tok=2, shared_expert=False, router_aux_loss_coef=.01, micro_batch_size=0, num_processes=1, launcher="", sharding="ddp", num_evals=2, seed=0)
STUDY = dict(context_length=16, train_tokens=512, replay_percent=25., num_passages=2, batch_size=4, num_added_tokens=4, seed=0)


def story(names: str, count: int, seed: int) -> str:
    "Sentences of a small world"
    draw = random.Random(seed)
    who = names.split()
    return " ".join(f"the {draw.choice(who)} {draw.choice(['saw', 'met', 'left'])} the {draw.choice(who)}." for _ in range(count))


def documents(folder: Path, encodes: str = "valve pump rotor seal"):
    "What `curate` would have left: the company's documents, and general ones"
    for split, count in (("train", 12), ("valid", 4)):
        mine = [dict(kind="docs", text=story(encodes, 60, n)) for n in range(count)] + [dict(kind="general", text=story("cat hat bat dog", 60, n + 50)) for n in range(count // 4)]
        write_jsonl(folder/f"{split}.jsonl", [d | dict(id=str(n), source=f"{d['kind']}/{n}.txt") for n, d in enumerate(mine)])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "A folder with a base that has its own template, documents, and tokens with the base's entries"
    pin(0, 1)
    here = tmp_path_factory.mktemp("bases")
    words = train_tokenizer([story("cat hat bat dog", 400, 1)], 290)
    model = model_from_config(dict(model_type="llama", vocab_size=len(words), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=64,
                        tie_word_embeddings=True, bos_token_id=None, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id))  # one matrix for both layers, as small bases have it
    save_model(model, words, here/"base")
    (here/"base"/"README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    documents(here/"documents")
    for book in ("first", "other"):
        (here/"general"/book).mkdir(parents=True)
        (here/"general"/book/"0.txt").write_text(story("cat hat bat dog", 300, len(book)), encoding="utf-8")
    tokenizer(here/"documents", here/"rows.jsonl", here/"passages.jsonl", base=str(here/"base"), vocab_size=300, num_added_tokens=0, out=here/"tokenizer")
    return here


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    "A folder with an earlier result, and one for checkpoints"
    monkeypatch.setenv("FORGE_CKPT", str(tmp_path/"ckpt"))
    write_json(tmp_path/"out"/"metrics.json", dict(earlier=True))
    return tmp_path/"out"


def entries(made) -> int: return len(AutoTokenizer.from_pretrained(made/"base"))


def train(made, out, tokens=None, **given):
    made_of = tokens or made/"tokenizer"
    return pretrain(made_of/"tokenizer", made_of/"tokens", out=out, **RUN | dict(base=str(made/"base")) | given)


def refuse(capsys, out: Path, run, *said):
    "As a command, it ends with exit code 2 and one sentence, and leaves what was there"
    state = lambda: {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}
    before = state()
    with pytest.raises(SystemExit) as end: run_cli(run)
    [error] = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")]
    assert end.value.code == 2 and all(s in error for s in said), error
    assert state() == before


def test_continuing_lowers_domain_bits_and_tells_what_it_cost(made, kept):
    metrics = train(made, kept)
    rows = {r["text"]: r for r in metrics["before_after"]}
    assert set(rows) == {"domain", "docs", "general"} and rows["domain"]["change"] < -.2 and rows["domain"]["after"] < rows["domain"]["before"]
    assert metrics["base"]["licence"] == "mit" and len(metrics["base"]["weights"]) == 64 and metrics["base"]["context_length"] == 64
    model, words = load_model(kept/"model")
    assert model.get_input_embeddings().num_embeddings == len(words) == entries(made) and read_json(kept/"metrics.json")["before_after"] == metrics["before_after"]


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(made, kept, monkeypatch):
    import forge_nb.train.loop as loop
    train(made, kept/"whole")
    shutil.rmtree(kept.parent/"ckpt")
    steps, update = [], loop.train_step
    def killed(*args):
        steps.append(1)
        if len(steps) == 40: raise KeyboardInterrupt
        return update(*args)
    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(KeyboardInterrupt): train(made, kept/"parts")
    assert not (kept/"parts").exists()
    train(made, kept/"parts")
    assert len(steps) == 40 + 30, "the checkpoint of step 30 was not taken up"
    for file in ("model/model.safetensors", "metrics.json", "curve.csv"): assert (kept/"whole"/file).read_bytes() == (kept/"parts"/file).read_bytes()


def test_new_entries_have_rows_in_every_later_stage(made, tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_CKPT", str(tmp_path/"ckpt"))
    tokenizer(made/"documents", made/"rows.jsonl", made/"passages.jsonl", base=str(made/"base"), vocab_size=300, num_added_tokens=5, out=tmp_path/"tokenizer")
    train(made, tmp_path/"out", tmp_path/"tokenizer", max_steps=2)
    model, words = load_model(tmp_path/"out"/"model")
    assert model.get_input_embeddings().num_embeddings == model.get_output_embeddings().out_features == len(words) == entries(made) + 5


def test_the_study_lays_gain_and_loss_side_by_side_and_goes_on(made, kept):
    run = lambda: continued(made/"documents", made/"general", made/"tokenizer"/"tokenizer", base=str(made/"base"), out=kept, **STUDY)
    rows = {(r["variant"], r["against"], r["text"]): r for r in run()}
    assert {t for _, _, t in rows} == {"domain", "docs", "general", "replayed"} and {("domain", "base"), ("replay", "domain"), ("mean at start", "random at start")} <= {k[:2] for k in rows}
    assert rows["domain", "base", "domain"]["diff"] < 0 and all(r["low"] <= r["diff"] <= r["high"] for r in rows.values())
    metrics = read_json(kept/"metrics.json")
    assert metrics["tokens"]["replay"] > metrics["tokens"]["domain"] >= 480 and metrics["vocabulary"]["worthwhile"] is False
    before = {p: p.read_bytes() for p in kept.glob("*.*")}
    shutil.rmtree(kept.parent/"ckpt"/"mean")  # as if interrupted there: the others are not trained again
    marks = {p: p.stat().st_mtime_ns for p in (kept.parent/"ckpt").rglob("*.json")}
    run()
    assert before == {p: p.read_bytes() for p in kept.glob("*.*")} and all(p.stat().st_mtime_ns == t for p, t in marks.items())


def test_another_tokenizer_than_the_datas(made, kept, tmp_path, capsys):
    tokenizer(made/"documents", made/"rows.jsonl", made/"passages.jsonl", base="scratch", vocab_size=290, num_added_tokens=0, out=tmp_path/"own")
    refuse(capsys, kept, lambda: train(made, kept, tmp_path/"own"), "encoded with another tokenizer than that of the base", "dvc repro tokenizer")


def test_vocabulary_and_rows_that_do_not_agree(made, kept, tmp_path, capsys):
    words = AutoTokenizer.from_pretrained(made/"base")
    words.add_tokens(["<|more|>"])
    shutil.copytree(made/"base", tmp_path/"odd")
    words.save_pretrained(tmp_path/"odd")
    tokenizer(made/"documents", made/"rows.jsonl", made/"passages.jsonl", base=str(tmp_path/"odd"), vocab_size=300, num_added_tokens=0, out=tmp_path/"tokenizer")
    refuse(capsys, kept, lambda: train(made, kept, tmp_path/"tokenizer", base=str(tmp_path/"odd")), f"its tokenizer has {entries(made) + 1} entries, its model {entries(made)} embedding rows")
    write_jsonl(tmp_path/"rows.jsonl", [dict(id="0", messages=[dict(role="user", content="cat?"), dict(role="assistant", content="hat")])])
    tune = lambda: sft(tmp_path/"odd", tmp_path/"rows.jsonl", made/"documents", enabled=True, method="full", lora_r=4, lora_alpha=32, lora_dropout=0., lora_target_modules=[], learning_rate=1e-3, matrix_lr=0., batch_size=2, num_train_epochs=1.,
                       lr_scheduler_type="cosine", warmup_ratio=.05, weight_decay=0., max_grad_norm=1., packing=False, max_length=64, replay_percent=0., replay_window=16, max_bpb_increase=9., seed=0, out=kept)
    refuse(capsys, kept, tune, f"the tokenizer has {entries(made) + 1} entries, the model {entries(made)} embedding rows")


@pytest.mark.parametrize("given, said", [
    (dict(context_length=999), ["`pretrain.context_length` is 999", "at most 64 tokens"]),
    (dict(base="smollm9"), ["`shared.base` is 'smollm9'", "a name of config/bases.yaml (smollm2"]),
    (dict(base="nobody/nothing"), ["not on this machine", "make base BASE=nobody/nothing"]),
    (dict(num_experts=4), ["`pretrain.num_experts`", "set it to 0"])], ids=str)
def test_what_a_base_cannot_do(made, kept, capsys, given, said):
    refuse(capsys, kept, lambda: train(made, kept, **given), *said)


@pytest.mark.parametrize("gone, said", [("model.safetensors", "no .safetensors file"), ("config.json", "no config.json"), ("tokenizer.json", "no tokenizer.json")])
def test_a_folder_that_is_no_model(made, kept, tmp_path, capsys, gone, said):
    shutil.copytree(made/"base", tmp_path/"part")
    (tmp_path/"part"/gone).unlink()
    torch.save({}, tmp_path/"part"/"pytorch_model.bin")  # a pickle is no substitute
    refuse(capsys, kept, lambda: train(made, kept, base=str(tmp_path/"part")), str(tmp_path/"part"), said)
    refuse(capsys, kept, lambda: tokenizer(made/"documents", made/"rows.jsonl", made/"passages.jsonl", base=str(tmp_path/"part"), vocab_size=300, num_added_tokens=0, out=kept), said)


@pytest.mark.parametrize("given, said", [
    (dict(base="scratch"), ["`continued.base` is scratch"]), (dict(base="smollm9"), ["`continued.base` is 'smollm9'"]), (dict(base="nobody/nothing"), ["make base BASE=nobody/nothing"]),
    (dict(context_length=99), ["`continued.context_length` is 99"]), (dict(replay_percent=100.), ["`continued.replay_percent` is 100"]), (dict(train_tokens=10**6), ["lower `continued.train_tokens`"])], ids=str)
def test_what_the_study_cannot_do(made, kept, capsys, given, said):
    refuse(capsys, kept, lambda: continued(made/"documents", made/"general", made/"tokenizer"/"tokenizer", out=kept, **STUDY | dict(base=str(made/"base")) | given), *said)


def test_the_command_names_what_it_cannot_fetch(tmp_path):
    done = subprocess.run([sys.executable, "-m", "forge_nb.train.bases", "no such base"], cwd=ROOT, env=ENV, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "name of config/bases.yaml" in done.stderr and "Traceback" not in done.stderr


def test_an_exam_is_asked_in_the_bases_marks(made):
    from forge_nb.evals.harness import ForgeLM
    words = AutoTokenizer.from_pretrained(made/"base")
    lm = ForgeLM(model=AutoModelForCausalLM.from_pretrained(made/"base"), tokenizer=words)
    turn = [dict(role="user", content="the cat?")]
    assert lm.apply_chat_template(turn) == "<|user|>the cat?<|assistant|>"
    words.chat_template = CHATML_TEMPLATE
    assert lm.apply_chat_template(turn) == "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n"


def test_a_plan_is_of_the_base(made, monkeypatch):
    from forge_nb.train.estimate import load_base_config
    from forge_nb.train.prices import load_prices
    shutil.copytree(made/"tokenizer", made/"artifacts"/"tokenizer", dirs_exist_ok=True)
    monkeypatch.setattr("forge_nb.train.estimate.ROOT", made)
    params = load_params(ROOT/"params.yaml")
    params["shared"]["base"], params["pretrain"] = str(made/"base"), params["pretrain"] | dict(context_length=32, batch_size=4, num_evals=1, optimizer="adamw")
    ask = lambda extra=0: estimate_pretraining(params, load_params(ROOT/"config/hardware.yaml"), load_prices(ROOT/"config/prices.yaml"), model="own", tokens=0, min_gpus=1, seconds=.2, base=load_base_config(str(made/"base"), extra))[0]
    seen, total = ask(), sum(p.numel() for p in load_base(str(made/"base"), load_base_tokenizer(made/"base"), 32).parameters())
    assert seen["model"] == str(made/"base") and seen["parameters"]["total"] == total and seen["best"] is None
    assert seen["tokens"] == seen["corpus_tokens"] // 128 * 128 and seen["this_machine"]["tokens_per_second"] > 0
    assert ask(7)["parameters"]["total"] == total + 7 * 64  # a row for each, shared by both layers


def test_the_profile_is_for_its_base():
    from forge_nb.core.runner import merge_profile
    params = merge_profile(load_params(ROOT/"params.yaml"), "smollm2")
    assert params["shared"]["base"] == "smollm2" and params["curate"]["replay_sources"] and params["pretrain"]["optimizer"] == "adamw" and params["pretrain"]["max_steps"]
    assert not [s for s in params["ingest"]["exclude"] if s.startswith("general")], "general text that is skipped cannot be replayed"
    with pytest.raises(Invalid): merge_profile(params, "smollm3")
