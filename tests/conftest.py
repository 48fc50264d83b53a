"A throw-away copy of the working tree, so that tests run the real pipeline without touching yours"
import os, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
ENV.pop("FORGE_LOG", None); ENV.pop("FORGE_CKPT", None)


CUT = "unshare --map-root-user --net"  # runs a command without any network, where the system allows it
OFFLINE = CUT if not subprocess.run([*CUT.split(), "true"], capture_output=True).returncode else ""


class Copy:
    "A copy of what git would commit, with data/, its own DVC cache and one commit"

    def __init__(self, folder: Path):
        self.root = folder
        files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for f in filter(None, files):
            if (ROOT/f).exists():
                (folder/f).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT/f, folder/f)
        shutil.copytree(ROOT/"data", folder/"data")
        self("git init -q && git add -A && git -c user.name=t -c user.email=t@localhost commit -qm copy && dvc add -q data && git diff --exit-code")

    def __call__(self, line: str, rc: int = 0) -> str:
        "Run a shell command in the copy; its output, with the exit code checked"
        done = subprocess.run(["bash", "-c", line], cwd=self.root, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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
        family = descendants(running.pid)
        for pid in [running.pid, *family]:
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: continue
        running.wait()


def descendants(pid: int) -> list:
    "Process ids of all children of a process, kernels in their own sessions included"
    children = [int(c) for task in Path(f"/proc/{pid}/task").glob("*") for c in (task/"children").read_text().split()]
    return children + [d for c in children for d in descendants(c)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Copy:
    "A copy in which the whole chain has run with the profile `tiny`, the network cut"
    copy = Copy(tmp_path_factory.mktemp("tiny"))
    copy(f"python -m forge_nb.runner profile tiny && {OFFLINE} dvc repro && git add -A && git -c user.name=t -c user.email=t@localhost commit -qm tiny")
    return copy


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Copy:
    "A copy in which nothing has run"
    return Copy(tmp_path_factory.mktemp("bare"))
