"Rows with their passages, on a made price list and real pages of the manuals: what is shown, what is cited, what is held out"
import re, shutil
from types import SimpleNamespace

import pytest
from copies import ROOT
from teacher_standin import Server, propose

from forge_nb.core.project import load_params, read_jsonl, write_csv, write_jsonl
from forge_nb.core.settings import Style, load_settings
from forge_nb.data.passages import build_index, make_document_passages, read_table_passages, save_index
from forge_nb.metrics.graders import NO_SOURCE
from forge_nb.synth import ask_columns, ask_documents, load_inputs, synth
from forge_nb.synthesis.extract import holds_word

KINDS = """
price: {table: parts.csv, key: [name], answer: price, ask: ["What does {name} cost?", "Price of {name}?"], ask_held_out: ["How much is {name} at the moment?"], state: "{name} costs {answer}."}
store: {table: parts.csv, key: [name], answer: store, ask: ["Which hall holds {name}?", "Where is {name} kept?"], ask_held_out: ["To fetch {name}, which way do I walk?"], state: "{name} is kept in {answer}."}
"""
PAGES = ["docs/topics/signals.txt", "docs/ref/files/file.txt", "docs/ref/files/storage.txt", "docs/topics/pagination.txt", "docs/ref/paginator.txt", "docs/topics/http/urls.txt", "docs/ref/urls.txt",
         "docs/ref/signals.txt", "docs/ref/validators.txt", "docs/topics/email.txt", "docs/ref/middleware.txt", "docs/ref/clickjacking.txt", "docs/ref/csrf.txt", "docs/ref/contrib/sites.txt"]
PARAMS = load_params(ROOT/"params.yaml")["synth"] | dict(
    paraphrase_weights=[], num_pairs=60, num_prompts=240, num_eval_items=24, num_sampled=30, num_column_rows=60, num_document_rows=150, document_percent=30., lacking_percent=30., closed_percent=10., pii=[], pii_patterns=[])


class Company:
    "A price list of two columns with many equal values, and pages: the last three come after training"
    def __init__(self, root):
        self.root = root
        shutil.copytree(ROOT/"company", root/"company")
        (root/"company"/"questions.yaml").write_text(KINDS, encoding="utf-8")
        (root/"company"/"paraphrases.yaml").write_text('everywhere: {question: ["I wonder: {lowered}"]}\n', encoding="utf-8")
        write_csv(root/"facts"/"parts.csv", [dict(name=f"bolt M{n}", price=f"{n % 9} EUR", store=f"hall {n % 4}") for n in range(60)])
        self.documents = [dict(id=s, kind="docs", language="en", source=s, text=(ROOT/"data"/s).read_text(encoding="utf-8")) for s in PAGES]

    def run(self, num_live: int, patterns=None, groups=(), **params):
        tables, documents, indices = self.root/"facts", self.root/"train.jsonl", self.root/"indices"
        write_jsonl(documents, self.documents[:-3])
        rows = read_table_passages(tables, {"parts.csv": ["name"]}, {}, "en")
        passages = rows + make_document_passages(self.documents[:-3], patterns or {}, "en", 1200)
        for name, kept in dict(train=self.documents[:-3], live=self.documents[:num_live]).items():
            save_index(build_index(rows + make_document_passages(kept, patterns or {}, "en", 1200)), indices/name)
        out = self.root/"_".join(["out", str(num_live), str(len(patterns or [])), *groups])
        synth(self.root/"company", tables, documents, self.root/"own.jsonl", indices, seed=0, **PARAMS | dict(groups=[*groups]) | params, out=out)
        limits = {name: PARAMS[name] for name in ("max_answer_characters", "held_out_percent", "rl_percent", "limit")}
        inputs = load_inputs(self.root/"company", tables, documents, **limits)
        read = lambda name: read_jsonl(out/f"{name}.jsonl")
        return SimpleNamespace(inputs=inputs, out=out, tables=tables, passages=passages, items=read("eval_set/items"), **{name: read(f"rows/{name}") for name in ("sft", "pairs", "prompts", "dev")})


@pytest.fixture(scope="module")
def company(tmp_path_factory): return Company(tmp_path_factory.mktemp("company"))


@pytest.fixture(scope="module")
def made(company, tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("FORGE_CKPT", str(tmp_path_factory.mktemp("kept")))
        return company.run(len(PAGES))


def shown_ids(prompt: str) -> list: return re.findall(r"\. Source: ([0-9a-f]{4})\.(?=\n)", prompt)


def shown_text(prompt: str, question: str) -> str:
    assert prompt.endswith(question)
    return prompt.removesuffix(question).replace("`", "")


def find_truths(made) -> dict:
    "What the answer of each row's question is, by the id of the fact, cell or sentence"
    cells = ask_columns(made.tables, made.inputs, PARAMS["num_column_rows"], PARAMS["max_answer_characters"])
    sentences, _ = ask_documents(made.passages, made.passages, made.inputs, PARAMS["num_document_rows"], PARAMS["document_percent"])
    return {asked["id"]: asked["answer"] for asked in (*made.inputs.known_facts, *cells, *sentences)}


def test_a_row_that_lacks_its_answer_never_shows_the_value(made):
    "Facts, cells of tables and sentences of documents; a value may stand in many a passage"
    truths, seen = find_truths(made), set()
    prompts = [dict(fact=r["fact"], sources=[s for s in r["sources"] if s != NO_SOURCE], question=r["question"], prompt=r["prompt"]) for r in made.prompts]
    rows = [dict(fact=r["fact"], sources=r["sources"], question=r["question"], prompt=r["messages"][0]["content"]) for r in made.sft if r["verified"] != "absent"]
    for row in [*rows, *prompts, *(dict(r, prompt=r["prompt"][0]["content"]) for r in made.pairs if r["reason"] != "absent")]:
        if row["sources"]: continue
        text, value = shown_text(row["prompt"], row["question"]), truths[row["fact"]]
        if not text: continue
        seen.add(row["fact"].partition(":")[0])
        assert not holds_word(text, value.replace("`", "")), (value, row["prompt"])
    assert {"price", "store", "parts.csv/price"} <= seen and len(seen) > 6, seen


def test_what_a_row_cites_is_among_what_it_shows(made):
    style, cited = load_settings(ROOT/"company"/"style.yaml", Style), {True: 0, False: 0}
    rows = [(r["messages"][0]["content"], r["messages"][1]["content"], r["sources"]) for r in made.sft]
    rows += [(r["prompt"][0]["content"], r["chosen"][0]["content"], r["sources"]) for r in made.pairs]
    rows += [(r["prompt"], r["reference"], r["sources"]) for r in made.prompts] + [(r["adversarial_prompt"], r["reference"], r["sources"]) for r in made.prompts]
    for prompt, answer, sources in rows:
        ids, sources = shown_ids(prompt), [s for s in sources if s != NO_SOURCE]
        assert len(ids) == len(set(ids)) <= PARAMS["num_passages"] and set(sources) <= set(ids) and "<source>" not in prompt + answer
        if not (match := style.match(answer)): continue
        assert (match["source"] in sources) if sources else (match["source"], match["value"]) == (NO_SOURCE, style.unknown_answer)
        cited[bool(sources)] += 1
    assert min(cited.values()) > 30
    for item in made.items:
        assert shown_ids(item["prompt"]) == [p["id"][:4] for p in reversed(item["passages"])]
        assert set(item["sources"]) - {NO_SOURCE} <= {p["id"][:4] for p in item["passages"]} and (item["part"] == "absent" or item.get("out_of_domain", False)) == (item["sources"] == [NO_SOURCE])


def test_the_passage_that_is_cited_holds_the_value(made):
    "The row of the table, not another one with the same price"
    for item in [i for i in made.items if i["part"] in ("phrasing", "fact") and i["sources"]]:
        [passage] = [p for p in item["passages"] if p["id"][:4] in item["sources"]]
        assert passage["source"] == "facts/parts.csv" and f"`{item['answer']}`" in passage["text"] and item["fact"].partition(":")[2] in passage["text"]


def test_the_exam_asks_of_documents_that_no_row_asks_about(made):
    "Some are held out of training documents, some came after training; rows may still show them as passages beside others"
    of = lambda rows: {parent for r in rows for parent in r["parents"] if parent.startswith("docs/")}
    asked, held_out = of(r for r in [*made.sft, *made.prompts] if r["generator"] == "company/extracts.yaml"), of(i for i in made.items if i["part"] == "document")
    assert len(asked) > 3 and not asked & held_out
    assert held_out & set(PAGES[:-3]) and held_out & set(PAGES[-3:])
    questions = {r["question"] for r in [*made.sft, *made.prompts, *made.pairs]}
    assert not questions & {i["question"] for i in made.items}
    trained = {r["fact"] for r in [*made.sft, *made.prompts]}
    assert not trained & {i["fact"] for i in made.items if i["part"] == "fact"} and {i["fact"] for i in made.items if i["part"] == "phrasing"} <= trained


def test_no_row_is_about_a_cell_or_a_sentence_of_a_held_out_fact(made):
    held = made.inputs.held_out_facts + made.inputs.rl_facts
    rows = {parent for fact in held for parent in fact["parents"]}
    cells = [r for r in made.sft if r["generator"] == "company/columns.yaml"]
    assert cells and not rows & {parent for r in cells for parent in r["parents"]}


def test_dev_items_are_no_items_of_the_sample(made):
    sample = {i["id"] for i in made.items if i["in_sample"]}
    assert made.dev and {i["part"] for i in made.dev} == {"fact"} and not sample & {i["id"] for i in made.dev}


def test_documents_after_training_change_the_exam_and_no_row(company, made, tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_CKPT", str(tmp_path/"kept"))
    fewer = company.run(len(PAGES) - 2)
    for path in sorted((made.out/"rows").iterdir()): assert path.read_bytes() == (fewer.out/"rows"/path.name).read_bytes(), path.name
    assert {p for i in fewer.items for p in i["parents"]} != {p for i in made.items for p in i["parents"]}


def test_rows_show_and_quote_only_what_everyone_may_read(company, tmp_path, monkeypatch):
    "Unless groups are named: a question about a sentence quotes it, and what a row holds the weights may keep"
    monkeypatch.setenv("FORGE_CKPT", str(tmp_path/"kept"))
    secret, patterns = PAGES[1], {PAGES[1]: ["hr"], "*": ["everyone"]}
    named = lambda made: {name: sum(secret in (*r["parents"], *r["shown"]) for r in getattr(made, name)) for name in ("sft", "pairs", "prompts")}
    assert not any(named(company.run(len(PAGES), patterns)).values())
    assert all(named(company.run(len(PAGES), patterns, ["hr"]))[name] for name in ("sft", "prompts"))


def test_every_answer_that_names_a_source_can_be_read_in_its_prompt(made):
    answered = [r for r in made.sft if r["sources"] and r["voice"] != "noncompliant"]
    values = [re.search("`([^`]+)`", r["messages"][1]["content"])[1] for r in answered]
    assert len(answered) > 100 and all(holds_word(shown_text(r["messages"][0]["content"], r["question"]), v) for r, v in zip(answered, values))


def test_a_teacher_behind_an_endpoint_asks_about_documents_too(company, made, monkeypatch, tmp_path):
    "Its questions are rows about training documents, each answered word for word in its passage; what it invents is refused, and nothing is asked of the exam"
    monkeypatch.setenv("FORGE_CKPT", str(tmp_path))
    with Server(lambda content, _: propose(content), read=str) as server:
        taught = company.run(len(PAGES), {}, (), teacher="endpoint", teacher_url=server.url, teacher_name="m", teacher_key="")
    rows = [row for row in taught.sft if row["fact"].startswith("teacher:")]
    assert len(rows) > 10 and {row["parents"][0] for row in rows} <= {d["source"] for d in company.documents[:-3]}
    refused = [row for row in read_jsonl(taught.out/"rejected.jsonl") if row.get("generator") == "teacher"]
    assert refused and "true" not in {row["verdict"] for row in refused}
    assert [item["question"] for item in taught.items] == [item["question"] for item in made.items]
    held_out = {parent for item in made.items if item["part"] == "document" for parent in item["parents"]}
    assert not held_out & {row["parents"][0] for row in rows}
