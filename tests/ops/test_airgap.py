"`forge airgap`: a stage runs without a network, and a planted connection is caught and named; set-up from a folder of wheels"
import shutil, subprocess, sys

import pytest
from jsonschema import validate

from copies import ENV, OFFLINE
from forge_nb.core.project import ROOT, Invalid, RunFailed, load_params, read_json, write_json
from forge_nb.ops import airgap as page
from forge_nb.ops.cli import answer_schema

DVC = [sys.executable, "-m", "dvc"]
needs_tracer = pytest.mark.skipif(not page.find_tracer(), reason="strace does not run here")


def test_a_stage_runs_without_a_network_and_reaches_for_none(mend):
    "tangle and ingest, in a kernel, with workers"
    said = []
    assert page.run_step(mend.root, "pipeline", [*DVC, "repro", "--force", "ingest"], said.append) == []  # which may have run in this copy
    assert (mend.root/"artifacts"/"ingest"/"metrics.json").exists() and any("stage ingest" in line for line in said)
    assert not (mend.root/"runs"/"trace").exists()


@needs_tracer
@pytest.mark.parametrize("command", [
    ["bash", "-c", "echo > /dev/tcp/192.0.2.1/80; true"], [sys.executable, "-ISc", "import socket\ntry: socket.socket().connect(('192.0.2.1', 80))\nexcept OSError: pass"],
    [sys.executable, "-ISc", "import socket\ntry: socket.socket(type=socket.SOCK_DGRAM).sendto(b'a', ('192.0.2.1', 80))\nexcept OSError: pass"],
    ["bash", "-c", "(bash -c 'echo > /dev/tcp/192.0.2.1/80') & wait"]])
@pytest.mark.skipif(not OFFLINE, reason="this system lets no process be without a network, and a test sends nothing")
def test_what_no_guard_sees_the_tracer_names(tmp_path, command):
    "A program that is no Python, one that reads no environment, a datagram, a child's child"
    attempts = page.run_step(tmp_path, "planted", command, print)
    assert [(a.step, a.host, a.port, a.seen_by) for a in attempts] == [("planted", "192.0.2.1", "80", "tracer")]


def test_what_the_guard_refuses_is_named_though_nobody_says_so(tmp_path):
    quiet = "import socket\ntry: socket.create_connection(('models.example', 443))\nexcept Exception: pass"
    [attempt] = page.run_step(tmp_path, "planted", [sys.executable, "-c", quiet], print)
    assert (attempt.host, attempt.port, attempt.seen_by) == ("models.example", "443", "guard")


def test_a_step_that_fails_for_another_reason_is_one_sentence(tmp_path):
    with pytest.raises(RunFailed, match="planted failed without a network, and tried to reach none: nothing is there"):
        page.run_step(tmp_path, "planted", ["bash", "-c", "echo error: nothing is there; exit 1"], print)
    page.run_step(tmp_path, "planted", ["bash", "-c", "exit 3"], print, may_find_nothing=True)


@pytest.fixture
def small(tmp_path, monkeypatch):
    "A project whose whole life is one command"
    root = tmp_path/"project"
    (root/"data").mkdir(parents=True)
    (root/"results").mkdir()
    (root/"dvc.yaml").write_text("stages:\n  ingest: {cmd: 'true', deps: [dvc.yaml], outs: [a]}\n", encoding="utf-8")
    (root/"params.yaml").write_text("shared: {a: 1}\n", encoding="utf-8")
    (root/".gitignore").write_text("/data\n/results\n/.dvc\n", encoding="utf-8")
    git = "git -c user.name=t -c user.email=t@localhost"
    subprocess.run(["bash", "-c", f"git init -q && git add -A && {git} commit -qm small"], cwd=root, env=ENV, check=True)
    return root


@pytest.mark.parametrize("planted", ["true", "import socket; socket.socket().connect(('192.0.2.1', 80))"])
def test_the_statement_says_what_was_tried(small, monkeypatch, planted):
    steps = [("pipeline", [sys.executable, "-c", planted if planted != "true" else "pass"], False), ("ask", ["true"], True)]
    monkeypatch.setattr(page, "list_steps", lambda project: iter(steps))
    answer = page.airgap(small, print)
    validate(answer.model_dump(), answer_schema("airgap"))
    assert read_json(small/"results"/"airgap.json") == answer.model_dump() and answer.steps == ["pipeline", "ask"]
    assert answer.network_cut == bool(OFFLINE) and answer.traced == bool(page.find_tracer())
    if planted == "true": assert answer.verdict == "nothing" and "No process tried to reach any host but this machine." in answer.sentence
    else: assert answer.verdict == "attempted" and "pipeline: 192.0.2.1, port 80 (seen by the guard)" in answer.sentence
    assert not (small/page.AIRGAP_SCRATCH).exists()


def test_the_statement_is_about_a_commit(small):
    (small/"params.yaml").write_text("shared: {a: 2}\n", encoding="utf-8")
    with pytest.raises(Invalid, match="not committed: params.yaml"): page.airgap(small, print)
    subprocess.run(["git", "checkout", "-q", "."], cwd=small, check=True)
    shutil.rmtree(small/"data")
    with pytest.raises(Invalid, match="data is missing; `make data` fetches it"): page.airgap(small, print)


def test_without_tracer_and_namespace_the_statement_says_so(small, monkeypatch):
    for name, found in (("find_tracer", ()), ("can_cut_network", False)): monkeypatch.setattr(page, name, lambda found=found: found)
    monkeypatch.setattr(page, "list_steps", lambda project: iter([("ask", ["true"], True)]))
    answer = page.airgap(small, print)
    assert not answer.network_cut and not answer.traced
    for words in ("since strace does not run here", "with the network as it was", "with the guard on the sockets"): assert words in answer.sentence


PROJECT = """[project]
name = "project"
version = "1.0"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import zipfile
def build_wheel(folder, *options, name="project"):
    "Write a wheel with nothing in it"
    wheel, notes = f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(f"{folder}/{wheel}", "w") as archive:
        archive.writestr(f"{notes}/METADATA", f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        archive.writestr(f"{notes}/WHEEL", "Wheel-Version: 1.0\\nGenerator: a\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(f"{notes}/RECORD", "")
    return wheel
build_editable = build_wheel
"""  # so that nothing has to be there to build with


def test_set_up_from_a_folder_of_wheels(tmp_path):
    "`make setup WHEELS=folder` with the network cut asks no index; a wheel that is not there fails it"
    project, wheels = tmp_path/"project", tmp_path/"wheels"
    for folder in (project, wheels): folder.mkdir()
    (project/"pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (project/"backend.py").write_text(BACKEND, encoding="utf-8")
    exec(BACKEND, backend := {})
    backend["build_wheel"](wheels, name="part_of_lock")
    shutil.copy(ROOT/"Makefile", project)
    shutil.copytree(ROOT/".githooks", project/".githooks")
    lock, make = project/"requirements.lock", f"{OFFLINE} make setup PYTHON={sys.executable} WHEELS=../wheels"
    lock.write_text("part-of-lock==1.0\n", encoding="utf-8")
    offline = ENV | dict(PIP_INDEX_URL="http://127.0.0.1:9/", PIP_RETRIES="0")
    done = subprocess.run(["bash", "-c", make], cwd=project, env=offline, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = subprocess.run([project/".venv"/"bin"/"python", "-m", "pip", "list"], capture_output=True, text=True, encoding="utf-8").stdout
    assert "part-of-lock" in listed.replace("_", "-")
    lock.write_text("part-of-lock==1.0\nnot-in-the-folder==1.0\n", encoding="utf-8")
    done = subprocess.run(["bash", "-c", make], cwd=project, env=offline, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode and "not-in-the-folder" in done.stderr


def write_skipped(project, reason: str):
    (project/"artifacts"/"export").mkdir(parents=True, exist_ok=True)
    write_json(project/"artifacts"/"export"/"metrics.json", dict(shipped=0, **dict(skipped=reason) if reason else {}))


@pytest.mark.parametrize("stopped", [True, False])
def test_the_export_runs_though_the_gate_stops_a_model_of_minutes(tmp_path, stopped):
    "By a waiver in the copy where there must be one, without where the gate let it out"
    steps = page.list_steps(tmp_path)
    while (step := next(steps))[0] != "pipeline": assert step[0] in ("profile", "check")
    write_skipped(tmp_path, "document, exact_match: worse" if stopped else "")
    if stopped:
        name, command, _ = next(steps)  # not run here: what it takes is a project
        assert (name, command[-2:]) == ("waiver", ["profile", "waived"])
        assert load_params(tmp_path/"config"/"profiles"/"waived.yaml")["gate"]["waiver_name"] == "forge airgap"
    name, command, may_find_nothing = next(steps)
    assert (name, command[-2:], may_find_nothing) == ("export", ["dvc", "repro"], False)
    assert (tmp_path/"config"/"profiles"/"waived.yaml").exists() == stopped
    with pytest.raises(RunFailed, match="nothing was exported: the waiver has no name"):
        write_skipped(tmp_path, "the waiver has no name")
        next(steps)


def test_where_the_pipeline_ended_at_an_attempt_nothing_is_asked_of_it(tmp_path):
    assert [name for name, *_ in page.list_steps(tmp_path)] == ["profile", "check", "pipeline"]
