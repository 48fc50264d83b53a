"Reading is kept by content: what was read once is not read again, what has gone leaves no text, a kill changes no byte"
import os, signal, subprocess, sys
from pathlib import Path

import pytest
from copies import wait_for
from test_curate import PARAMS, SHARED, digests

from forge_nb.core.project import ROOT
from forge_nb.data import readers
from forge_nb.ingest import ingest

RTF = rb"{\rtf1 Machine %d is greased every %d hours, and its guard is tested before each shift by two people.\par Then it is signed.}"


def letters(data: Path, count: int):
    "A folder of rich texts, and a page that no library reads"
    data.mkdir(parents=True)
    for n in range(count): (data/f"letter {n:02}.rtf").write_bytes(RTF % (n, n * n + 7))
    (data/"page.md").write_text("The lamp over the gate stays lit at night, and is changed in May.\n", encoding="utf-8")


def read(data: Path, cache: Path, out: Path, **changed) -> dict:
    return ingest(data, ROOT/"company/templates.yaml", cache, **PARAMS["ingest"] | SHARED | changed, out=out)


@pytest.fixture
def calls(monkeypatch):
    "Sources that a library reads, in this process"
    found = []
    def call(function, *arguments): found.append(1); return function(*arguments)
    monkeypatch.setattr(readers, "call_standing", call)
    return found


def test_a_second_run_reads_nothing_again(tmp_path, calls):
    letters(tmp_path/"data", 5)
    read(tmp_path/"data", tmp_path/"cache", tmp_path/"first")
    assert len(calls) == 5
    read(tmp_path/"data", tmp_path/"cache", tmp_path/"second")
    read(tmp_path/"data", None, tmp_path/"third")
    assert len(calls) == 10 and digests(tmp_path/"first") == digests(tmp_path/"second") == digests(tmp_path/"third")
    (tmp_path/"data"/"letter 03.rtf").write_bytes(RTF % (3, 99))
    read(tmp_path/"data", tmp_path/"cache", tmp_path/"changed")
    assert len(calls) == 11 and b"every 99 hours" in (tmp_path/"changed"/"documents"/"00000.jsonl").read_bytes()


def test_what_has_gone_leaves_no_text(tmp_path):
    letters(tmp_path/"data", 3)
    read(tmp_path/"data", tmp_path/"cache", tmp_path/"out")
    for path in (tmp_path/"cache").iterdir(): os.utime(path, (9, 9))  # of an earlier run
    (tmp_path/"data"/"letter 02.rtf").unlink()
    read(tmp_path/"data", tmp_path/"cache", tmp_path/"out")
    kept = [path.read_bytes() for path in (tmp_path/"cache").iterdir()]
    assert len(kept) == 2 and not any(b"every 11 hours" in text for text in kept)


@pytest.mark.slow
def test_killed_while_reading_and_run_again_gives_the_same_bytes(tmp_path, calls):
    "What was read before the kill is not read again"
    letters(tmp_path/"data", 40)
    code = f"import sys; sys.path.insert(0, {str(ROOT/'tests')!r}); from pathlib import Path; from test_ingest import read; read(*map(Path, {[str(tmp_path/name) for name in ('data', 'cache', 'out')]!r}), workers=2, shard_megabytes=.001)"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len([*(tmp_path/"cache").glob("*.json")]) >= 5, running, pause=.001)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    kept = len([*(tmp_path/"cache").glob("*.json")])
    read(tmp_path/"data", tmp_path/"cache", tmp_path/"out", shard_megabytes=.001)
    assert 5 <= kept < 40 and len(calls) == 40 - kept
    read(tmp_path/"data", None, tmp_path/"whole", shard_megabytes=.001)
    assert digests(tmp_path/"out") == digests(tmp_path/"whole")
