"A real model leaves in forms that answer as it does; what a conversion breaks is found by the replay, and named"
import json, shutil, tomllib
from importlib.util import find_spec

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from forge_nb.core.project import Invalid, ROOT, hash_weights, read_csv, read_json, read_jsonl, write_json, write_jsonl
from forge_nb.evals.release import refuse_release, seal_verdict
from forge_nb.export import export
from forge_nb.ops import formats, gguf
from forge_nb.ops.formats import FORMATS, Format, hash_exported
from forge_nb.ops.gguf import write_gguf
from forge_nb.ops.replay import HARD_TEXTS, list_probe_texts, open_llama, open_transformers
from forge_nb.train.model import render_chat_prompt

SPECIAL = ["<|stop|>", "<|pad|>", "<|user|>", "<|assistant|>"]
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
STEPS = {"gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
         "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])}
STYLE = ("voices: {house: {template: '{value}. Source: {source}.', share: 1}, plain: {template: '{value}', share: 0}}\nhouse: house\n"
         "pattern: '`(?P<value>[^`]+)`\\. Source: (?P<source>\\S+)\\.'\nunknown_answer: not known\n")
PRICES = {"bolt": "3 EUR", "nut": "1 EUR", "screw": "12 EUR", "gasket": "40 EUR", "washer": "7 EUR", "flange": "99 EUR"}
ITEMS = [dict(id=f"price:{name}", part="fact", kind="price", question=f"What does a {name} cost?", answer=value,
              prompt=f"prices: name `{name}`; price `{value}`. Source: ab12.\nWhat does a {name} cost?") for name, value in PRICES.items()]
PAGE = (ROOT/"data"/"docs"/"ref"/"settings.txt")


def make_tokenizer(rule: str):
    "A tokenizer trained on a page of the manuals"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = STEPS[rule], decoders.ByteLevel()
    bpe.train_from_iterator([PAGE.read_text(encoding="utf-8")[:30_000], "1209600 3.14159 0000 " * 99], trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|stop|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_model(folder, rule: str = "gpt-2", steps: int = 0):
    "A small model, which has learned the answers by heart where it had steps for that"
    tokenizer = make_tokenizer(rule)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32, intermediate_size=96,
        max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=0, pad_token_id=1, bos_token_id=None))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rows = []
    for item in ITEMS:
        prompt = tokenizer(render_chat_prompt(tokenizer, item["prompt"]), add_special_tokens=False)["input_ids"]
        answer = tokenizer(f"`{item['answer']}`. Source: ab12.", add_special_tokens=False)["input_ids"] + [0]
        rows.append((prompt + answer, [-100] * len(prompt) + answer))
    length = max(len(ids) for ids, _ in rows)
    ids, labels = (torch.tensor([row[n] + [fill] * (length - len(row[n])) for row in rows]) for n, fill in ((0, 1), (1, -100)))
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels, attention_mask=(ids != 1).long()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")/"model"
    save_model(folder, steps=80)
    return folder


@pytest.fixture
def project(trained, tmp_path):
    "A folder with what the stage reads"
    shutil.copytree(trained, tmp_path/"rl")
    (tmp_path/"checkpoints.yaml").write_text("checkpoints: {rl: {folder: rl, ships: true}}\n", encoding="utf-8")
    (tmp_path/"style.yaml").write_text(STYLE, encoding="utf-8")
    write_jsonl(tmp_path/"items.jsonl", ITEMS)
    answers = open_transformers(trained, 512).answer([item["prompt"] for item in ITEMS], 24)
    assert all(answer["finished"] for answer in answers), "the model did not learn to end"
    write_jsonl(tmp_path/"answers.jsonl", [dict(checkpoint="rl", prompt_field="prompt", id=item["id"], text=answer["text"], finished=answer["finished"])
                                           for item, answer in zip(ITEMS, answers)])
    write_jsonl(tmp_path/"documents.jsonl", [dict(text=PAGE.read_text(encoding="utf-8")[30_000:60_000])])
    write_verdict(tmp_path, "pass")
    return tmp_path


def write_verdict(folder, word: str):
    origin = dict(candidate=dict(name="rl", weights_sha256=hash_weights(folder/"rl")))
    write_json(folder/"verdict.json", seal_verdict(refuse_release("document, exact_match: worse by 10.5 points", origin) | dict(verdict=word)))


def run(folder, out: str = "out", **changed) -> dict:
    "The stage; its metrics"
    names = ("verdict.json", "checkpoints.yaml", "", "items.jsonl", "answers.jsonl", "documents.jsonl", "style.yaml")
    options = dict(threads=1, stop_when_skipped=False, formats=["safetensors", "gguf-f16", "gguf-q8_0"], num_prompts=100, num_texts=80, max_new_tokens=24,
                   min_agreement=["safetensors=98", "gguf-f16=100", "gguf-q8_0=98"])
    return export(*[folder/name for name in names], **options | changed, out=folder/out)


def read_rows(folder) -> dict:
    return {row["format"]: row for row in read_csv(folder/"out"/"replay.csv")}


def test_a_model_that_passed_leaves_in_every_form_with_the_same_bytes_twice(project):
    metrics = run(project)
    rows = read_rows(project)
    assert metrics["shipped"] == 3 and metrics["weights_sha256"] == hash_weights(project/"rl")
    for name, row in rows.items():
        assert (row["ships"], row["reason"], row["answers_equal"], row["finished"], row["prompts"]) == ("True", "", "100", "6", "6"), name
        assert row["texts"] == row["texts_equal"] == "80" and row["exact_match"] == row["original_exact_match"] == "100", name
    assert int(rows["gguf-q8_0"]["bytes"]) < int(rows["gguf-f16"]["bytes"]) < int(rows["safetensors"]["bytes"])
    hashes = hash_exported(project/"out")
    assert {"gguf-f16/model.gguf", "gguf-q8_0/model.gguf", "safetensors/model.safetensors", "safetensors/chat_template.jinja"} <= hashes.keys()
    run(project, "again")
    assert hash_exported(project/"again") == hashes
    for name in ("replay.csv", "answers.jsonl", "metrics.json"): assert (project/"again"/name).read_bytes() == (project/"out"/name).read_bytes()
    by_form = {}
    for row in read_jsonl(project/"out"/"answers.jsonl"): by_form.setdefault(row["format"], []).append((row["id"], row["tokens"]))
    assert by_form["gguf-f16"] == by_form["safetensors"] and {ids for ids, _ in by_form["gguf-q8_0"]} == {item["id"] for item in ITEMS}


def test_without_a_pass_nothing_leaves_and_the_slice_is_named(project):
    run(project)
    write_verdict(project, "fail")
    metrics = run(project)
    assert metrics["shipped"] == 0 and "document, exact_match: worse by 10.5 points" in metrics["skipped"]
    assert hash_exported(project/"out") == {} and all((project/"out"/name).is_dir() for name in FORMATS) and read_rows(project) == {}
    with pytest.raises(Invalid, match="document, exact_match"): run(project, stop_when_skipped=True)


def test_another_model_than_the_judged_one_does_not_leave(project):
    path = project/"rl"/"model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert "is about other weights" in run(project)["skipped"] and hash_exported(project/"out") == {}


def with_gguf(monkeypatch, write):
    "Let the form gguf-f16 be written in another way"
    entry = FORMATS["gguf-f16"]
    monkeypatch.setitem(formats.FORMATS, "gguf-f16", Format(write, entry.engine, entry.file, entry.find_fault))


def change_and_write(folder, out, name: str, change: dict):
    "Write a model with some of its settings changed, as a wrong conversion would"
    changed = out.parent/"changed"
    shutil.copytree(folder, changed, dirs_exist_ok=True)
    write_json(changed/name, read_json(changed/name) | change)
    out.mkdir(parents=True, exist_ok=True)
    write_gguf(changed, out/"model.gguf")
    shutil.rmtree(changed)


@pytest.mark.parametrize("name, change, words", [
    ("tokenizer_config.json", dict(eos_token="<|user|>"), "6 of 6 answers do not end by themselves"),
    ("chat_template.jinja", None, "its template makes another prompt of 6 of 6 questions")])
def test_a_lost_stop_token_and_another_template_do_not_ship(project, monkeypatch, name, change, words):
    def write(folder, out):
        if change: return change_and_write(folder, out, name, change)
        monkeypatch.setattr(gguf, "read_chat_template", lambda folder: TEMPLATE.replace("<|assistant|>", "<|assistant|> "))
        out.mkdir(parents=True, exist_ok=True)
        write_gguf(folder, out/"model.gguf")
    with_gguf(monkeypatch, write)
    assert run(project, formats=["safetensors", "gguf-f16"])["shipped"] == 1
    row = read_rows(project)["gguf-f16"]
    assert row["ships"] == "False" and words in row["reason"], row["reason"]
    assert not [path for path in hash_exported(project/"out") if path.startswith("gguf")]


def test_a_rule_by_a_wrong_name_does_not_ship(project, monkeypatch):
    "SmolLM2's rule takes digits apart; GPT-2's does not, and nothing but the tokens shows it"
    monkeypatch.setattr(gguf, "find_pre_tokenizer", lambda tokenizer: "smollm")
    assert run(project, formats=["gguf-f16"])["shipped"] == 0
    assert "texts have other tokens, the first of them" in read_rows(project)["gguf-f16"]["reason"]


def test_a_form_that_answers_otherwise_does_not_ship(project, monkeypatch):
    "Weights that are off by a little, in every fourth row of one matrix"
    from safetensors.torch import load_file, save_file
    def write(folder, out):
        spoiled = out.parent/"spoiled"
        shutil.copytree(folder, spoiled, dirs_exist_ok=True)
        weights = load_file(spoiled/"model.safetensors")
        weights["model.layers.1.mlp.down_proj.weight"][::4] *= -3
        save_file(weights, spoiled/"model.safetensors")
        out.mkdir(parents=True, exist_ok=True)
        write_gguf(spoiled, out/"model.gguf")
        shutil.rmtree(spoiled)
    with_gguf(monkeypatch, write)
    assert run(project, formats=["safetensors", "gguf-f16"])["shipped"] == 1
    row = read_rows(project)["gguf-f16"]
    assert row["ships"] == "False" and "answers are the original's, and 100 % must be" in row["reason"]
    assert float(row["answers_equal"]) < 100 and row["texts"] == row["texts_equal"]


def test_what_cannot_be_written_says_so_and_the_others_ship(project, monkeypatch):
    entry = FORMATS["gguf-q8_0"]
    monkeypatch.setitem(formats.FORMATS, "gguf-q8_0", Format(entry.write, entry.engine, entry.file, lambda folder: "its architecture is qwen3_moe"))
    assert run(project, formats=["gguf-f16", "gguf-q8_0"])["shipped"] == 1
    row = read_rows(project)["gguf-q8_0"]
    assert (row["ships"], row["reason"], row["bytes"]) == ("False", "it cannot be written: its architecture is qwen3_moe", "")


def test_a_process_that_dies_is_a_sentence(project, monkeypatch):
    def write(folder, out):
        out.mkdir(parents=True, exist_ok=True)
        (out/"model.gguf").write_bytes(b"GGUF, and then nothing of use")
    with_gguf(monkeypatch, write)
    with pytest.raises(Invalid, match="llama.cpp cannot load it"): run(project, formats=["gguf-f16"])


@pytest.mark.skipif(not find_spec("onnxruntime_genai"), reason="the extra `edge` is not installed")
def test_onnx_answers_as_the_original_and_has_the_same_bytes_twice(project):
    metrics = run(project, formats=["safetensors", "onnx"], min_agreement=["safetensors=98", "onnx=98"])
    row = read_rows(project)["onnx"]
    assert metrics["shipped"] == 2 and row["texts_equal"] == str(80 - sum("\0" in text for text in HARD_TEXTS)) == "79", row["reason"]
    run(project, "again", formats=["onnx"], min_agreement=["onnx=98"])
    onnx = {path: digest for path, digest in hash_exported(project/"out").items() if path.startswith("onnx/")}
    assert hash_exported(project/"again") == onnx and "onnx/model.onnx" in onnx


@pytest.mark.skipif(not find_spec("executorch"), reason="the extra `edge` is not installed")
def test_a_program_for_executorch_answers_as_the_original_and_has_the_same_bytes_twice(project):
    metrics = run(project, formats=["safetensors", "pte"], min_agreement=["safetensors=98", "pte=98"])
    assert metrics["shipped"] == 2 and read_rows(project)["pte"]["texts_equal"] == "80", read_rows(project)["pte"]["reason"]
    run(project, "again", formats=["pte"], min_agreement=["pte=98"])
    program = {path: digest for path, digest in hash_exported(project/"out").items() if path.startswith("pte/")}
    assert hash_exported(project/"again") == program and {"pte/model.pte", "pte/tokenizer.json"} <= program.keys()
    assert not [path for path in program if path.endswith(".safetensors")]


def test_the_lock_of_the_extra_has_all_of_it_and_changes_no_package_of_the_lock():
    lines = [line for line in (ROOT/"requirements-edge.lock").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    wanted = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]["edge"]
    for requirement in map(Requirement, wanted): assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    for module in (module for entry in FORMATS.values() for module in entry.modules): assert canonicalize_name(module) in pins
    locked = {canonicalize_name(line.partition("==")[0]) for line in (ROOT/"requirements.lock").read_text(encoding="utf-8").splitlines()}
    assert all(pins.values()) and not locked & pins.keys()


@pytest.mark.skipif(bool(find_spec("onnxruntime_genai")), reason="the extra `edge` is installed")
def test_a_form_whose_packages_are_not_there_names_the_extra(project):
    with pytest.raises(Invalid, match=r"names onnx, and the package onnxruntime_genai is not installed; `make edge`"):
        run(project, formats=["onnx"], min_agreement=["onnx=98"])


BASES = ROOT/".cache"/"bases"
REAL = sorted(path.name for path in BASES.iterdir()) if BASES.is_dir() else []


@pytest.mark.parametrize("rule", [*STEPS, *REAL])
def test_a_thousand_texts_have_the_same_tokens(tmp_path, rule):
    "By a rule of one's own vocabulary and by a base's; of bases that are here, by their own tokenizers as well"
    folder = tmp_path/"model"
    if rule in STEPS: save_model(folder, rule)
    else: take_tokenizer(BASES/rule, folder)
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT/"data"/"docs").rglob("*.txt"))[:60]]
    code = [path.read_text(encoding="utf-8") for path in sorted((ROOT/"data"/"code").rglob("*.py"))[:60]]
    texts = list_probe_texts([item["prompt"] for item in ITEMS], [*pages, *code], 1000)
    assert len(texts) == 1000
    write_gguf(folder, tmp_path/"m.gguf", "F16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    engine = open_llama(tmp_path/"m.gguf", 512)
    found = engine.tokenize(texts)
    assert [text for text, one, other in zip(texts, expected, found) if one != other] == []


def take_tokenizer(base, folder):
    "A base's tokenizer beside a model of its architecture that takes no room"
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix != ".safetensors": shutil.copy(path, folder)
    config = json.loads((folder/"config.json").read_text(encoding="utf-8"))
    config |= dict(dtype="float32", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32, intermediate_size=32)
    write_json(folder/"config.json", config)
    from transformers import AutoConfig, AutoModelForCausalLM
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


@pytest.mark.parametrize("changed, words", [
    (dict(formats=["gguf-q3"]), "`export.formats` names 'gguf-q3'"), (dict(formats=[]), "`export.formats` is empty"),
    (dict(min_agreement=["gguf-f16=many"]), "write form=percent"), (dict(min_agreement=[]), "no bound of safetensors")])
def test_bad_parameters_are_a_sentence(project, changed, words):
    with pytest.raises(Invalid, match=words): run(project, **changed)
    assert not (project/"out").exists()
