"GGUF files: the tokenizer's tokens, the template's prompt, transformers' answers; what cannot be written is a sentence"
import httpx2
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config,
                          Qwen3ForCausalLM)

from forge_nb.core.project import Invalid, NotFound, ROOT, read_json, write_json
from forge_nb.evals.llama import start_llama
from forge_nb.evals.llm_judge import Judge, JudgeConfig, grade_by_rubric, judge_pairs, open_judge
from forge_nb.ops.gguf import generate_answer, hash_model_folder, prepare_gguf, write_gguf

SPECIAL = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = ("{%- for message in messages -%}{%- if message.role == 'assistant' -%}<|assistant|>{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
            "{%- else -%}<|{{ message.role }}|>{{ message.content }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}")
TEXTS = ["What is the default value of DEBUG?", "  two  blanks\t and\n\n a   line's end \n", "it's we'll THEY'RE don’t", "fields.W901 SESSION_COOKIE_AGE=1209600, 3.14159",
         "naïve Häuser 東京都庁 ภาษา العربية", "🙂👩‍💻 e\u0301 \u200b\ufeff", "a<|end|>b <|assistant|><|user|>", "<|en d|>", "", "\r\n\x00\x07", "x" * 300, "0" * 50, "::{}[]()…—–"]
STEPS = {"gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
         "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])}


def save_model(folder, architecture: str = "qwen3", rule: str = "gpt-2", tied: bool = True, dtype=torch.float32):
    "A random model with a tokenizer trained on a page of the manuals"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = STEPS[rule], decoders.ByteLevel()
    text = (ROOT/"data"/"docs"/"ref"/"settings.txt").read_text(encoding="utf-8")[:50_000]
    bpe.train_from_iterator([text], trainers.BpeTrainer(vocab_size=800, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(3)
    config, kind = dict(qwen3=(Qwen3Config, Qwen3ForCausalLM), llama=(LlamaConfig, LlamaForCausalLM))[architecture]
    model = kind(config(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96,
                        max_position_embeddings=512, tie_word_embeddings=tied, eos_token_id=0, pad_token_id=1, bos_token_id=None))
    for weights in model.parameters(): weights.data.mul_(1.5)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def start(folder, out, kind: str = "F32"):
    write_gguf(folder, out, kind)
    return start_llama(out, 512)


@pytest.mark.parametrize("rule", STEPS)
def test_tokens_are_the_tokenizers(tmp_path, rule, monkeypatch):
    folder = save_model(tmp_path/"model", rule=rule)
    monkeypatch.setattr("secrets.token_hex", lambda: "known")
    server, tokenizer = start(folder, tmp_path/"m.gguf"), AutoTokenizer.from_pretrained(folder)
    client = httpx2.Client(base_url=server.listening_address, headers={"Authorization": "Bearer known"})
    for text in [*TEXTS, (ROOT/"data"/"docs"/"intro"/"tutorial01.txt").read_text(encoding="utf-8")]:
        tokens = client.post("/tokenize", json=dict(content=text, parse_special=True)).json()["tokens"]
        assert tokens == tokenizer(text, add_special_tokens=False)["input_ids"], text[:60]
    turns = [dict(role="user", content="What?"), dict(role="assistant", content="That."), dict(role="user", content="Which?")]
    prompt = client.post("/apply-template", json=dict(messages=turns)).json()["prompt"]
    assert prompt == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def test_the_port_answers_nobody_without_the_key(tmp_path):
    server = start(save_model(tmp_path/"model"), tmp_path/"m.gguf")
    assert httpx2.post(f"{server.listening_address}/completion", json=dict(prompt="a")).status_code == 401
    assert server.listening_address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("architecture, tied", [("qwen3", True), ("qwen3", False), ("llama", True), ("llama", False)])
def test_answers_are_those_of_transformers(tmp_path, architecture, tied):
    folder = save_model(tmp_path/"model", architecture, tied=tied)
    server, model, tokenizer = start(folder, tmp_path/"m.gguf"), AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS[:6]:
        ids = tokenizer.apply_chat_template([dict(role="user", content=text)], add_generation_prompt=True, return_tensors="pt")["input_ids"]
        expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)[0, ids.shape[1]:].tolist()
        assert generate_answer(server, text, 16)["tokens"] == expected, text


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_weights_in_bfloat16_answer_as_transformers_in_float32(tmp_path, architecture):
    "What a base's folder holds: F16 loses nothing of such weights, and the answers are those of the wider computation"
    folder = save_model(tmp_path/"model", architecture, dtype=torch.bfloat16)
    with safe_open(folder/"model.safetensors", "pt") as file: assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
    server, tokenizer = start(folder, tmp_path/"m.gguf", "F16"), AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for text in TEXTS[:6]:
        ids = tokenizer.apply_chat_template([dict(role="user", content=text)], add_generation_prompt=True, return_tensors="pt")["input_ids"]
        expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)[0, ids.shape[1]:].tolist()
        assert generate_answer(server, text, 16)["tokens"] == expected, text


def test_the_same_model_gives_the_same_bytes_and_another_one_another_file(tmp_path):
    folder = save_model(tmp_path/"model")
    for name in "ab": write_gguf(folder, tmp_path/name, "Q8_0")
    assert (tmp_path/"a").read_bytes() == (tmp_path/"b").read_bytes()
    before = hash_model_folder(folder)
    for name in ("chat_template.jinja", "config.json", "tokenizer.json"):
        path = folder/name
        text = path.read_text(encoding="utf-8")
        path.write_text(text + " ", encoding="utf-8")
        assert hash_model_folder(folder) != before
        path.write_text(text, encoding="utf-8")
    assert hash_model_folder(folder) == before


@pytest.mark.parametrize("file, change, words", [
    ("config.json", dict(model_type="mixtral"), "its architecture is mixtral"),
    ("config.json", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1.)), "`rope_type` is dynamic"),
    ("config.json", dict(vocab_size=900), "no token is number 800"),
    ("tokenizer.json", dict(normalizer=dict(type="NFC")), "by none of the rules gpt-2, smollm")])
def test_what_cannot_be_written_is_a_sentence(tmp_path, file, change, words):
    folder = save_model(tmp_path/"model")
    write_json(folder/file, read_json(folder/file) | change)
    with pytest.raises(Invalid, match=words): write_gguf(folder, tmp_path/"m.gguf")
    assert not list(tmp_path.glob("*m.gguf*"))


def test_without_a_model_the_command_that_trains_it_is_named(tmp_path):
    with pytest.raises(NotFound, match="`make run` trains it"): prepare_gguf(tmp_path/"model", tmp_path/"cache")


def test_a_killed_write_is_made_again(tmp_path, monkeypatch):
    folder, cache = save_model(tmp_path/"model"), tmp_path/"cache"
    monkeypatch.setattr("forge_nb.ops.gguf.add_weights", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError): prepare_gguf(folder, cache)
    assert not list(cache.glob("*"))
    monkeypatch.undo()
    assert prepare_gguf(folder, cache).exists()


def test_a_file_judges_within_its_grammar_and_what_is_too_long_costs_its_pair(tmp_path):
    "A random model would say anything: held to the grammar, all that it says is a verdict, and asked again it is read from what was kept"
    write_gguf(save_model(tmp_path/"model"), tmp_path/"m.gguf", "F32")
    config = JudgeConfig(gguf=str(tmp_path/"m.gguf"))
    pair = dict(id="p", question="What?", answer_a="3 EUR", answer_b="4 EUR")
    def run(ask):
        judge = Judge(config, ask, tmp_path/"kept")
        return judge_pairs(judge, [pair]), grade_by_rubric(judge, [dict(id="p", question="What?", answer="3 EUR")], "5 is right.")
    with open_judge(config) as ask:
        [judged], [graded] = first = run(ask)
        [refused] = judge_pairs(Judge(config, ask, tmp_path/"kept"), [pair | dict(id="long", answer_a="bolt " * 9000)])
    assert len(judged["replies"]) == 4 and all(reply["place"] for reply in judged["replies"]) and 1 <= graded["score"] <= 5
    assert refused["verdict"] == "unreadable" and all(reply["error"] for reply in refused["replies"])
    assert run(None) == first
