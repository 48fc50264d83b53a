"The stage `newstage`: what a lesson cannot show, that equal inputs give equal bytes, and that nothing to do is said"
import pytest

from forge_nb.core.project import read_json, read_jsonl, write_jsonl
from forge_nb.newstage import newstage

DOCUMENTS = [dict(kind=kind, text="bolt " * n) for kind in ("docs", "code") for n in range(1, 5)]


def run(folder, min_characters):
    write_jsonl(folder/"train.jsonl", DOCUMENTS)
    return newstage(folder/"train.jsonl", min_characters=min_characters, out=folder/"out")


def test_equal_inputs_give_equal_bytes(tmp_path):
    read = lambda: {p.name: p.read_bytes() for p in (tmp_path/"out").iterdir()}
    run(tmp_path, 1)
    first = read()
    run(tmp_path, 1)
    assert set(first) == {"kinds.jsonl", "metrics.json"} and read() == first


@pytest.mark.parametrize("min_characters, documents", [(1, 8), (11, 4), (20, 2)])
def test_short_documents_are_not_counted(tmp_path, min_characters, documents):
    assert run(tmp_path, min_characters)["documents"] == documents


def test_nothing_to_do_is_said_and_the_files_are_there(tmp_path):
    run(tmp_path, 99)
    assert read_jsonl(tmp_path/"out"/"kinds.jsonl") == []
    assert read_json(tmp_path/"out"/"metrics.json")["skipped"] == "no training document has 99 characters"
