"The database of the history: both ways, between commits, killed, after an erasure, read-only, and of a thousand runs"
import json, re, shutil, signal, subprocess, sys

import pytest
from copies import ENV, ROOT
from jsonschema import validate

from forge_nb.bench.lineage_growth import CHAIN, make_history
from forge_nb.core.project import Invalid, run_git, write_json
from forge_nb.ops import cli, lineage_db
from forge_nb.ops.lineage_db import LINEAGE_FILE, update_lineage
from forge_nb.ops.lineage_page import write_lineage_page
from forge_nb.ops.lineage_sql import LINEAGE_NOTES, query_lineage, run_lineage_query

RUNS, DOCUMENTS = 22, 20  # the versions of runs 10 and 20 have a document more each


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A project with a history, and its database"
    root = make_history(tmp_path_factory.mktemp("history"), RUNS, DOCUMENTS)
    update_lineage(root)
    return root


@pytest.fixture()
def project(made, tmp_path):
    "A copy that a test may change"
    return shutil.copytree(made, tmp_path/"project")


def ask(root, query: str) -> list: return query_lineage(root, query).rows
def sha_of_run(root, run: int) -> str: return run_git(root, "rev-list", "--reverse", "HEAD").split()[run]


def commit(root, subject: str):
    run_git(root, "add", "-A")
    run_git(root, "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "-qm", subject)


def contents(root) -> dict:
    "What every view says, whatever the numbers of its rows"
    views = ("document_models", "training_data", "scores", "item_scores", "edges")
    return {view: sorted(map(repr, run_lineage_query(root/LINEAGE_FILE, f"select * from {view}").rows)) for view in views}


def test_both_ways_say_the_same(made):
    forth = {(source, path, hash, how) for source, path, hash, hows in ask(
        made, "select source, path, hash, how from document_models") for how in hows.split(",")}
    back = {tuple(row) for row in ask(made, "select distinct d.source, d.path, m.hash, d.how from training_data d join commit_runs k on "
                                            "k.sha = d.sha and k.stage = d.stage join models m on m.run = k.run and m.path = d.path")}
    assert forth == back and len({path for _, path, _, _ in forth}) == len(CHAIN)
    assert {source for source, *_ in forth} == {f"docs/{n}.txt" for n in range(DOCUMENTS + 2) if n % 10 != 9}


def test_a_document_reaches_the_models_that_came_after_it(made):
    for document, runs in ((3, RUNS), (DOCUMENTS, RUNS - 10), (DOCUMENTS + 1, RUNS - 20), (9, 0)):
        found = ask(made, f"select how from document_models where source = 'docs/{document}.txt'")
        assert len(found) == runs * len(CHAIN), document
    assert ask(made, "select how, rows from document_models where source = 'docs/3.txt' and path = 'artifacts/pretrain/model'")[0] == ["train", 1]
    assert ask(made, "select how, rows from document_models where source = 'docs/3.txt' and path = 'artifacts/rl/model'")[0] == ["train,training", 2]


def test_what_changed_between_two_commits(made):
    early, late = sha_of_run(made, 3), sha_of_run(made, 12)
    select = "select what, stage, name, old, new from changes where before = '{}' and after = '{}'"
    forth, back = ask(made, select.format(early, late)), ask(made, select.format(late, early[:7]))
    assert sorted(forth, key=repr) == sorted(([what, stage, name, old, new] for what, stage, name, new, old in back), key=repr)
    assert ["parameter", "sft", "sft.seed", "3", "12"] in forth and not [r for r in forth if r[2] == "sft.learning_rate"]
    assert [r for r in forth if r[0] == "document"] == [["document", "train", f"docs/{DOCUMENTS}.txt", None, f"{DOCUMENTS:016x}"]]
    assert ["score", "evaluate", "rl exact_match all", .0003, .0012] in forth
    assert {r[2] for r in forth if r[0] == "output"} >= {"artifacts/curate/documents/train.jsonl", "artifacts/rl/model"}
    assert not ask(made, select.format(early, early))


def test_scores_on_an_item(made):
    rows = ask(made, "select sha, mean, n, item_hash from item_scores where item = 'fact:9'")
    assert len(rows) == RUNS and len({hash for *_, hash in rows}) == 1 and all(n == 2 for _, _, n, _ in rows)
    assert not ask(made, "select * from item_scores where item = 'fact:3'")  # a row to train on


def test_releases_saw_what_their_commit_was_made_from(project):
    for run, version in ((5, "v1.0.0"), (15, "v1.1.0")): run_git(project, "tag", f"forge@{version}", sha_of_run(project, run))
    saw = "select release, is_active from document_releases where source = 'docs/{}.txt' order by release"
    assert ask(project, saw.format(3)) == [["forge@v1.0.0", 1], ["forge@v1.1.0", 1]]
    assert ask(project, saw.format(DOCUMENTS)) == [["forge@v1.1.0", 1]] and not ask(project, saw.format(9))
    run_git(project, "tag", "forge@v1.0.0!", sha_of_run(project, 5))
    assert ask(project, saw.format(3)) == [["forge@v1.0.0", 0], ["forge@v1.1.0", 1]]
    [[count]] = ask(project, "select count(distinct source) from training_data where revision = 'forge@v1.0.0' and is_released")
    assert count == DOCUMENTS - 2


def test_only_new_commits_are_read(project, monkeypatch):
    stored, store = [], lineage_db.store_commit
    monkeypatch.setattr(lineage_db, "store_commit", lambda build, commit, *rest: (stored.append(commit["sha"]), store(build, commit, *rest)))
    assert ask(project, "select 1") == [[1]] and not stored
    lock = (project/"dvc.lock").read_text(encoding="utf-8")
    (project/"dvc.lock").write_text(lock.replace(f"sft.seed: {RUNS - 1}", "sft.seed: 77"), encoding="utf-8")
    changed = "select stage, old, new from changes where before = 'HEAD' and after = 'now' and what = 'parameter'"
    assert ask(project, changed) == [["sft", str(RUNS - 1), "77"]] and stored == ["workspace"]
    commit(project, "another seed")
    assert ask(project, changed) == [] and stored[1:] == [run_git(project, "rev-parse", "HEAD")]
    assert not ask(project, "select * from commits where sha = 'workspace'")


def test_a_commit_that_no_name_reaches_goes(project):
    run_git(project, "checkout", "-q", "-b", "trial")
    (project/"dvc.lock").write_text((project/"dvc.lock").read_text(encoding="utf-8").replace("1e-3", "5e-3"), encoding="utf-8")
    commit(project, "a trial")
    trial = "select count(*) from params join commit_runs using(run) join revisions using(sha) where revisions.name = 'trial' and value = '5e-3'"
    assert ask(project, trial) == [[len(CHAIN)]]
    run_git(project, "checkout", "-q", "main")
    assert ask(project, trial) == [[len(CHAIN)]]
    run_git(project, "branch", "-D", "trial")
    assert ask(project, trial) == [[0]] and ask(project, "select count(*) from commits") == [[RUNS]]
    assert len(ask(project, "select * from document_models where source = 'docs/3.txt'")) == RUNS * len(CHAIN)


KILLED = """
import os, signal, sys
from pathlib import Path
from forge_nb.ops import lineage_db
store, count = lineage_db.read_commit_files, []
def read_then_die(*arguments):
    count.append(1)
    if len(count) == 9: os.kill(os.getpid(), signal.SIGKILL)  # between a commit's runs and its files
    store(*arguments)
lineage_db.read_commit_files = read_then_die
lineage_db.update_lineage(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("had_one", [False, True])
def test_a_killed_build_leaves_the_one_before_and_goes_on(project, made, monkeypatch, had_one):
    path, expected = project/LINEAGE_FILE, contents(made)
    if had_one:  # of the first ten commits
        run_git(project, "update-ref", "refs/heads/main", sha_of_run(project, 9))
        run_git(project, "tag", "-d", *run_git(project, "tag").split())
        run_git(project, "checkout", "-qf", "main")
    path.unlink()
    if had_one:
        update_lineage(project)
        run_git(project, "update-ref", "refs/heads/main", sha_of_run(made, RUNS - 1))
        run_git(project, "checkout", "-qf", "main")
    before = path.read_bytes() if had_one else None
    done = subprocess.run([sys.executable, "-c", KILLED, str(project)], cwd=ROOT, env=ENV, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (path.read_bytes() if had_one else None) == before and path.exists() == had_one
    stored, store = [], lineage_db.store_commit
    monkeypatch.setattr(lineage_db, "store_commit", lambda build, commit, *rest: (stored.append(commit["sha"]), store(build, commit, *rest)))
    update_lineage(project)
    assert len(stored) == (RUNS - 10 if had_one else RUNS) - 8 and contents(project) == expected
    assert sorted(p.name for p in path.parent.iterdir()) == ["build.lock", "lineage.sqlite"]


def test_files_that_the_cache_lacked_are_read_when_they_are_there(project, made):
    cache = project/".dvc"/"cache"
    cache.rename(project/"elsewhere")
    (project/LINEAGE_FILE).unlink()
    assert ask(project, "select count(*) from documents") == [[0]] and ask(project, "select count(*) from runs") == ask(made, "select count(*) from runs")
    cache.mkdir(exist_ok=True)
    shutil.copytree(project/"elsewhere", cache, dirs_exist_ok=True)
    ask(project, "select 1")
    assert contents(project) == contents(made)


def test_an_erased_document_is_on_record_and_its_rows_have_no_names(project):
    assert ask(project, "select count(*) from rows where id = 'fact:3'") == [[1]]
    removed = dict(path="docs/3.txt", ids=[f"{3:016x}"])
    receipt = dict(verb="forget", state="done", started_at="2026-03-01", commit="", removed=[removed], rows=[])
    write_json(project/"receipts"/"2026-03-01-docs-3.json", receipt)
    write_json(project/"receipts"/"2026-03-02-verify.json", dict(verb="verify"))
    rows = ask(project, "select distinct erased from document_models where source = 'docs/3.txt'")
    assert rows == [["receipts/2026-03-01-docs-3.json"]]
    assert ask(project, "select source from documents where erased <> ''") == [["docs/3.txt"]]
    assert ask(project, "select rows.id, purpose from rows join row_documents using(row) join documents d using(document) "
                        "where d.source = 'docs/3.txt'") == [["erased", "training"]]
    assert not re.search(rb"fact:3(?!\d)", (project/LINEAGE_FILE).read_bytes())
    assert re.search(rb"fact:4(?!\d)", (project/LINEAGE_FILE).read_bytes())


@pytest.mark.parametrize("query, sentence", [
    ("delete from commits", "only reads"), ("attach 'x.sqlite' as x", "only reads"), ("select 1; drop table rows", "one query at a time"),
    ("with a as (select 1) insert into meta select 1, 2", "only reads"), ("pragma writable_schema = 1", "only reads"),
    ("select sources from documents", "no column `sources`; did you mean `source` of"), ("select * from document", "did you mean `documents`"),
    ("documents", "cannot be read"), (";", "there is no query")])
def test_a_query_only_reads_and_a_fault_is_one_sentence(made, monkeypatch, capsys, query, sentence):
    monkeypatch.setattr(cli, "ROOT", made)
    before = (made/LINEAGE_FILE).read_bytes()
    with pytest.raises(SystemExit) as stopped: cli.main(["lineage", query, "--json"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and sentence in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1
    assert json.loads(out)["error"] in err and (made/LINEAGE_FILE).read_bytes() == before
    with pytest.raises(Invalid): run_lineage_query(made/LINEAGE_FILE, query)


def test_the_verb_answers_people_and_programs(made, monkeypatch, capsys):
    monkeypatch.setattr(cli, "ROOT", made)
    for arguments in (["lineage", "--json"], ["lineage", "select 1 one, 'a' two", "--json"]):
        with pytest.raises(SystemExit) as ended: cli.main(arguments)
        answer = json.loads(capsys.readouterr().out)
        validate(answer, cli.answer_schema("lineage"))
        assert not ended.value.code
    assert (answer["columns"], answer["rows"]) == (["one", "two"], [[1, "a"]])
    with pytest.raises(SystemExit): cli.main(["lineage"])
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in LINEAGE_NOTES)
    for _, example in LINEAGE_NOTES.values(): assert f"  {example}" in said and query_lineage(made, example).columns


def test_marks_of_a_merge_in_an_old_lock_cost_that_stage_alone(project):
    lock = (project/"dvc.lock").read_text(encoding="utf-8")
    (project/"dvc.lock").write_text(lock.replace("  dpo:\n", "  dpo:\n<<<<<<< HEAD\n"), encoding="utf-8")
    commit(project, "a merge")
    stages = {stage for stage, in ask(project, "select stage from commit_runs join revisions using(sha) where name = 'HEAD'")}
    assert "sft" in stages and "dpo" not in stages


@pytest.mark.slow
def test_a_thousand_runs_answer_both_ways(tmp_path):
    root = make_history(tmp_path, 1000, 10)
    assert ask(root, "select count(*) from commits") == [[1000]]
    assert len(ask(root, "select * from document_models where source = 'docs/3.txt'")) == 1000 * len(CHAIN)
    assert len(ask(root, "select distinct source from training_data where revision = 'now' and is_released")) == 10 + 99 - (10 + 99) // 10
    [[releases]] = ask(root, "select count(*) from document_releases where source = 'docs/3.txt'")
    assert releases == 10
    assert ask(root, "select old, new from changes where before = 'forge@v1.0.0' and after = 'now' and name = 'sft.seed'") == [["99", "999"]]


def test_the_page_draws_the_model_at_hand_and_then_the_release(project, tmp_path):
    (tmp_path/"index.html").write_text("<h1>Reports</h1><blockquote>pages</blockquote><p>stages</p>", encoding="utf-8")
    texts = []
    for _ in range(2):
        texts.append(write_lineage_page(project, tmp_path).read_text(encoding="utf-8"))
        assert (tmp_path/"index.html").read_text(encoding="utf-8").count("lineage.html") == 1
        run_git(project, "tag", "forge@v1.0.0", sha_of_run(project, 5))
    assert "the model at hand, not released" in texts[0] and "release forge@v1.0.0" in texts[1]
    for text, seed_score in zip(texts, (f"{(RUNS - 1) / 1e4:.4f}", "0.0005")):
        assert text.count("<rect") == 3 + CHAIN.index("rl") + 1  # curate, synth, tokenizer and the chain as far as the model
        assert "<td>train</td><td>18</td>" in text or f"<td>train</td><td>{DOCUMENTS - 2 + 2}</td>" in text
        assert seed_score in text and not re.findall(r"(?:src|href)=\"http|@import|<script", text)
