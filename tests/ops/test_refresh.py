"`forge refresh`: documents that come, change and go reach search and answers, and nothing of the pipeline moves"
import hashlib, json, re

import pytest
from copies import FORGE, Copy, ask, refuse, sibling

PIPELINE = ("artifacts", "reports", "dvc.lock", "data.dvc", "build")


def fingerprints(copy: Copy) -> dict:
    "Hash of every file of the pipeline"
    files = [p for name in PIPELINE for p in [copy.root/name, *(copy.root/name).rglob("*")] if p.is_file()]
    return {p.relative_to(copy.root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def find(copy: Copy, words: str) -> set:
    return {p["source"] for p in ask(copy, f"search '{words}' --k 20")["passages"]}


@pytest.fixture(scope="module")
def refreshed(chain, tmp_path_factory) -> dict:
    "A finished project in which one document came, one that was trained on changed, one went, and one cannot be read"
    copy = sibling(chain, tmp_path_factory.mktemp("refresh")/"project")
    before, splits = fingerprints(copy), {}
    for split in ("train", "valid", "test"):
        for line in (copy.root/"artifacts/curate/documents"/f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            splits.setdefault(split, []).append(json.loads(line)["source"])
    params = (copy.root/"params.yaml").read_text(encoding="utf-8")
    head, _, tail = params.partition("\ncurate:")
    (copy.root/"params.yaml").write_text(f"{head}\ncurate:" + re.sub(r"\blimit: \d+", "limit: 0", tail, count=1), encoding="utf-8")
    ask(copy, "refresh")  # with a limit, one document more would be one less
    stale = copy("dvc status --json")
    is_page = lambda source: source.startswith("docs/") and "/releases/" not in source
    changed = next(filter(is_page, splits["train"]))
    gone = next(filter(is_page, splits["valid"] + splits["test"]))
    docs = copy.root/"data"/"docs"
    (docs/"zeppelin.txt").write_text("Airships\n========\n\nA zeppelinette floats for 77 hours, says zoe@airship-works.org, who built the first one of them.\n" * 2, encoding="utf-8")
    (docs/"broken.pdf").write_bytes(b"no PDF")
    (copy.root/"data"/changed).open("a", encoding="utf-8").write("\n\nThe zeppelinette is moored at its mast every evening of the week.\n")
    (copy.root/"data"/gone).unlink()
    return dict(copy=copy, answer=ask(copy, "refresh"), before=before, stale=stale, changed=changed, gone=gone, splits=splits)


def test_it_says_what_changed(refreshed):
    r = refreshed["answer"]
    changes = {d["source"]: d for d in r["documents"]}
    assert r["state"] == "refreshed" and r["index"] == "runs/live/index"
    assert {(s, d["change"], d["is_trained_on"]) for s, d in changes.items()} == {
        ("docs/zeppelin.txt", "new", False), (refreshed["changed"], "changed", True), (refreshed["gone"], "gone", False)}
    assert {e["source"] for e in r["left_out"]} == {"docs/broken.pdf"} and r["left_out"][0]["reason"]
    assert r["recall"][-1]["kind"] == "all" and r["recall"][-1]["before"] > 0 and r["seconds"] < 300


def test_what_came_is_found_masked_and_what_went_is_not(refreshed):
    copy = refreshed["copy"]
    assert find(copy, "zeppelinette") == {"docs/zeppelin.txt", refreshed["changed"]}
    kept = [p.read_bytes() for p in (copy.root/"runs/live").rglob("*") if p.is_file()]
    assert not [text for text in kept if b"airship-works" in text]
    sources = {json.loads(line)["source"] for line in (copy.root/"runs/live/index/passages.jsonl").read_text(encoding="utf-8").splitlines()}
    assert refreshed["gone"] not in sources and refreshed["splits"]["train"][0] in sources


def test_answers_rest_on_it(refreshed):
    answer = ask(refreshed["copy"], "ask 'How many hours does a zeppelinette float?'")
    assert answer["passages"][0]["source"] == "docs/zeppelin.txt" and answer["answer"]


def test_nothing_of_the_pipeline_moved(refreshed):
    "No artifact, no record: every model is what it was, and DVC names no stage as stale that it did not name before, but for those that read data/"
    copy = refreshed["copy"]
    assert fingerprints(copy) == refreshed["before"]
    assert set(json.loads(copy("dvc status --json"))) - set(json.loads(refreshed["stale"])) <= {"data.dvc", "tangle", "ingest"}


def test_a_second_refresh_has_nothing_to_do(refreshed):
    copy = refreshed["copy"]
    again = ask(copy, "refresh")
    assert again["state"] == "unchanged" and again["documents"] == [] and again["passages"] == refreshed["answer"]["passages"]
    assert "nothing changed since the last refresh" in copy(f"{FORGE} refresh")


def test_a_broken_index_is_refused_and_made_anew(refreshed, tmp_path):
    copy = sibling(refreshed["copy"], tmp_path/"project")
    path = copy.root/"runs/live/index/passages.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("77 hours", "78 hours"), encoding="utf-8")
    refuse(copy, "search zeppelinette", 2, "passages.jsonl is not what the manifest beside it names", "`forge refresh` makes it anew")
    assert ask(copy, "refresh")["state"] == "refreshed" and find(copy, "zeppelinette")


def test_the_pipelines_next_index_comes_first(refreshed, tmp_path):
    "Whatever made it: a `dvc repro`, a `forge forget`, a checkout of another version"
    copy = sibling(refreshed["copy"], tmp_path/"project")
    path = copy.root/"artifacts/retrieval/live/manifest.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    refuse(copy, "search zeppelinette", 3, "no passage holds a word")


def test_forget_takes_what_search_and_ask_keep(tmp_path, monkeypatch):
    "A refreshed index, indices of bare folders and the file that `forge ask` runs are made from the old data"
    from forge_nb.ops import erasure
    for name in ("runs/live/index/passages.jsonl", "runs/live.work/run.jsonl", "runs/search/ab12/index/passages.jsonl", ".cache/gguf/ab12.gguf", "receipts/.pending.json", "data/a.txt"):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text("{}", encoding="utf-8")
    (tmp_path/"data"/"SHA256SUMS").write_text("", encoding="utf-8")
    monkeypatch.setattr(erasure, "run_dvc", lambda *_: "")
    erasure.remove_old_data(tmp_path, dict(removed=[dict(path="a.txt")], rows=[], facts=[], sources=["a.txt"], uncached_files={}, phase="remove"))
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == ["data/SHA256SUMS", "receipts/.pending.json"]


def test_without_a_first_index_there_is_a_sentence(bare):
    bare("rm -rf artifacts/retrieval/live runs/live")  # it may have run in this copy
    refuse(bare, "refresh", 3, "there is no index to refresh", "dvc repro retrieval")
