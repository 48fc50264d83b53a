"Code that a model wrote: what it must not do it cannot, and nothing of it is left"
import os, tempfile
from pathlib import Path

import psutil
import pytest

from forge_nb.core.project import Invalid
from forge_nb.evals.coding import score_code
from forge_nb.metrics import sandbox
from forge_nb.metrics.sandbox import SandboxLimits, can_cut_network, run_tests

PATIENT = SandboxLimits(seconds=300., megabytes=256)
needs_unshare = pytest.mark.skipif(not can_cut_network(), reason="this system lets no process be without a network")


@needs_unshare
@pytest.mark.parametrize("solution, reason", [
    ("def double(x): return x * x", "AssertionError"),
    ("raise SystemExit(0)", "left before its tests were through"),
    ("import os; os._exit(0)", "left before its tests were through"),
    ("print('passed')\nimport os; os._exit(0)", "left before its tests were through"),
    ("x = [0] * (1 << 28)", "MemoryError"),
    ("open('big', 'wb').write(bytes(64 << 20))", "File too large"),
    ("import threading, time; threading.Thread(target=time.sleep, args=(1,), daemon=True).start(); import os; os.fork()", "PermissionError"),
    ("import os; os.system('true')", "PermissionError"),
    ("import socket; socket.create_connection(('192.0.2.1', 80), 5)", "unreachable"),
    ("import numpy", "No module named 'numpy'"),
    ("def double(x): return x * 2\n\ud800", ""),
])
def test_what_it_must_not_do_it_cannot(solution, reason):
    passed, said = run_tests(solution, "assert double(4) == 8", PATIENT)
    assert not passed and reason in said, said


@needs_unshare
def test_right_code_passes_and_nothing_is_left():
    before = set(os.listdir(tempfile.gettempdir()))
    assert run_tests("def double(x): return x * 2\nopen('note', 'w').write('a')", "assert double(4) == 8", PATIENT) == (True, "")
    assert set(os.listdir(tempfile.gettempdir())) <= before | {"note"} and not Path("note").exists()


@needs_unshare
def test_an_endless_loop_ends_with_its_children():
    running = lambda: {p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE}
    limits, before = SandboxLimits(seconds=1., may_start_processes=True), running()
    passed, said = run_tests("import os\nos.fork()\nwhile True: pass", "", limits)
    assert not passed and said == "took more than 1 s"
    assert running() <= before


def test_without_a_sandbox_nothing_is_run(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "can_cut_network", lambda: False)
    mark = tmp_path/"ran"
    with pytest.raises(Invalid, match="user namespaces") as error: run_tests(f"open({str(mark)!r}, 'w')", "", PATIENT)
    assert "\n" not in str(error.value) and not mark.exists()
    item = dict(id="a", origin="a.jsonl", tests="assert True")
    with pytest.raises(Invalid): score_code([item], [dict(id="a", checkpoint="rl", prompt_field="prompt", text="a = 1")])
