"Chat: what is shown is what was written, whatever is written; passages of other groups never reach it; a page without a kernel"
import shutil
from html.parser import HTMLParser

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from forge_nb.core.project import ROOT, Invalid, write_jsonl
from forge_nb.data.passages import build_index, make_document_passages, save_index
from forge_nb.ops.chat import (ChatPanel, ChatReply, WrittenToken, ask_example, ask_models, find_chat_model, generate_tokens, open_chat, open_speaker,
                               render_replies)
from forge_nb.train.model import generate_texts

TEXTS = {"docs/bolts.txt": "Bolts\n=====\n\nA bolt <script>alert(1)</script> costs 3 EUR.\n", "hr/pay.txt": "A bolt fitter is paid 9000 zloty.\n"}
HOSTILE = "</span><script>x</script>\" ' onmouseover=\"y\" &lt; <img src=x onerror=y> \u2028 ]]> -->"


class Shown(HTMLParser):
    "Tags, attributes and text of a page"
    def __init__(self, page):
        super().__init__()
        self.tags, self.names, self.text = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.names |= {name for name, _ in attributes}

    def handle_data(self, data): self.text += data


def save_model(folder):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator([*TEXTS.values()], trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>", "<|user|>", "<|assistant|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                                         intermediate_size=48, max_position_embeddings=512, eos_token_id=0, pad_token_id=0))
    for weights in model.parameters(): weights.data.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def project(tmp_path):
    documents = [dict(id=s, kind="docs", language="en", source=s, text=t) for s, t in TEXTS.items()]
    save_index(build_index(make_document_passages(documents, {"hr": ["hr"], "*": ["everyone"]}, "en", 7000)), tmp_path/"artifacts"/"retrieval"/"live")
    for name in ("config", "company"): shutil.copytree(ROOT/name, tmp_path/name)
    shutil.copy(ROOT/"params.yaml", tmp_path)
    return tmp_path


def test_whatever_is_written_is_shown_and_nothing_of_it_runs():
    passage = dict(id=HOSTILE, source=HOSTILE, line=1, title=HOSTILE, text=HOSTILE)
    tokens = [WrittenToken(HOSTILE, .5, ((HOSTILE, .5),)), WrittenToken("", 1., (("<|end|>", 1.),), is_end=True)]
    shown = Shown(render_replies([ChatReply(HOSTILE, HOSTILE, [passage], tokens, cited=HOSTILE, has_searched=True)] * 2))
    assert not shown.tags & {"script", "img"} and shown.names <= {"class", "style", "title"}
    assert shown.text.count(HOSTILE) == 1 + 2 * 3 + 2 * 3  # the question, each name, answer and passage, and title, source and id of each


def test_tokens_are_those_of_generate_and_characters_stay_whole(project):
    save_model(project/"artifacts"/"rl"/"model")
    speaker = open_speaker(find_chat_model(project, "rl"))
    tokens = [*generate_tokens(speaker.model, speaker.tokenizer, "<|user|>bolt<|assistant|>", max_new_tokens=40)]
    [(text, _)] = generate_texts(speaker.model, speaker.tokenizer, ["<|user|>bolt<|assistant|>"], max_new_tokens=40)
    assert "".join(token.text for token in tokens) == text.rstrip("\ufffd") and len(tokens) > 5
    assert all(1 >= token.probability == max(p for _, p in token.alternatives) for token in tokens)


def test_a_project_is_asked_with_passages_that_everybody_may_read(project):
    save_model(project/"artifacts"/"rl"/"model")
    room = open_chat(project)
    page = ask_models(room, ["rl"], "What is a bolt fitter paid, and what costs a bolt?")
    assert "docs/bolts.txt" in page and "hr/pay" not in page and "<script>" not in page
    *_, without = room.ask("rl", "What costs a bolt?", with_passages=False)
    assert not without.shown and not without.has_searched
    panel = ChatPanel(room)
    assert panel.widgets.first.value == "rl" and panel.widgets.searches.value
    panel.widgets.question.value = "What costs a bolt? " * 200
    panel.widgets.send.click()
    assert "ask in fewer words" in panel.widgets.shown.value


def test_without_a_model_the_page_says_what_makes_one(project):
    room = open_chat(project)
    write_jsonl(project/"artifacts"/"synth"/"eval_set"/"items.jsonl", [dict(question="bolt?")])
    assert "make run" in ask_example(project, room)
    with pytest.raises(Invalid, match="no model yet"): ChatPanel(room)
    (project/"artifacts"/"rl"/"model").mkdir(parents=True)
    with pytest.raises(Invalid, match="no model yet"): find_chat_model(project, "rl")
