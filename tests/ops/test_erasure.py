"Rows that are forgotten, on material that is read and curated for real: files keep every other byte, and nothing moves"
import json, shutil, sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_curate import corpus, run

from forge_nb.core.project import Invalid, NotFound, read_jsonl
from forge_nb.ops.erasure import plan_erasure, remove_from_data, start_journal
from forge_nb.ops.inventory import describe_raw_file, inventory, list_raw_files, resolve_targets
from forge_nb.ops.lineage import whereis
from forge_nb.ops.receipt import prove_erasure

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
    (tmp_path/"params.yaml").write_text("shared: {dedup_threshold: 0.75, pii_patterns: []}\ncurate: {pii: [email, phone, ip, iban, card, key]}\n", encoding="utf-8")
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
