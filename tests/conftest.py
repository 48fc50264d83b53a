"What all tests share: projects that have run, the order of the files, the record of the slow tier"
import csv, hashlib, json, os, shutil, time
from unittest.mock import patch

import pytest

pytest.register_assert_rewrite("copies", "browser")
from forge_nb.core.sockets import unguard_sockets
from browser import CHROMIUM, Browser
from copies import COMMIT, OFFLINE, ROOT, Copy, locked, make_tiny, sibling


@pytest.fixture(scope="session")
def chain(tmp_path_factory, worker_id) -> Copy:
    """A project in which the whole chain has run with the profile `tiny`, the network cut. It is made once for all
    workers, and nobody writes to it. `page` is a document that was trained on, `text` what stands in it, and `row` the
    line of a table of facts that names it; a near-duplicate lies beside it."""
    base = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder, copy = base/"chain", object.__new__(Copy)
    copy.root = folder/"project"
    with locked(base/"chain.lock"):
        if not (folder/"planted.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            copy.root.mkdir(parents=True)
            copy.__init__(copy.root)
            planted = make_tiny(copy)
            copy(f"{OFFLINE} dvc repro && git add -A && {COMMIT} -m tiny && git tag shipped")
            (folder/"planted.json").write_text(json.dumps(planted), encoding="utf-8")
    copy.__dict__ |= json.loads((folder/"planted.json").read_text(encoding="utf-8"))
    return copy


@pytest.fixture(scope="session")
def tiny(chain, tmp_path_factory) -> Copy:
    "A copy, of this worker's own, of a project in which the whole chain has run"
    return sibling(chain, tmp_path_factory.mktemp("tiny")/"project")


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Copy:
    "A copy in which nothing has run"
    return Copy(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def mend(bare):
    "Give the copy back as it was"
    yield bare
    bare("git checkout -q . && git clean -fdq && dvc checkout -q --force data.dvc")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    "A page of Chromium, where this machine has one"
    if not CHROMIUM: pytest.skip("no Chromium on this machine; on Debian, `apt install chromium`")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def unguarded():
    "A program that was run in this process leaves neither its environment nor its guard on the sockets"
    with patch.dict(os.environ): yield
    unguard_sockets()


# Order: files go to workers whole. The one that makes the chain comes first, then those that take longest, last the
# short ones, so that all workers end together.

LONGEST = ["test_chain.py", "test_tangle.py", "test_cli.py", "test_dvc.py", "test_faults.py", "test_loop.py"]


def pytest_collection_modifyitems(items):
    "Order files by what they take; of the rest, those that need the chain come later"
    needs = {i.path for i in items if {"chain", "tiny"} & set(i.fixturenames)}
    place = {name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda i: (place.get(i.path.name, len(LONGEST)), i.path in needs))


# The record of the slow tier: what passed, and the hash of the code that it proves.

RECORD = ROOT/"results"/"slow.csv"
FIELDS = ["test", "outcome", "date", "code", "proves"]


def code_hash(test: str) -> str:
    "Hash of what a test proves: the package, the pipeline, and the test's file"
    files = [*(ROOT/"forge_nb").rglob("*.py"), ROOT/test.split("::")[0], ROOT/"dvc.yaml", ROOT/"params.yaml"]
    digest = hashlib.sha256()
    for path in sorted(files): digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def read_record() -> dict:
    "Rows of results/slow.csv by test"
    if not RECORD.exists(): return {}
    with open(RECORD, newline="", encoding="utf-8") as f: return {r["test"]: r for r in csv.DictReader(f)}


def pytest_itemcollected(item):
    name = item.function.__name__.removeprefix("test_").replace("_", " ")
    item.user_properties.append(("proves", (item.function.__doc__ or name).strip().split("\n")[0]))
    item.user_properties.append(("slow", item.get_closest_marker("slow") is not None))


def pytest_terminal_summary(terminalreporter, config):
    "After a run of the slow tier, write what passed and failed to results/slow.csv"
    if hasattr(config, "workerinput") or config.option.markexpr != "slow": return
    record, date = read_record(), time.strftime("%Y-%m-%d")
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            said = dict(getattr(report, "user_properties", []))
            if not said.get("slow"): continue
            record[report.nodeid] = dict(test=report.nodeid, outcome=outcome, date=date, code=code_hash(report.nodeid), proves=said["proves"])
    if not record: return
    RECORD.parent.mkdir(exist_ok=True)
    with open(RECORD, "w", newline="", encoding="utf-8") as f:
        table = csv.DictWriter(f, FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows(record[k] for k in sorted(record))
    terminalreporter.write_line(f"results/slow.csv: {len(record)} slow tests on record")
