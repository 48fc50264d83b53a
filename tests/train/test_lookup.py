"The lookup start: the same bits from the same seed, what it copies in every architecture and size, and what it leaves alone"
import hashlib

import pytest
import torch

from forge_nb.core.project import Invalid, pin
from forge_nb.tokenizer import train_tokenizer
from forge_nb.train.architecture import PretrainConfig, build_model, count_parameters, derive_config
from forge_nb.train.lookup import init_lookup, measure_copying
from forge_nb.train.model import load_model, save_model

WORDS = train_tokenizer([" ".join(f"word{n}" for n in range(400))], 700)
SPANS = torch.randint(len(WORDS), (4, 64), generator=torch.Generator().manual_seed(1))


def build(seed=0, **given):
    pin(seed, 1)
    shape, _ = derive_config(PretrainConfig(**dict(depth=3) | given), len(WORDS))
    return build_model(WORDS, shape).eval()


def digest(model) -> str: return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def test_the_same_seed_gives_the_same_bits():
    assert digest(build()) == digest(build()) != digest(build(seed=1))


@pytest.mark.parametrize("given", [dict(), dict(depth=2), dict(depth=5), dict(num_experts=4), dict(num_experts=4, shared_expert=True), dict(context_length=1024)], ids=str)
def test_an_untrained_model_copies(given):
    "Proves: whatever the blocks are, and at each depth, half of a repeated random sequence is predicted by a sharp circuit, a quarter by the default's, and nothing of it with the usual start"
    assert measure_copying(build(**given), SPANS) > .25
    sharp = build(**given | dict(lookup_heads=0))
    init_lookup(sharp, given.get("context_length", 256), sharpness=2.)
    assert measure_copying(sharp, SPANS) > .5
    assert measure_copying(build(**given | dict(lookup_heads=0)), SPANS) < .05


def test_one_table_is_counted_once():
    tied, untied = (count_parameters(build(tie_word_embeddings=is_tied, lookup_heads=0)) for is_tied in (True, False))
    assert untied["total"] - tied["total"] == len(WORDS) * 192 and untied["matmul"] == tied["matmul"]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    "Proves: nothing of the start lives outside the weights, so that every tool that loads a Qwen3 loads this one"
    model = build()
    save_model(model, WORDS, tmp_path/"model")
    loaded, _ = load_model(tmp_path/"model")
    assert digest(loaded) == digest(model) and measure_copying(loaded, SPANS) == measure_copying(model, SPANS)


def test_the_other_heads_are_the_usual_ones():
    model = build(depth=4, lookup_heads=1)
    for layer in model.model.layers[:2]: assert not layer.self_attn.o_proj.weight[:, 64:].any() and layer.self_attn.o_proj.weight[:, :64].any()
    assert not any(layer.self_attn.o_proj.weight.any() for layer in model.model.layers[2:])


def test_more_heads_than_there_are():
    with pytest.raises(Invalid, match="`pretrain.lookup_heads` is 4, which takes 2 layers of 4 heads; the model has 3 layers of 3"): build(lookup_heads=4)


def test_measuring_leaves_the_model_as_it_was():
    model = build().train()
    before, state = digest(model), torch.random.get_rng_state()
    measure_copying(model, SPANS)
    assert model.training and digest(model) == before and torch.equal(torch.random.get_rng_state(), state)
