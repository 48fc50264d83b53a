"Throw-away copies of the working tree, so that tests run the real pipeline without touching yours"
import fcntl, json, os, shutil, signal, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path

import psutil
from jsonschema import validate

from forge_nb.ops.cli import answer_schema

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1",
       "HF_HUB_OFFLINE": "1"}
for name in ("FORGE_LOG", "FORGE_CKPT", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"): ENV.pop(name, None)  # of the run that tests us
COMMIT = "git -c user.name=t -c user.email=t@localhost commit -q"

CUT = "unshare --map-root-user --net"  # runs a command without any network, where the system allows it
OFFLINE = CUT if not subprocess.run([*CUT.split(), "true"], capture_output=True).returncode else ""

HANG = 1800  # seconds after which a process that is waited for is taken to hang; no test's outcome depends on it otherwise


def wait_for(condition, process=None, pause: float = .02):
    "Wait until a condition holds. A process that ends before fails the test, as does one that hangs; a slow machine does not"
    end = time.monotonic() + HANG
    while not (found := condition()):
        assert process is None or process.poll() is None, "the process ended before"
        assert time.monotonic() < end, f"nothing happened for {HANG} s"
        time.sleep(pause)
    return found


def send(pid: int, number: int):
    "Send a signal to a process, if it is still there"
    try: os.kill(pid, number)
    except ProcessLookupError: pass


class Copy:
    "A copy of what git would commit, with data/, its own DVC cache and one commit"

    def __init__(self, folder: Path):
        self.root = folder
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True,
                                text=True, check=True, encoding="utf-8").stdout
        for f in filter(None, listed.split("\0")):
            if not (ROOT/f).exists(): continue
            (folder/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/f, folder/f)
        shutil.copytree(ROOT/"data", folder/"data")
        (folder/".cache"/"tangle").mkdir(parents=True)
        for name in ("exports", "checked"):  # what tangle noted of these very notebooks, as in a folder that is worked in
            if (noted := ROOT/".cache"/"tangle"/f"{name}.json").exists(): shutil.copy2(noted, folder/".cache"/"tangle")
        self(f"git init -q && git add -A && {COMMIT} -m copy && dvc add -q data && git diff --exit-code")

    def __call__(self, line: str, rc: int = 0) -> str:
        "Run a shell command in the copy; its output, with the exit code checked"
        done = subprocess.run(["bash", "-c", line], cwd=self.root, env=ENV, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, encoding="utf-8")
        right = done.returncode == rc if rc is not None else done.returncode != 0
        assert right, f"`{line}` exited with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout

    def executed(self, said: str) -> list:
        "Stages that `dvc repro` really ran, from its output"
        return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]

    def kill_when(self, line: str, pattern: str):
        "Start a command, and SIGKILL it with all its children once a file of this pattern is there"
        running = subprocess.Popen(["bash", "-c", line], cwd=self.root, env=ENV, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for(lambda: list(self.root.glob(pattern)), running, pause=.01)
        family = []
        def members(): return [running.pid, *(p.pid for p in psutil.Process(running.pid).children(recursive=True))]
        while family != (family := members()):  # stopped first, so that none starts another meanwhile
            for pid in family: send(pid, signal.SIGSTOP)
        for pid in family: send(pid, signal.SIGKILL)
        running.wait()
        wait_for(lambda: not any(map(psutil.pid_exists, family)))  # DVC takes the locks of living processes seriously


@contextmanager
def locked(path: Path):
    "Hold a lock that other workers of this test run wait for"
    with open(path, "w", encoding="utf-8") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def swap_line(path: Path, old: str, new: str):
    "Put a text in the place of another, which must be there"
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def sibling(copy: Copy, folder: Path) -> Copy:
    "A second, independent copy of a project, its cache included"
    shutil.copytree(copy.root, folder, symlinks=True)
    other = object.__new__(Copy)
    other.__dict__ |= copy.__dict__ | dict(root=folder)
    return other


PAGE = "docs/faq/admin.txt"  # a page of the training split, of which a table of facts speaks


def plant_duplicate(copy: Copy) -> dict:
    "Put a near-duplicate of PAGE into data/, and name PAGE in a row of the table that named another page"
    text, table = (copy.root/"data"/PAGE).read_text(encoding="utf-8"), copy.root/"data"/"facts"/"objects.csv"
    (copy.root/"data"/"docs"/"zz old copy.txt").write_text(text.replace(" the ", " a ", 1), encoding="utf-8")
    first, *rest = table.read_text(encoding="utf-8").splitlines(keepends=True)
    number = next(n for n, row in enumerate(rest) if ",class," in row and ",docs/" in row)
    old = next(cell for cell in rest[number].split(",") if cell.startswith("docs/"))
    rest[number] = rest[number].replace(old, PAGE)
    table.write_text("".join([first, *rest]), encoding="utf-8")
    return dict(page=PAGE, text=text, row=number + 2)


def make_tiny(copy: Copy) -> dict:
    "Take the profile `tiny` and data with a near-duplicate of a page; the page, its text and the row that names it"
    planted = plant_duplicate(copy)
    copy("python -m forge_nb.core.runner profile tiny && python -m forge_nb.core.runner adopt && dvc add -q data")
    return planted


FORGE = "python -m forge_nb.ops.cli"


def ask(copy: Copy, line: str, rc: int = 0) -> dict:
    "The JSON answer of a verb, held to its schema; nothing else may stand on standard output"
    done = copy(f"{FORGE} {line} --json 2>.git/errors", rc)
    answer = json.loads(done)
    validate(answer, answer_schema(line.split()[0]))
    return answer


def refuse(copy: Copy, line: str, rc: int, *words: str):
    "One sentence on standard error with these words, the exit code, no traceback"
    output = copy(f"{FORGE} {line} 2>&1 >/dev/null", rc)
    errors = [row for row in output.splitlines() if row.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in output, output
    for w in words: assert w in errors[0], errors[0]


def fails_with(copy, line: str, *words):
    "The command fails with one sentence that holds these words, and no traceback"
    said = copy(line, rc=None)
    error = [row for row in said.splitlines() if row.startswith("error: ")]
    assert len(error) == 1 and "Traceback" not in said, said
    for w in words: assert w in error[0], error[0]
