"Long context: what is measured is what is meant, a run again gives the same bytes, and bad input is a sentence"
import hashlib, json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from forge_nb.studies import extend as page
from forge_nb.studies.common import write_token_rows
from forge_nb.train.model import save_model
from forge_nb.core.project import Invalid, read_csv, read_json
from forge_nb.tokenizer import train_tokenizer
from forge_nb.train.architecture import ModelShape, build_model
from forge_nb.train.positions import rope_frequencies

PLAIN = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda omicron sigma upsilon omega chapter verse theory letter number origin summer winter autumn spring".split()
GIVEN = dict(context_length=32, rope_factor=4., beta_fast=2., train_tokens=1024, batch_size=2, matrix_lr=.002, retrieval_ratio=.5, num_test_rows=4, num_trials=8, seed=0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "A model of one layer, its tokenizer, and tokens of documents of 20 to 400 tokens"
    root = tmp_path_factory.mktemp("extend")
    words = train_tokenizer([" ".join(PLAIN * 9), *(f"({w})" for w in PLAIN * 9)], 420)
    torch.manual_seed(0)
    model = build_model(words, ModelShape(num_hidden_layers=1, hidden_size=64, intermediate_size=64, context_length=32))
    for p in model.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=.1)  # blocks that are silent at first would see no difference
    save_model(model, words, root/"model")
    random = np.random.default_rng(0)
    rows = [dict(source=f"{n}.txt", kind="docs", bytes=4 * size, ids=random.integers(10, 280, size)) for n, size in enumerate([20, 140, 280, 400, 130, 129] * 2)]
    write_token_rows(root/"tokens", train=rows, valid=rows)
    return SimpleNamespace(root=root, model=model.eval(), words=words)


def run(toy, out, monkeypatch, checkpoints, **given):
    monkeypatch.setenv("FORGE_CKPT", str(checkpoints)); torch.manual_seed(0); torch.set_num_threads(1)
    return page.extend(toy.root/"model", toy.root/"tokens", **GIVEN | given, out=out)


def digests(folder): return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_again_and_a_run_that_was_interrupted_give_the_same_bytes(toy, tmp_path, monkeypatch):
    table = run(toy, tmp_path/"a", monkeypatch, tmp_path/"ca")
    assert [r["variant"] for r in table] == ["before", "window", "scaled", "short", "trained", "extended", "retrieval"]
    config = json.loads((tmp_path/"a"/"model"/"config.json").read_text(encoding="utf-8"))
    assert config["max_position_embeddings"] == 128 and config["rope_parameters"]["rope_type"] == "yarn" and config["rope_parameters"]["original_max_position_embeddings"] == 32
    again = page.load_for_length(tmp_path/"a"/"model", 128)
    assert not np.allclose(rope_frequencies(again), rope_frequencies(toy.model)), "the scale was lost on the way to disk"
    whole, calls = page.train_model, []
    def broken(*a, **k):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return whole(*a, **k)
    monkeypatch.setattr(page, "train_model", broken)
    with pytest.raises(KeyboardInterrupt): run(toy, tmp_path/"b", monkeypatch, tmp_path/"cb")
    run(toy, tmp_path/"b", monkeypatch, tmp_path/"cb")
    assert len(calls) == 5, "what was trained before the interruption was trained again"
    assert digests(tmp_path/"a") == digests(tmp_path/"b")


def test_without_retrieval_rows_the_extended_variant_goes_out(toy, tmp_path, monkeypatch):
    table = run(toy, tmp_path/"o", monkeypatch, tmp_path/"c", retrieval_ratio=0.)
    assert table[-1]["variant"] == "extended"
    assert digests(tmp_path/"o"/"model")["model.safetensors"] == digests(tmp_path/"c"/"extended"/"model")["model.safetensors"]
    bins = read_csv(tmp_path/"o"/"curve.csv")
    assert {r["variant"] for r in bins} == {"before", "window", "scaled", "short", "trained", "extended"} and max(int(r["to"]) for r in bins) == 128
    assert {r["variant"] for r in read_csv(tmp_path/"o"/"needles.csv")} == {"before", "scaled", "trained", "extended"}
    # an untrained variant read through the window is, inside the first window, the variant itself
    first = {r["variant"]: float(r["bpb"]) for r in bins if r["from"] == "0"}
    assert abs(first["before"] - first["window"]) < .02
    assert set(read_json(tmp_path/"o"/"metrics.json")["needle"]["beyond"]) == {"before", "scaled", "trained", "extended"}


def test_a_token_is_scored_from_its_window_alone(toy):
    x = torch.randint(10, 280, (2, 49), generator=torch.Generator().manual_seed(1))
    bits = page.measure_token_bits(toy.model, x, window=16)
    first, scored, end = page.sliding_windows(48, 16)[3]
    with torch.no_grad(): logits = toy.model(input_ids=x[:, first:end]).logits.float()
    alone = torch.nn.functional.cross_entropy(logits[:, scored - first:].flatten(0, 1), x[:, scored + 1:end + 1].flatten(), reduction="none").view(2, -1) / np.log(2)
    assert torch.allclose(bits[:, scored:end], alone, atol=.1)
    changed = x.clone(); changed[:, :first] = 11
    assert torch.equal(page.measure_token_bits(toy.model, changed, window=16)[:, scored:end], bits[:, scored:end])
    assert not torch.equal(page.measure_token_bits(toy.model, changed)[:, scored:end], page.measure_token_bits(toy.model, x)[:, scored:end])


class Oracle:
    "A model that goes on as the last place did that had the same two tokens, if it lies no further back than it sees"
    device, config = torch.device("cpu"), SimpleNamespace(model_type="oracle")

    def __init__(self, entries, sees): self.entries, self.sees, self.base_model = entries, sees, self

    def get_output_embeddings(self): return SimpleNamespace(weight=20 * torch.eye(self.entries))

    def __call__(self, input_ids, use_cache):
        out = torch.zeros(*input_ids.shape, self.entries)
        for row, ids in enumerate(input_ids.tolist()):
            last = {}
            for at, pair in enumerate(zip(ids, ids[1:]), 1):
                if pair in last and at - last[pair] <= self.sees: out[row, at, ids[last[pair] + 1]] = 1
                last[pair] = at
        return SimpleNamespace(last_hidden_state=out)


def test_the_needle_finds_who_can_find(toy):
    held = page.read_long_rows(toy.root/"tokens", "valid", 128)
    for sees, where in ((1000, {"within", "beyond"}), (28, {"within"}), (0, set())):
        got = page.run_needle_test(Oracle(len(toy.words), sees), toy.words, held, context_length=32, target_length=128, num_trials=8, seed=0)
        table = {r["distance"]: r for r in page.tabulate_needles(dict(oracle=dict(needles=got)), 32)}
        for name in ("within", "beyond"):
            assert (table[name]["accuracy_low"] > 1 / 8) == (table[name]["bits_gained_low"] > 1) == (name in where), (sees, table[name])
    assert all(1 / 8 < r["accuracy_high"] for r in page.tabulate_needles(dict(o=dict(needles=got)), 32)), "guessing lies outside its own interval"


def test_facts_of_training_are_not_those_of_the_test(toy):
    rows = page.make_long_training_rows(toy.root/"tokens", toy.words, target_length=64, num_rows=8, retrieval_ratio=.5, seed=0)
    plain = page.make_long_training_rows(toy.root/"tokens", toy.words, target_length=64, num_rows=8, retrieval_ratio=0, seed=0)
    asked = [n for n, (a, b) in enumerate(zip(rows, plain)) if not np.array_equal(a["ids"], b["ids"])]
    assert len(rows) == len(plain) and len(asked) == len(rows) // 2 and all(len(r["ids"]) == 65 for r in rows)
    (names, values), (theirs, others) = page.needle_tokens(toy.words, True), page.needle_tokens(toy.words, False)
    assert not set(names) & set(theirs) and not set(values) & set(others)


@pytest.mark.parametrize("given, said", [
    (dict(rope_factor=1.), "`extend.rope_factor` is 1.0"), (dict(rope_factor=.5), "must be more than 1"), (dict(rope_factor=40., train_tokens=9999), "no document of 1281 tokens or more (the longest has 400)"),
    (dict(retrieval_ratio=2.), "`extend.retrieval_ratio` is 2.0"), (dict(train_tokens=50), "`extend.train_tokens` is 50"), (dict(beta_fast=1.), "`extend.beta_fast` is 1.0"), (dict(context_length=2), "`extend.context_length` is 2")], ids=str)
def test_bad_parameters_are_one_sentence(toy, tmp_path, monkeypatch, given, said):
    with pytest.raises(Invalid) as e: run(toy, tmp_path/"o", monkeypatch, tmp_path/"c", **given)
    assert said in str(e.value) and "\n" not in str(e.value) and not (tmp_path/"o").exists()


def test_models_that_cannot_be_extended_are_one_sentence(toy, tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM
    fixed = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=64, n_head=2, vocab_size=len(toy.words), bos_token_id=0, eos_token_id=0))
    scaled = AutoModelForCausalLM.from_config(page.make_yarn_config(toy.model.config, context_length=32, rope_factor=4, beta_fast=2))
    for name, model, said in (("fixed", fixed, "`gpt2` has no rotary positions"), ("scaled", scaled, "scaled already (`yarn`")):
        save_model(model, toy.words, tmp_path/name)
        with pytest.raises(Invalid, match=None) as e: page.extend(tmp_path/name, toy.root/"tokens", **GIVEN, out=tmp_path/"o")
        assert said in str(e.value)
    with pytest.raises(Invalid) as e: page.extend(tmp_path/"nothing", toy.root/"tokens", **GIVEN, out=tmp_path/"o")
    assert "no config.json" in str(e.value)
