"The stage `retrieval`: what a change of documents, groups or an embedding model does to its two indices"
import json

import pytest
from search_standin import serve

from forge_nb.core.project import Invalid, ROOT, hash_file, load_params, read_json, read_jsonl, write_csv, write_json, write_jsonl
from forge_nb.data.passages import load_index, search
from forge_nb.retrieval import retrieval

KIND = dict(table="parts.csv", key=["name"], answer="price", ask=["Price of {name}?"], ask_held_out=["What does {name} cost?"], state="{name} costs {answer}.")
STYLE = dict(house="house", unknown_answer="unknown", pattern=r"`(?P<value>[^`]+)` \((?P<source>\S+)\)",
             voices=dict(plain=dict(template="{sentence}", share=1.), house=dict(template="{value} ({source})", share=0.)))
PARAMS = load_params(ROOT/"params.yaml")["retrieval"] | dict(pii=[], pii_patterns=[]) | dict(num_questions=9)


class Company:
    "A made company: three documents of a split each, a table of bolts"
    def __init__(self, root):
        self.root, self.texts = root, {split: [f"The {split} bolt of page {n} is greased with oil number {n}." for n in range(3)] for split in ("train", "valid", "test")}
        self.rows = []
        self.parts = [dict(name=f"bolt M{n}", price=f"{n} EUR", document="") for n in range(2, 8)]
        write_json(root/"questions.yaml", dict(price=KIND)); write_json(root/"style.yaml", STYLE)

    def run(self, **changed) -> dict:
        for split, texts in self.texts.items():
            write_jsonl(self.root/"documents"/f"{split}.jsonl", [dict(id=f"{split}{n}", kind="docs", language="en", source=f"docs/{split}{n}.txt", text=text) for n, text in enumerate(texts)])
        write_jsonl(self.root/"documents"/"lookup.jsonl", [dict(id=f"row{n}", kind="rows", language="", source=f"stock.csv#{n}", text="", record=dict(table="stock", key=None, values=values)) for n, values in enumerate(self.rows)])
        write_csv(self.root/"facts"/"parts.csv", self.parts)
        files = [self.root/name for name in ("documents", "facts", "questions.yaml", "style.yaml", "groups.yaml")]
        return retrieval(*files, **PARAMS | changed, out=self.root/"out")

    def sums(self) -> dict:
        return {p.relative_to(self.root/"out").as_posix(): hash_file(p) for p in sorted((self.root/"out").rglob("*")) if p.is_file()}

    def find(self, index: str, query: str, groups: list = []) -> list:
        return [p["source"] for p in search(load_index(self.root/"out"/index), [query], 9, groups)[0]]


@pytest.fixture
def company(tmp_path): return Company(tmp_path)


def test_every_fact_is_found_and_the_bytes_are_the_same_twice(company):
    metrics = company.run()
    assert (metrics["passages"], metrics["rows"], metrics["train_passages"], metrics["answer@1"], metrics["source@1"]) == (15, 6, 9, 100, 100)
    first = company.sums()
    assert company.run() == metrics and company.sums() == first and not read_jsonl(company.root/"out"/"misses.jsonl")
    assert not {"seconds", "time"} & set(json.dumps(metrics).split('"'))


def test_rows_to_look_up_are_found_in_the_live_index_alone(company):
    company.rows = [dict(nut="washer Kelmos", shelf="B-14")]
    company.run()
    assert company.find("live", "washer Kelmos")[0] == "stock.csv#0" and "stock.csv#0" not in company.find("train", "washer Kelmos")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_documents_outside_training_leave_the_training_index_alone(company, split):
    "Changed, new and erased: the live index follows, the other one keeps its bytes"
    company.run()
    before = company.sums()
    def changed():
        company.run()
        after = company.sums()
        assert {k: v for k, v in after.items() if k.startswith("train/")} == {k: v for k, v in before.items() if k.startswith("train/")}
        assert after["live/passages.jsonl"] != before["live/passages.jsonl"]
    company.texts[split][0] = "Flanges are sealed with wax, und die Häuser auch."; changed()
    assert company.find("live", "wax") == [f"docs/{split}0.txt"] and company.find("train", "wax") == []
    company.texts[split].append("A brand new gasket."); changed()
    assert company.find("live", "gasket") == [f"docs/{split}3.txt"]
    company.texts[split] = [text for text in company.texts[split] if "wax" not in text]; changed()
    assert company.find("live", "wax") == []


def test_an_erased_training_document_is_in_neither_index(company):
    company.texts["train"][0] = "The flange is sealed with wax."
    company.run()
    assert company.find("train", "wax") == company.find("live", "wax") == ["docs/train0.txt"]
    company.texts["train"].pop(0)
    company.run()
    files = [p.read_bytes() for p in (company.root/"out").rglob("*") if p.is_file()]
    assert company.find("train", "wax") == company.find("live", "wax") == [] and not [f for f in files if b"wax" in f or b"flange" in f]


def test_a_fact_that_is_buried_is_written_down(company):
    "Twelve pages bear the row's title and hold more words of the question than the row does: the answer is not among the first ten, and the report can show it"
    company.parts.append(dict(name="washer", price="99 EUR", document=""))
    company.texts["train"] += [f"washer\n======\n\nPage {n}: price of washer? What does washer cost? Washer, price of washer." for n in range(12)]
    metrics = company.run()
    misses = read_jsonl(company.root/"out"/"misses.jsonl")
    assert {m["question"] for m in misses} == {"Price of washer?", "What does washer cost?"} and metrics["answer@5"] == round(100 * 12 / 14, 2)
    assert all(m["answer"] == "99 EUR" and len(m["passages"]) == 3 and m["passages"][0]["source"].startswith("docs/train") for m in misses)


def test_groups_hold_in_the_artifacts(company):
    (company.root/"groups.yaml").write_text('docs/train0.txt: [hr]\n"*": [everyone]\n', encoding="utf-8")
    company.texts["train"][0] = "The flange is sealed with wax."
    company.parts[0]["document"] = "docs/train0.txt"
    assert company.run()["answer@1"] == 100  # measured with every right
    assert company.find("live", "wax") == [] and company.find("live", "wax", ["hr"]) == ["docs/train0.txt"]
    assert len(company.find("live", "EUR")) == 5 and len(company.find("live", "EUR", ["hr"])) == 6
    (company.root/"groups.yaml").write_text("docs: [staff]\n", encoding="utf-8")
    with pytest.raises(Invalid, match="no line fits facts/parts.csv"): company.run()


def save_random_model(folder, seed: int):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(["[PAD]", "[UNK]", "bolt", "price", "oil"])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(seed)
    BertModel(BertConfig(vocab_size=5, max_position_embeddings=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).save_pretrained(folder)


def test_vectors_of_an_embedding_model_are_an_option(company):
    model = company.root/"model"
    save_random_model(model, 0)
    metrics = company.run(embedding_model=str(model))
    assert metrics["passages"] == 15 and company.find("live", "nothing of this") and "live/vectors.npy" in company.sums()
    first = company.sums()
    company.run(embedding_model=str(model))
    assert company.sums() == first and read_json(company.root/"out"/"live"/"manifest.json")["embedding_model"] == str(model)
    save_random_model(model, 1)
    with pytest.raises(Invalid, match="from other weights"): load_index(company.root/"out"/"live")
    with pytest.raises(Invalid, match="which is no folder"): company.run(embedding_model="nosuch")


def test_a_search_server_gets_the_live_passages_and_no_erased_one(company):
    "The stage brings them there, measures the server, and removes what was there before"
    with serve() as server:
        local = company.run()
        assert company.run(server_url=server.url) == local
        company.texts["test"].pop()
        company.run(server_url=server.url)
        [index] = server.state["indices"].values()
        assert len(index["documents"]) == 14 and "test bolt of page 2" not in json.dumps(index)
