"`forge verify`: what a rerun from recorded inputs shows, what it refuses, and that the project stays as it is"
import hashlib, json, os, shutil, signal, subprocess, sys
from pathlib import Path

import pytest
from copies import COMMIT, ENV, FORGE, ROOT, ask, refuse, sibling, swap_line, wait_for

from forge_nb.core.project import Invalid
from forge_nb.ops.verify import SCRATCH, verify

STAGES = """\
stages:
  copy:
    cmd: python gather.py
    deps: [gather.py, data/facts]
    outs: [artifacts/copy/rows, artifacts/copy/extra.txt]
  count:
    cmd: python count.py
    deps: [count.py, artifacts/copy/rows]
    params: [count]
    outs: [artifacts/count/n.txt, reports/count.ipynb]
    metrics: [artifacts/count/metrics.json: {cache: false}]
"""
FILES = {
    "dvc.yaml": STAGES, "params.yaml": "count: {step: 1}\nshared: {threads: 2}\n", "README.md": "prose\n",
    ".gitignore": "/data\n/artifacts/*/*\n!/artifacts/*/metrics.json\n/reports/\n/receipts/\n",
    "data/facts/a.csv": "key,value\na,1\n", "data/b.txt": "beside\n",
    "gather.py": "import os, shutil\nshutil.copytree('data/facts', 'artifacts/copy/rows')\n"
               "open('artifacts/copy/extra.txt', 'w').write('extra')\n",
    "count.py": "import os, time\nfor name in ('artifacts/count', 'reports'): os.makedirs(name, exist_ok=True)\n"
                "n = len(open('artifacts/copy/rows/a.csv').read())\n"
                "open('artifacts/count/n.txt', 'w').write(str(n))\n"
                "open('artifacts/count/metrics.json', 'w').write(str(n + 1))\n"
                "open('reports/count.ipynb', 'w').write(str(time.time_ns()))\n"}


def shell(root: Path, line: str) -> str:
    done = subprocess.run(["bash", "-c", line], cwd=root, env=ENV, capture_output=True, text=True, encoding="utf-8")
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def commit(root: Path): shell(root, f"git add -A && {COMMIT} -m change")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "A project of two stages that has run, with data, a folder, a metric in git and a page that holds the time"
    root = tmp_path_factory.mktemp("made")/"project"
    for name, text in FILES.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_text(text, encoding="utf-8")
    shell(root, "git init -q && dvc init -q && dvc add -q data && dvc repro -q")
    commit(root)
    return root


@pytest.fixture
def toy(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path/"project", symlinks=True)
    shell(tmp_path/"project", "git update-index -q --refresh")
    return tmp_path/"project"


def run(root: Path, *names, sample: int = 0, seed: int = -1) -> tuple:
    lines = []
    return verify(root, list(names), sample, seed, lines.append), lines


def hashes(root: Path) -> dict:
    "Hash and mode of every file but the statement, git's index and DVC's locks"
    skip = ("receipts/", ".dvc/tmp/", ".git/")
    files = [p for p in root.rglob("*") if p.is_file() and not p.relative_to(root).as_posix().startswith(skip)]
    return {p.relative_to(root).as_posix(): (hashlib.md5(p.read_bytes()).hexdigest(), p.stat().st_mode) for p in files}


def cached(root: Path, path: Path) -> Path:
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    return root/".dvc/cache/files/md5"/digest[:2]/digest[2:]


def flip(path: Path) -> Path:
    "Turn one bit of an object of the cache, which stays write-protected"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_the_same_bytes(toy):
    before = hashes(toy)
    answer, lines = run(toy)
    copied, counted = answer.stages
    assert answer.verdict == "same" and [s.outcome for s in answer.stages] == ["same", "same"]
    assert copied.inputs.keys() == {"gather.py", "data/facts"} and not copied.changed and not counted.changed
    page = next(out for out in counted.outs if out.path == "reports/count.ipynb")
    assert not page.same and not page.counts and page.found  # it holds the time
    assert all(out.same and out.stored == "intact" for s in answer.stages for out in s.outs if out is not page)
    assert hashes(toy) == before and not (toy/SCRATCH).exists()
    assert answer.commit == shell(toy, "git rev-parse HEAD").strip() and answer.machine.threads == 2
    assert json.loads((toy/answer.statement).read_text(encoding="utf-8")) == answer.model_dump()
    assert answer.commit in (toy/answer.statement).with_suffix(".md").read_text(encoding="utf-8")
    assert [line for line in lines if line.startswith("stage ")] == ["stage copy (1 of 2)", "stage count (2 of 2)"]


def test_a_flipped_bit_in_an_input_is_named(toy):
    path = flip(cached(toy, toy/"artifacts/copy/rows/a.csv"))
    before = hashes(toy)
    with pytest.raises(Invalid, match="artifacts/copy/rows/a.csv: the object .*copy` makes it again") as said: run(toy, "count")
    assert str(path) in str(said.value) and hashes(toy) == before and not list(toy.glob("receipts/*"))


def test_a_flipped_bit_in_an_out_and_a_metric_changed_by_hand_are_named(toy):
    (toy/"artifacts/count/metrics.json").write_text("99", encoding="utf-8")
    commit(toy)
    flip(cached(toy, toy/"artifacts/count/n.txt"))
    before = hashes(toy)
    answer, _ = run(toy, "count")
    damaged, metric = sorted((out for out in answer.stages[0].outs if out.stored == "damaged"), key=lambda out: out.path == "artifacts/count/metrics.json")
    assert metric.path == "artifacts/count/metrics.json" and metric.same
    assert answer.verdict == "differs" and damaged.path == "artifacts/count/n.txt" and damaged.same
    assert damaged.damaged == ["artifacts/count/n.txt"] and hashes(toy) == before
    assert "stored with another content: artifacts/count/n.txt" in (toy/answer.statement).with_suffix(".md").read_text(encoding="utf-8")


def test_a_flipped_bit_within_a_folder_is_named(toy):
    rows = cached(toy, toy/"data/facts/a.csv")  # the same content, so the same object, as artifacts/copy/rows/a.csv
    swap_line(toy/"gather.py", "'data/facts', ", "'data/facts', copy_function=lambda a, b: open(b, 'w').write('x'), dst=")
    shell(toy, "dvc repro -q")
    commit(toy)
    flip(cached(toy, toy/"artifacts/copy/rows/a.csv"))
    answer, _ = run(toy, "copy")
    assert rows.exists() and answer.verdict == "differs"
    assert [out.damaged for out in answer.stages[0].outs if out.damaged] == [["artifacts/copy/rows/a.csv"]]


def test_a_line_of_code_and_a_parameter_committed_after_the_run_are_named(toy):
    swap_line(toy/"count.py", "write(str(n))", "write(str(n + 1))")
    swap_line(toy/"params.yaml", "step: 1", "step: 2")
    commit(toy)
    answer, _ = run(toy)
    copied, counted = answer.stages
    assert answer.verdict == "differs" and copied.outcome == "same" and not copied.changed
    assert counted.changed == ["count.py", "params.yaml: count"]
    assert [out.path for out in counted.outs if not out.same and out.counts] == ["artifacts/count/n.txt"]


def test_a_stage_that_reads_what_it_does_not_list_fails(toy):
    swap_line(toy/"count.py", "import os, time\n", "import os, time\nopen('artifacts/copy/extra.txt')\n")
    shell(toy, "dvc repro -q")
    commit(toy)
    answer, _ = run(toy)
    copied, counted = answer.stages
    assert (answer.verdict, copied.outcome, counted.outcome) == ("differs", "same", "failed") and "count" in counted.reason


@pytest.mark.parametrize("line, words", [
    ("echo '# later' >> count.py", "not committed: count.py"),
    ("echo '# later' >> params.yaml", "not committed: params.yaml"),
    ("sed -i 's/size: 1$/size: 2/' dvc.lock && echo >> dvc.lock", "not committed: dvc.lock"),
    ("rm -r .dvc/cache/files", "data/facts: its object .* `dvc pull` brings it"),
    (f"git rm -q --cached dvc.lock && rm dvc.lock && {COMMIT} -m unlocked", "dvc.lock records nothing of the stage `copy`")])
def test_what_cannot_be_verified_is_a_sentence(toy, line, words):
    shell(toy, line)
    before = hashes(toy)
    with pytest.raises(Invalid, match=words): run(toy)
    with pytest.raises(Invalid, match="the stages are copy, count"): run(toy, "nosuch")
    assert hashes(toy) == before and not (toy/SCRATCH).exists() and not list(toy.glob("receipts/*"))


def test_what_decides_nothing_may_differ_and_a_draw_is_repeated(toy):
    (toy/"README.md").write_text("other prose\n", encoding="utf-8")
    first, lines = run(toy, sample=1)
    second, _ = run(toy, sample=1, seed=first.seed)
    assert [s.stage for s in first.stages] == [s.stage for s in second.stages] and len(first.stages) == 1
    assert f"drawn with the seed {first.seed}" in lines[0] and first.statement != second.statement


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_in_the_middle_leaves_a_folder_at_most(toy, number):
    swap_line(toy/"count.py", "import os, time\n", "import os, time\nif os.path.exists('../slow'): open('began', 'w').close(); time.sleep(20)\n")
    shell(toy, "dvc repro -q")
    commit(toy)
    before = hashes(toy)
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pathlib import Path; from forge_nb.ops.verify import verify; verify(Path({str(toy)!r}), ['count'], 0, -1, print)"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=ENV, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (toy/SCRATCH).exists(), running, pause=.01)
    (toy/SCRATCH/"slow").touch()
    wait_for(lambda: list((toy/SCRATCH).glob("*/began")), running)
    os.kill(running.pid, number)
    assert running.wait() and hashes(toy) == before
    assert (toy/SCRATCH).exists() == (number == signal.SIGKILL)
    assert run(toy, "count")[0].verdict == "same" and not (toy/SCRATCH).exists() and hashes(toy) == before


def test_the_command_line(bare, tmp_path):
    "Exit codes and JSON, on a real stage whose code was changed by a commit"
    copy = sibling(bare, tmp_path/"project")
    copy("mv .dvc/cache .dvc/aside")  # tests before may have run stages in the copy
    refuse(copy, "verify assess", 2, "artifacts/ingest/", "`dvc repro --force ingest`")
    copy("mv .dvc/aside .dvc/cache")
    swap_line(copy.root/"nbs"/"35_ngram.ipynb", "return ", "return  ")
    assert "not committed: nbs/35_ngram.ipynb" in ask(copy, "verify tangle", 2)["error"]
    copy(f"python -m forge_nb.core.tangle export && git add -A && {COMMIT} -m later")
    answer = ask(copy, "verify tangle", 1)
    assert answer["verdict"] == "differs" and answer["stages"][0]["changed"] == ["nbs"] and answer["machine"]["versions"]["torch"]
    assert {out["path"]: out["same"] for out in answer["stages"][0]["outs"]} == dict(build=False, forge_nb=False)


@pytest.mark.slow
def test_stages_of_the_pipeline(bare, tmp_path):
    "Proves: real stages give the same bytes again, and a later commit that changes a stage's code is named"
    copy = sibling(bare, tmp_path/"project")
    copy(f"python -m forge_nb.core.runner profile tiny && dvc repro -q assess && git add -A && {COMMIT} -m run")
    answer = ask(copy, "verify tangle ingest assess")
    assert answer["verdict"] == "same" and len(answer["stages"]) == 3 and not any(s["changed"] for s in answer["stages"])
    page = copy.root/"nbs"/"12_assess.ipynb"
    swap_line(page, "#| run\\n\",\n", "#| run\\n\",\n    \"later = 1\\n\",\n")
    copy(f"python -m forge_nb.core.tangle export && git add -A && {COMMIT} -m later")
    ingest, assess = ask(copy, "verify ingest assess")["stages"]
    assert not ingest["changed"] and assess["changed"] == ["build/assess.py"] and assess["outcome"] == "same"
    assert "its code is not the one that dvc.lock names: build/assess.py" in copy(f"{FORGE} verify assess")
