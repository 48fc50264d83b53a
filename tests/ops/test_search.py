"`forge search` and `make search`: answers, exit codes, rights, and what a bare folder has that cannot be read"
import json, os, shutil, subprocess, sys

import pytest
from jsonschema import validate

from forge_nb.core.project import ROOT, read_jsonl, read_stages
from forge_nb.data.passages import build_index, make_document_passages, save_index
from forge_nb.ops import cli
from forge_nb.ops import search as page

GROUPS = {"hr": ["hr"], "*": ["everyone"]}
TEXTS = {"docs/bolts.txt": "Bolts\n=====\n\nA bolt M3 costs 3 EUR.\n", "docs/nuts.txt": "A nut M3 costs 1 EUR.\n" + "More on nuts. " * 60, "hr/pay.txt": "Kim is paid 9000 zloty.\n"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A folder with an index, taken for the project"
    documents = [dict(id=s, kind="docs", language="en", source=s, text=t) for s, t in TEXTS.items()]
    save_index(build_index(make_document_passages(documents, GROUPS, "en", 1200)), tmp_path/"artifacts"/"retrieval"/"live")
    shutil.copy(ROOT/"params.yaml", tmp_path)
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    return tmp_path


def forge(capsys, *words: str) -> tuple:
    "Exit code, standard output and standard error of `forge`"
    with pytest.raises(SystemExit) as end: cli.main([*words])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_the_answer_is_what_the_schema_says(project, capsys):
    code, out, err = forge(capsys, "search", "What does a bolt cost?", "--json")
    answer = json.loads(out)
    validate(answer, cli.answer_schema("search"))
    assert code == 0 and err == "" and answer["query"] == "What does a bolt cost?"
    assert [p["source"] for p in answer["passages"]] == ["docs/bolts.txt", "docs/nuts.txt"] and answer["passages"][0]["text"] == TEXTS["docs/bolts.txt"].strip()
    assert set(answer["passages"][0]) == {"id", "source", "line", "title", "text", "score"}


def test_people_see_what_was_left_out(project, capsys):
    code, out, _ = forge(capsys, "search", "nuts", "--k", "1")
    assert code == 0 and out.startswith("1. docs/nuts.txt\n   docs/nuts.txt, line 1, passage ") and "more characters" in out


def test_documents_do_not_steer_the_terminal():
    documents = [dict(id="a", kind="docs", language="en", source="a.txt", text="A bolt \x1b[31m is \x07 red.")]
    text = page.format_search(page.answer_query(build_index(make_document_passages(documents, {}, "en", 99)), "bolt", 1, []))
    assert "\x1b" not in text and "\x07" not in text and "A bolt �[31m is � red." in text


def test_groups_are_asked_for_by_name(project, capsys):
    assert forge(capsys, "search", "zloty")[0] == 3
    assert json.loads(forge(capsys, "search", "zloty", "--groups", "sales, hr", "--json")[1])["passages"][0]["source"] == "hr/pay.txt"
    refused, unknown = forge(capsys, "search", "zloty", "--json"), forge(capsys, "search", "zlotyz", "--json")
    assert [r[0] for r in (refused, unknown)] == [3, 3] and refused[1].replace("zloty", "zlotyz") == unknown[1] and "hr" not in refused[1] + refused[2]


@pytest.mark.parametrize("words, rc, message", [
    (["search"], 2, "QUERY"), (["search", ""], 2, "the query is empty"), (["search", "?!"], 2, "no letter"), (["search", "bolt", "--k", "0"], 2, "k is 0"),
    (["search", "bolt", "--k", "many"], 2, "'--k'"), (["search", "elephants"], 3, "no passage holds a word of 'elephants'"), (["search", "bolt", "--nosuch"], 2, "--nosuch")])
def test_bad_input_is_a_sentence(project, capsys, words, rc, message):
    code, out, err = forge(capsys, *words)
    assert (code, out) == (rc, "") and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert message in json.loads(forge(capsys, *words, "--json")[1])["error"]


def test_without_an_index_the_command_that_makes_it_is_named(project, capsys):
    shutil.rmtree(project/"artifacts")
    code, _, err = forge(capsys, "search", "bolt")
    assert code == 3 and "there is no index; `dvc repro retrieval`" in err


def test_an_index_that_was_changed_is_refused(project, capsys):
    path = project/"artifacts"/"retrieval"/"live"/"passages.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("3 EUR", "1 EUR"), encoding="utf-8")
    code, _, err = forge(capsys, "search", "bolt")
    assert code == 2 and "passages.jsonl is not what the manifest beside it names" in err


def test_only_questions_are_answered_from_the_live_index():
    "Whatever trains reads the index of the training documents, so that a document outside them retrains nothing; synth asks the evaluation set with the live one (synthesis/test_open_rows.py: no row)"
    readers = {name for name, stage in read_stages(ROOT).items() for dep in stage["deps"] if dep.startswith("artifacts/retrieval/live")}
    assert not readers & set("tokenizer pretrain sft dpo reward rlhf rl distill".split())


def test_import_loads_no_index_library():
    code = "import sys, forge_nb.ops.cli; print([m for m in ('bm25s', 'Stemmer', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout.strip() == "[]"


# A bare folder

@pytest.fixture
def folder(tmp_path):
    "Manuals, a table and a mail, with two files that cannot be read"
    bare = tmp_path/"bare"
    (bare/"sub").mkdir(parents=True)
    (bare/"bolts.md").write_text("# Bolts\n\nOrder them from kim@acme.org.\n", encoding="utf-8")
    (bare/"sub"/"parts.csv").write_text("name,price,contact\nwasher,2 EUR,kim@acme.org\n", encoding="utf-8")
    (bare/"sub"/"broken.pdf").write_bytes(b"no PDF")
    (bare/"image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    return bare


def run(folder, *words, asked: str = "") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "forge_nb.ops.search", str(folder), *words], cwd=ROOT, capture_output=True, text=True, input=asked, encoding="utf-8", env=os.environ)


def test_a_bare_folder_is_read_masked_and_searched(folder, tmp_path):
    index, rejects = page.index_bare_folder(folder, tmp_path/"out", ["email"], 1200)
    assert {r["source"] for r in rejects} == {"sub/broken.pdf", "image.png"} and all(r["reason"] for r in rejects)
    [best, *_] = page.answer_query(index, "price of washer", 3, []).passages
    assert best.source == "sub/parts.csv#1" and best.text == "parts: name `washer`; price `2 EUR`; contact `[email]`"
    kept = b"".join(p.read_bytes() for p in (tmp_path/"out").rglob("*") if p.is_file())
    assert b"kim@acme.org" not in kept and b"acme" not in kept


def test_a_folder_is_indexed_again_when_a_file_changed(folder, tmp_path, monkeypatch):
    out = tmp_path/"out"
    page.index_bare_folder(folder, out, ["email"], 1200)
    monkeypatch.setattr(page, "build_index", lambda passages: pytest.fail("indexed again"))
    index, rejects = page.index_bare_folder(folder, out, ["email"], 1200)
    assert len(rejects) == 2 and page.answer_query(index, "bolts", 1, []).passages[0].source == "bolts.md"
    monkeypatch.undo()
    (folder/"bolts.md").write_text("# Screws\n\nNothing else any more.\n", encoding="utf-8")
    index, _ = page.index_bare_folder(folder, out, ["email"], 1200)
    assert page.find_passages(index, ["bolts"], 3, []) == [[]] and [p["source"] for p in page.find_passages(index, ["screws"], 3, [])[0]] == ["bolts.md"]
    assert len(read_jsonl(out/"unreadable.jsonl")) == 2
    (out/"index"/"passages.jsonl").write_text("{}\n", encoding="utf-8")  # damaged: made anew
    assert page.answer_query(page.index_bare_folder(folder, out, ["email"], 1200)[0], "screws", 1, []).passages


def test_make_search_says_what_it_could_not_read_and_answers(folder):
    done = run(folder, asked="price of washer\nelephants\n")
    assert done.returncode == 0 and done.stderr == ""
    assert "2 could not be read\n" in done.stdout and "sub/broken.pdf: " in done.stdout and "washer" in done.stdout and "no passage holds a word of 'elephants'" in done.stdout
    assert "1 questions without an answer, kept in runs/search/" in done.stdout and done.stdout.endswith("unanswered.jsonl:\n  elephants\n")
    once = run(folder, "bolts")
    assert once.returncode == 0 and "bolts.md, line 1" in once.stdout and run(folder, "mice").returncode == 3
    (folder/"mice.md").write_text("Mice are kept out.\n", encoding="utf-8")  # a question that is answered by now leaves the list
    again = run(folder, asked="elephants\n?!\n")
    assert again.stdout.endswith("unanswered.jsonl:\n  elephants\n") and "no letter" in again.stdout
    shutil.rmtree(ROOT/"runs"/"search"/page.hash_text(str(folder.resolve()))[:12])


@pytest.mark.parametrize("name, words", [("", "make search FROM=folder"), ("nosuch", "expected a folder"), ("empty", "nothing in it can be searched")])
def test_a_folder_that_cannot_be_searched_is_a_sentence(tmp_path, name, words):
    (tmp_path/"empty").mkdir()
    done = run(tmp_path/name if name else "", "bolts")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and words in done.stderr and done.stderr.count("\n") == 1
