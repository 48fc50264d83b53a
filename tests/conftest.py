"A throw-away copy of the working tree, so that tests run the real pipeline without touching yours"
import os, shutil, signal, subprocess, sys, time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
for name in ("FORGE_LOG", "FORGE_CKPT", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"): ENV.pop(name, None)  # of the run that tests us


CUT = "unshare --map-root-user --net"  # runs a command without any network, where the system allows it
OFFLINE = CUT if not subprocess.run([*CUT.split(), "true"], capture_output=True).returncode else ""


class Copy:
    "A copy of what git would commit, with data/, its own DVC cache and one commit"

    def __init__(self, folder: Path):
        self.root = folder
        files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout.split("\0")
        for f in filter(None, files):
            if (ROOT/f).exists():
                (folder/f).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT/f, folder/f)
        shutil.copytree(ROOT/"data", folder/"data")
        self("git init -q && git add -A && git -c user.name=t -c user.email=t@localhost commit -qm copy && dvc add -q data && git diff --exit-code")

    def __call__(self, line: str, rc: int = 0) -> str:
        "Run a shell command in the copy; its output, with the exit code checked"
        done = subprocess.run(["bash", "-c", line], cwd=self.root, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
        assert (done.returncode == rc if rc is not None else done.returncode != 0), f"`{line}` exited with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout

    def executed(self, said: str) -> list:
        "Stages that `dvc repro` really ran, from its output"
        return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]

    def kill_when(self, line: str, pattern: str, limit: float = 120.):
        "Start a command, and SIGKILL it with all its children once a file of this pattern is there"
        running = subprocess.Popen(["bash", "-c", line], cwd=self.root, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + limit
        while not list(self.root.glob(pattern)):
            assert running.poll() is None and time.monotonic() < end, f"{pattern} never came"
            time.sleep(.01)
        family = []
        while family != (family := [running.pid, *(p.pid for p in psutil.Process(running.pid).children(recursive=True))]):  # stopped first, so that none starts another meanwhile
            for pid in family: send(pid, signal.SIGSTOP)
        for pid in family: send(pid, signal.SIGKILL)
        running.wait()
        while any(map(psutil.pid_exists, family)): assert time.monotonic() < end + 60; time.sleep(.01)  # DVC takes the locks of living processes seriously


def send(pid: int, number: int):
    "Send a signal to a process, if it is still there"
    try: os.kill(pid, number)
    except ProcessLookupError: pass


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Copy:
    "A copy in which the whole chain has run with the profile `tiny`, the network cut"
    copy = Copy(tmp_path_factory.mktemp("tiny"))
    copy(f"python -m forge_nb.core.runner profile tiny && {OFFLINE} dvc repro && git add -A && git -c user.name=t -c user.email=t@localhost commit -qm tiny")
    return copy


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Copy:
    "A copy in which nothing has run"
    return Copy(tmp_path_factory.mktemp("bare"))
