"Rows and cells that are forgotten, on material that is read and curated for real: files keep every other byte, and nothing moves"
import json, shutil, sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_curate import corpus, run

from forge_nb.core.dvc import run_dvc
from forge_nb.core.project import ROOT, Invalid, NotFound, read_jsonl
from forge_nb.ops.erasure import (check_cells, describe_row, plan_erasure, read_journal, read_row_documents, remove_from_data,
                                  remove_old_data, start_journal, undo_erasure)
from forge_nb.ops.feedback import feedback
from forge_nb.ops.inventory import describe_raw_file, inventory, list_raw_files, resolve_targets
from forge_nb.ops.kept_words import remove_kept_lines
from forge_nb.ops.lineage import format_whereis, whereis
from forge_nb.ops.receipt import Receipt, list_removals, prove_erasure
from forge_nb.ops.request_log import make_logged_message
from forge_nb.ops.rewrite import empty_cells

PIPELINE = """stages:
  curate: {cmd: x, deps: [data], outs: [artifacts/curate/documents, artifacts/curate/rows, artifacts/curate/dropped.jsonl]}
  pretrain: {cmd: x, deps: [artifacts/curate/documents/train.jsonl], outs: [artifacts/pretrain/model]}
  sft: {cmd: x, deps: [artifacts/curate/rows/train.jsonl, artifacts/curate/rows/test.jsonl], outs: [artifacts/sft/model]}
"""
CUSTOMERS = [f"customer {n};The {n}th pump hums on the upper floor, and nobody who works there minds at all;{n}" for n in range(30)]


@pytest.fixture
def project(tmp_path) -> Path:
    "A project with documents, a table, conversations and a file whose name is private, curated"
    data = tmp_path/"data"
    corpus(data, 0)
    (data/"list.csv").write_bytes("\r\n".join(["name;remark;count", *CUSTOMERS, '"Ann ""A"" Lee";"calls\r\ntwice a week about the valve of hall seven and the lamp over its gate";3', ""]).encode())
    turns = lambda n: [dict(role="user", content=f"Which seal fits the pump number {n} in the hall?"), dict(role="assistant", content=f"Seal {n * 7} of the list.")]
    (data/"chats.jsonl").write_text("".join(json.dumps(dict(messages=turns(n))) + "\n" for n in range(40)), encoding="utf-8")
    (data/"chats copy.json").write_text(json.dumps([dict(messages=turns(n)) for n in (3, 90, 91)], indent=2), encoding="utf-8")
    (data/"Maria Meier CV.md").write_text("# Work\n\n" + "She mended every pump of the southern works, from the cellar up to the roof.\n" * 3, encoding="utf-8")
    (data/"facts").mkdir()
    (data/"facts"/"parts.csv").write_text("name;shelf\nbolt M3;4\nnut of Ann Lee;7\nwasher;9\n", encoding="utf-8")
    (tmp_path/"params.yaml").write_text("shared: {dedup_threshold: 0.75, pii: [email, phone, ip, iban, card, key], pii_patterns: []}\n", encoding="utf-8")
    (tmp_path/"dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    for name in ("pretrain", "sft"):
        (tmp_path/"artifacts"/name/"model").mkdir(parents=True)
        for file in ("config.json", "model.onnx"): (tmp_path/"artifacts"/name/"model"/file).write_text("{}", encoding="utf-8")
    prepare(tmp_path)
    return tmp_path


def prepare(root: Path):
    "Read and curate the project's data, and write its checksums"
    run(root/"data", root/"artifacts", validation_percent=20., test_percent=20.)
    lines = [f"{describe_raw_file(path)['sha256']}  {name}\n" for name, path in list_raw_files(root/"data").items()]
    (root/"data"/"SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def places(root: Path) -> dict:
    "Split of every document and row, by its source"
    return {d["source"]: (d["split"], d["id"]) for d in inventory(root)}


def erase(root: Path, *requested: str, **options) -> dict:
    "Take out what is asked for, curate again, and search for it; the journal with the proof"
    journal = start_journal(root, list(requested), plan_erasure(root, list(requested), options.get("query", ""), options.get("keep", False)), [])
    for _ in range(2): remove_from_data(root, journal)
    for path in ("ingest", "curate"): shutil.rmtree(root/"artifacts"/path)
    prepare(root)
    return journal | dict(proof=prove_erasure(root, journal))


def test_rows_leave_their_files_and_nothing_else_moves(project):
    data, before = project/"data", places(project)
    lines, table = (data/"chats.jsonl").read_text(encoding="utf-8").splitlines(), (data/"list.csv").read_bytes()
    journal = erase(project, "chats.jsonl#4", "list.csv#31", "parts.csv:3")
    assert {(row["source"], row["reason"]) for row in journal["rows"]} == {
        ("chats.jsonl#4", "asked for"), ("chats copy.json#1", "same content"), ("list.csv#31", "asked for"), ("parts.csv:3", "asked for")}
    assert (data/"chats.jsonl").read_text(encoding="utf-8").splitlines() == lines[:3] + [""] + lines[4:]
    assert [bool(record) for record in json.loads((data/"chats copy.json").read_text(encoding="utf-8"))] == [False, True, True]
    assert (data/"list.csv").read_bytes() == table[:table.index(b'"Ann')] + b";;\r\n"
    assert (data/"facts"/"parts.csv").read_text(encoding="utf-8") == "name;shelf\nbolt M3;4\nwasher;9\n"
    assert places(project) == {source: way for source, way in before.items() if source not in {row["source"] for row in journal["rows"]}}
    assert journal["before"]["ids"] >= 2 and journal["before"]["ngrams"] > 0
    assert not journal["proof"]["traces"], journal["proof"]["traces"]


def test_the_models_that_had_learned_are_named(project):
    rows = {d["source"]: d["split"] for d in inventory(project) if d["kind"] == "chat"}
    learned, held = next(s for s in rows if rows[s] == "train"), next(s for s in rows if rows[s] == "test")
    for source, models in {learned: ["artifacts/sft/model"], held: []}.items():
        journal = start_journal(project, [source], plan_erasure(project, [source], "", True), [])
        assert [m["path"] for m in journal["learned"]] == models, source
    [d] = whereis(project, [learned]).documents
    assert d.kind == "chat" and [m.path for m in d.models] == ["artifacts/sft/model"] and d.summary.startswith("trained on")


def test_words_find_rows_and_not_the_files_that_hold_them(project):
    plan = plan_erasure(project, [], "ann lee", False)
    assert [row.source for row in plan.rows] == ["parts.csv:3"] and not plan.removed and not plan.tables
    plan = plan_erasure(project, [], "calls twice a week about the valve", False)
    assert [row.source for row in plan.rows] == ["list.csv#31"]
    with pytest.raises(NotFound, match="its rows are 2 to 4"): resolve_targets(["facts/parts.csv:9"], "", [], project)


def test_a_row_that_cannot_be_cut_out_is_one_sentence(project):
    import pyarrow as pa
    from pyarrow import parquet
    parquet.write_table(pa.table(dict(name=["pump", "valve"], remark=[f"It stands in hall {n}, beside the gate and below the lamp that stays lit." for n in range(2)])), project/"data"/"stock.parquet")
    prepare(project)
    with pytest.raises(Invalid, match="take it out yourself with the program"): plan_erasure(project, ["stock.parquet#1"], "", False)
    assert plan_erasure(project, ["stock.parquet"], "", False).removed[0].path == "stock.parquet"


def test_a_file_with_a_private_name_is_found_by_it_and_by_what_stands_downstream(project):
    [masked] = [d["source"] for d in read_jsonl(project/"artifacts/curate/dropped.jsonl") + [d for s in ("train", "valid", "test") for d in read_jsonl(project/f"artifacts/curate/documents/{s}.jsonl")] if "[name]" in d["source"]]
    assert "Maria" not in masked
    for name in ("Maria Meier CV.md", "data/Maria Meier CV.md", masked):
        [d] = whereis(project, [name]).documents
        assert d.path == "data/Maria Meier CV.md" and d.bytes, name
    journal = erase(project, "Maria Meier CV.md")
    assert journal["before"]["paths"] > 0 and not journal["proof"]["traces"]
    assert not (project/"data"/"Maria Meier CV.md").exists()


QUOTED = b'"name","note"\r\n"bolt","a ""big"" one,\r\nof two lines"\r\n"nut","x"\r\n'


@pytest.mark.parametrize("name, raw, number, column, old, new", [
    ("a.csv", QUOTED, 1, "note", b'"a ""big"" one,\r\nof two lines"', b'""'),
    ("a.csv", b"\xef\xbb\xbfname;note;n\nbolt;big;3\nnut;x;4", 2, "n", b"x;4", b"x;"),
    ("a.csv", b"sep=|\r\nname|note\r\nbolt|M\xfcller\r\nnut|x\r\n", 1, "note", b"M\xfcller", b""),
    ("a.tsv", b'name\tnote\nbolt\t5" wide\nnut\tx\n', 1, "note", b'5" wide', b""),
    ("a.csv", b"stock of the north;;\nname;;n\nbolt;big;3\nnut;x;4\n", 1, "column 2", b"big", b""),
    ("a.jsonl", b'{"name" : "bolt", "note": {"a": [1, "}"]}, "n": 1.50}\r\n\r\n{"name": "nut"}\r\n', 1, "note", b'{"a": [1, "}"]}', b'""'),
    ("a.json", b'{"site": "north", "rows": [{"name": "bolt"},\n  {"n": 1e3, "name":"nut"}]}', 2, "n", b"1e3", b'""')])
def test_a_cell_is_emptied_and_every_other_byte_kept(name, raw, number, column, old, new):
    only = lambda n, _: [column] if n == number else []
    emptied = empty_cells(raw, name, only)
    assert raw.count(old) == 1 and emptied == raw.replace(old, new)
    assert empty_cells(emptied, name, only) == emptied


@pytest.fixture
def cells(project) -> Path:
    "The project with a copy of the row, with orders as JSON Lines, and a long note in a table of facts"
    data = project/"data"
    last = (data/"list.csv").read_bytes().split(b"29\r\n")[1]
    (data/"old").mkdir()
    (data/"old"/"list.csv").write_bytes(b"name;remark;count\r\nBo;short;1\r\n" + last)
    order = lambda n: dict(customer=f"The company on hill number {n}, behind the bridge of the old mill", phone=f"0{n}-555", sum=n + .5)
    (data/"orders.jsonl").write_text("".join(json.dumps(order(n)) + "\n" for n in range(30)), encoding="utf-8")
    (data/"facts"/"pumps.csv").write_text("name;note\nP-1;hums\nP-2;was mended by Ann Lee on the night before the works were opened again\n", encoding="utf-8")
    prepare(project)
    return project


WANTED = ("list.csv#31@remark", "orders.jsonl#4@customer", "facts/pumps.csv:3@note")


def test_cells_are_emptied_and_their_rows_stay(cells):
    data, before = cells/"data", places(cells)
    files = {name: (data/name).read_bytes() for name in ("list.csv", "old/list.csv", "orders.jsonl", "facts/pumps.csv")}
    journal = erase(cells, *WANTED)
    rows = {(row["source"], row["column"], row["reason"]) for row in journal["rows"]}
    assert rows == {("list.csv#31", "remark", "asked for"), ("old/list.csv#2", "remark", "same content"),
                    ("orders.jsonl#4", "customer", "asked for"), ("pumps.csv:3", "note", "asked for")}
    note = b'"calls\r\ntwice a week about the valve of hall seven and the lamp over its gate"'
    for name in ("list.csv", "old/list.csv"): assert (data/name).read_bytes() == files[name].replace(note, b'""'), name
    customer = b'"The company on hill number 3, behind the bridge of the old mill"'
    assert (data/"orders.jsonl").read_bytes() == files["orders.jsonl"].replace(customer, b'""')
    assert (data/"facts/pumps.csv").read_bytes() == b"name;note\nP-1;hums\nP-2;\n"
    after, named = places(cells), {row["source"] for row in journal["rows"]} - {"pumps.csv:3"}
    assert {s: way for s, way in after.items() if s not in named} == {s: way for s, way in before.items() if s not in named}
    assert named <= set(after) and all(after[s][1] != before[s][1] for s in named) and after["orders.jsonl#4"][0] == before["orders.jsonl#4"][0]
    assert journal["before"]["ids"] >= 2 and journal["before"]["ngrams"] > 0 == journal["before"]["paths"]
    assert not journal["proof"]["traces"], journal["proof"]["traces"]
    for words in ("valve", "bridge", "the night"): assert words not in json.dumps(journal["rows"]) + (cells/"data/SHA256SUMS").read_text(encoding="utf-8")


def test_a_leftover_of_a_cell_is_found(cells):
    journal = erase(cells, *WANTED)
    [old] = [row["ids"] for row in journal["rows"] if row["source"] == "orders.jsonl#4"]
    left = cells/"artifacts/pretrain/model/notes.jsonl"
    for planted in (dict(id=old[0]), dict(text="It was mended by Ann Lee on the night before the works were opened."), dict(text="twice a week about the valve of hall seven")):
        left.write_text(json.dumps(planted) + "\n", encoding="utf-8")
        assert [t["file"] for t in prove_erasure(cells, journal)["traces"]] == ["artifacts/pretrain/model/notes.jsonl"], planted
    left.write_text(json.dumps(dict(source="orders.jsonl#4", text="The number 3-555 of orders.jsonl#4")) + "\n", encoding="utf-8")
    assert not prove_erasure(cells, journal)["traces"]


def test_copies_of_a_row_keep_their_cell_on_request(cells):
    journal = erase(cells, "list.csv#31@remark", keep=True)
    assert [row["source"] for row in journal["rows"]] == ["list.csv#31"] and [d["source"] for d in journal["kept_duplicates"]] == ["old/list.csv#2"]
    assert b"valve of hall" in (cells/"data/old/list.csv").read_bytes() and b"valve of hall" not in (cells/"data/list.csv").read_bytes()
    assert not journal["proof"]["traces"]


def test_a_forgotten_cell_is_empty_already(cells):
    erase(cells, *WANTED)
    for name in (*WANTED, "old/list.csv#2@remark"):
        with pytest.raises(NotFound, match="is empty already"): plan_erasure(cells, [name], "", False)


def test_a_row_says_where_its_cell_went(cells):
    [row], [cell] = (whereis(cells, [name]).documents for name in ("data/orders.jsonl#4", "data/orders.jsonl#4@phone"))
    assert (cell.column, cell.columns, row.column) == ("phone", ["customer", "phone", "sum"], "")
    assert cell.model_copy(update=dict(column="", columns=[])) == row
    [fact] = whereis(cells, ["pumps.csv:3@note"]).documents
    assert (fact.source, fact.columns) == ("pumps.csv:3", ["name", "note"])
    assert "orders.jsonl#4@phone" in (text := format_whereis(whereis(cells, ["orders.jsonl#4@phone"]))) and "phone, one of customer, phone, sum" in text


def test_a_cell_that_is_not_there_is_one_sentence(cells):
    import pyarrow as pa
    from pyarrow import parquet
    parquet.write_table(pa.table(dict(name=["pump", "valve"], remark=[f"It stands in hall {n}, beside the gate and below the lamp that stays lit." for n in range(2)])), cells/"data"/"stock.parquet")
    (cells/"data"/"kim@acme.org#1@b.csv").write_text("name;shelf\nbolt;4\nnut;7\n", encoding="utf-8")
    prepare(cells)
    plan = lambda name: plan_erasure(cells, [name], "", False)
    for ask in (plan, lambda name: whereis(cells, [name])):
        for name, columns in {"list.csv#31@phone": "name, remark, count", "orders.jsonl#4@name": "customer, phone, sum", "pumps.csv:2@shelf": "name, note"}.items():
            with pytest.raises(NotFound, match=f"no column `.*`; its columns are {columns}$"): ask(name)
        with pytest.raises(Invalid, match="chats.jsonl#4 has no columns; name it without `@messages`"): ask("chats.jsonl#4@messages")
        for name in ("list.csv#99@name", "list.csv@name", "list.csv#31@"):
            with pytest.raises(NotFound, match="no document"): ask(name)
        with pytest.raises(NotFound, match="its rows are 2 to 3"): ask("pumps.csv:9@note")
    with pytest.raises(Invalid, match="take it out yourself with the program"): plan("stock.parquet#1@remark")
    assert whereis(cells, ["stock.parquet#1@remark"]).documents[0].columns == ["name", "remark"]
    assert [(r.source, r.column) for r in plan("kim@acme.org#1@b.csv#2@shelf").rows][0][1] == "shelf"


def test_a_row_is_to_be_forgotten_where_it_needs_its_cell(cells):
    data, company = cells/"data", cells/"company"
    (data/"facts"/"names.csv").write_text("name\nbolt\nnut\n", encoding="utf-8")
    (data/"wide.csv").write_text("name;count\n" + "".join(f";{n}\n" for n in range(20)) + "The last one of them, a washer of brass;\n", encoding="utf-8")
    prepare(cells)
    plan = lambda *names: plan_erasure(cells, list(names), "", False).rows
    with pytest.raises(Invalid, match="nothing would be left of its row; forget the row instead, as names.csv:3"): plan("names.csv:3@name")
    with pytest.raises(Invalid, match="nothing would be left of its row; forget the row instead, as wide.csv#21"): plan("wide.csv#21@name")
    assert [row.column for row in plan("parts.csv:3@name")] == ["name"]   # nobody asks about it
    company.mkdir()
    shutil.copy(ROOT/"company"/"style.yaml", company)
    (company/"questions.yaml").write_text("shelf:\n  table: parts.csv\n  key: [name]\n  answer: shelf\n  ask: [\"Where is {name}?\"]\n  ask_held_out: [\"Which shelf has {name}?\"]\n  state: \"{name} lies on shelf {answer}.\"\n", encoding="utf-8")
    with pytest.raises(Invalid, match="`shelf` in company/questions.yaml names the row by `name`; forget the row instead, as parts.csv:3"): plan("parts.csv:3@name")
    assert [row.column for row in plan("parts.csv:3@shelf")] == ["shelf"]
    assert [row.column for row in plan("parts.csv:3@shelf", "parts.csv:3")] == [""]


def test_an_id_that_a_template_leaves_as_it_is_is_not_looked_for(cells):
    (cells/"company").mkdir()
    (cells/"company"/"templates.yaml").write_text('orders: "{customer} ordered for {sum}."\n', encoding="utf-8")
    [row] = plan_erasure(cells, ["orders.jsonl#4@phone"], "", False).rows
    assert row.ids   # as curated, without the template
    [hidden] = [d["id"] for d in read_row_documents(cells, "orders.jsonl", (cells/"data/orders.jsonl").read_bytes())][3:4]
    documents = [d | dict(id=hidden) for d in inventory(cells) if d["source"] == "orders.jsonl#4"]
    described = [describe_row(cells, documents[0], "asked for", "phone")]
    check_cells(cells, described)
    assert described[0].ids == []


def test_an_emptied_cell_is_brought_back(cells):
    for command in ("init --no-scm --quiet", "add --quiet data"): run_dvc(cells, *command.split())
    files = {path: path.read_bytes() for path in (cells/"data").rglob("*") if path.is_file()}
    journal = start_journal(cells, list(WANTED), plan_erasure(cells, list(WANTED), "", False), [])
    remove_old_data(cells, journal)
    assert b"bridge" not in (cells/"data/orders.jsonl").read_bytes().splitlines()[3] and read_journal(cells)["phase"] == "rebuild"
    undo_erasure(cells, journal)
    assert {path: path.read_bytes() for path in (cells/"data").rglob("*") if path.is_file()} == files and not read_journal(cells)


# ---- what serving kept

PERSON = "Ann Lee of hall seven"


@pytest.fixture
def served(project) -> Path:
    "The project after people asked and judged: answers, feedback, a log with texts, and rows that were made of it"
    (project/"company").mkdir(exist_ok=True)
    shutil.copy(ROOT/"company"/"style.yaml", project/"company")
    for name in ("answers", "feedback", "requests"): (project/"runs"/name).mkdir(parents=True)
    write = lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answers, said, log = [], [], []
    for n in range(40):
        question = f"Who mends pump number {n} of {PERSON} and its gate {n * 7}?" if n in (4, 9) else f"Which tool mends pump number {n} of the {n * 3}th floor beside gate {n * 5}?"
        prompt = f"tools: name `wrench {n}`; shelf `{n + 50}`; floor `{n * 3}` behind the lamp {n * 11} and the door {n * 13}. Source: ab{n:02}.\n{question}"
        kept = dict(id=f"chatcmpl-{n:024x}", time=float(n), release="r1", key="eve" if n == 20 else ("desk", "till")[n % 2], question=question, prompt=prompt, answer=f"`{n}`. Source: none.", sources=["list.csv"])
        answers.append(kept)
        said.append(dict(id=kept["id"], thumb="down", correction=f"wrench {n}", comment=f"says {PERSON}" if n == 30 else None, key=kept["key"], time=float(n), release="r1", kept=kept))
        log.append({"forge.request.id": f"{n:024x}", "gen_ai.response.id": kept["id"], "gen_ai.input.messages": make_logged_message("user", question, [])})
    write(project/"runs"/"answers"/"0.jsonl", answers)
    write(project/"runs"/"feedback"/"feedback.jsonl", said)
    write(project/"runs"/"requests"/"requests.jsonl", log)
    feedback(project)
    for path in ("ingest", "curate"): shutil.rmtree(project/"artifacts"/path)
    prepare(project)
    return project


def count_lines(root: Path) -> list: return [len(read_jsonl(root/"runs"/name)) for name in ("answers/0.jsonl", "feedback/feedback.jsonl", "requests/requests.jsonl")]


def read_everything(root: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for top in ("runs", "data", "artifacts") for path in sorted((root/top).rglob("*.json*")) if path.is_file())


def test_a_persons_words_leave_what_serving_kept(served):
    assert count_lines(served) == [40, 40, 40] and read_everything(served).count(PERSON) > 8
    journal = erase_served(served, query=PERSON.lower())
    assert {row["source"].split("#")[0] for row in journal["rows"]} == {"feedback/pairs.jsonl", "feedback/chat.jsonl"}
    assert {entry["file"]: len(entry["lines"]) for entry in journal["kept"]} == {"runs/answers/0.jsonl": 2, "runs/feedback/feedback.jsonl": 3, "runs/requests/requests.jsonl": 2}
    assert PERSON not in read_everything(served) and count_lines(served) == [38, 37, 38] and not journal["proof"]["traces"]
    assert not journal["leftovers"], "a log of all people was removed for the words of one"
    assert feedback(served).judgements == 37 and PERSON not in read_everything(served)


def test_words_that_stand_in_what_serving_kept_alone_are_reason_enough(served):
    shutil.rmtree(served/"data"/"feedback")
    for path in ("ingest", "curate"): shutil.rmtree(served/"artifacts"/path)
    prepare(served)
    plan = plan_erasure(served, [], f"says {PERSON}", False)
    assert not plan.removed and not plan.rows and [(entry.file, len(entry.lines)) for entry in plan.kept] == [("runs/feedback/feedback.jsonl", 1)]
    assert plan_erasure(served, [], "eve", False).kept, "the name of a key is a person's word, too"
    with pytest.raises(NotFound): plan_erasure(served, [], "Zoe Zimmermann", False)
    journal = erase_served(served, query=f"says {PERSON}")
    assert count_lines(served) == [40, 39, 40] and not journal["proof"]["traces"]


def test_an_answer_is_named_by_its_id_and_takes_its_lines_along(served):
    answer = read_jsonl(served/"runs"/"answers"/"0.jsonl")[7]["id"]
    found = whereis(served, [answer]).documents
    assert {d.source.split("#")[0] for d in found} == {"feedback/pairs.jsonl", "feedback/chat.jsonl"}
    journal = erase_served(served, answer)
    assert len(journal["rows"]) == 2 and count_lines(served) == [39, 39, 39] and answer not in read_everything(served)


def test_the_receipt_names_the_lines_and_holds_no_word(served):
    plan = plan_erasure(served, [], PERSON, False)
    unknown = {name: [] for name in "shared mentioned stale may_run ran restored learned releases artifacts leftovers evaluation effects remaining_copies".split()}
    receipt = Receipt(state="dry-run", receipt=None, started_at=None, commit="c", **plan.model_dump(), proof=None, data=dict(old="a", new=None), **unknown)
    lines = "\n".join(list_removals(receipt))
    for count, name in ((2, "answers/0"), (3, "feedback/feedback"), (2, "requests/requests")): assert f"would remove  {count} lines of runs/{name}.jsonl" in lines
    assert PERSON not in receipt.model_dump_json()


def erase_served(root: Path, *requested: str, query: str = "") -> dict:
    "Take out what is asked for and what serving kept of it, curate again, and search for it; the journal with the proof"
    journal = start_journal(root, list(requested), plan_erasure(root, list(requested), query, False), [])
    remove_from_data(root, journal)
    for path in ("ingest", "curate"): shutil.rmtree(root/"artifacts"/path)
    prepare(root)
    for _ in range(2): remove_kept_lines(root, journal["kept"])
    return journal | dict(proof=prove_erasure(root, journal))
