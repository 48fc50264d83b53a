"Twenty kills at random moments of a whole run, each of another victim, and the hashes that come out in the end"
import json, os, random, signal, subprocess, time

import psutil
import pytest
from copies import ENV, ROOT, Copy, make_tiny, send, wait_for
from forge_nb.core.project import describe_machine, write_csv

NUM_KILLS, NUM_BATCHES = 20, 4
VICTIMS = ["dvc", "runner", "kernel", "all"]
TELLING = ["had been killed. Auto removed", "is already running in another process", "the other process made",
           "resumed at step", "resumed from checkpoint", "ERROR: ", "error: "]  # a line with one of these says what a run met


def read_timetable(copy: Copy) -> dict:
    "Stage → when it began and ended, in seconds since the first one began"
    rows = [json.loads(line) for line in (copy.root/"runs/history/stages.jsonl").read_text(encoding="utf-8").splitlines()]
    began = rows[0]["time"] - rows[0]["total_seconds"]
    return {row["stage"]: (row["time"] - row["total_seconds"] - began, row["time"] - began) for row in rows}


def draw_kills(seconds: float, seed: int = 0) -> list:
    "Moments of a run that takes so many seconds, in their order, with a victim each"
    draws = random.Random(seed)
    return list(zip(sorted(draws.uniform(0, seconds) for _ in range(NUM_KILLS)), VICTIMS * (NUM_KILLS // len(VICTIMS))))


def is_inside(process: psutil.Process, root) -> bool:
    "Whether a process works in a folder"
    try: return process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(root)
    except psutil.Error: return False


def has_words(process: psutil.Process, words: str) -> bool:
    "Whether the command line of a process has these words"
    try: return words in " ".join(process.cmdline())
    except psutil.Error: return False


RUNNER, KERNEL = "forge_nb.core.runner ", "ipykernel_launcher"


class Run:
    "`dvc repro` in a copy, with its output in a file"

    def __init__(self, copy: Copy, number: int):
        self.root, self.log, self.began = copy.root, copy.root.parent/f"run{number}.log", time.monotonic()
        with open(self.log, "w", encoding="utf-8") as f:
            self.process = subprocess.Popen(["dvc", "repro"], cwd=copy.root, env=ENV, stdout=f, stderr=f, start_new_session=True)
        self.dvc = psutil.Process(self.process.pid)

    def all_inside(self) -> list:
        "Every process that works in this checkout, those whose parent was killed included"
        return [p for p in psutil.process_iter() if is_inside(p, self.root)]

    def find_position(self, timetable: dict) -> tuple:
        "Stage that runs, and how far an undisturbed run would be"
        for process in self.all_inside():
            if not has_words(process, RUNNER): continue
            try: stage, age = process.cmdline()[-1], time.time() - process.create_time()
            except psutil.Error: continue
            return stage, min(timetable[stage][0] + age, timetable[stage][1])
        return "", 0.

    def kill(self, victim: str) -> bool:
        "SIGKILL to a victim of this run; whether there was one"
        self.said_before = self.said()
        if victim == "all":
            for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none starts another meanwhile
                for process in self.all_inside(): send(process.pid, number)
            return True
        try: family = [self.dvc, *self.dvc.children(recursive=True)]
        except psutil.Error: return False
        words = dict(runner=RUNNER, kernel=KERNEL)
        found = [self.dvc] if victim == "dvc" else [p for p in family if has_words(p, words[victim])]
        if found: send(found[0].pid, signal.SIGKILL)
        return bool(found)

    def said(self) -> str: return self.log.read_text(encoding="utf-8", errors="replace")


def pick_lines(said: str) -> str:
    "What a run said of what it met, without numbers of processes and paths"
    lines = [line.strip() for line in said.splitlines() if any(words in line for words in TELLING)]
    return " · ".join(dict.fromkeys("a killed process was removed from DVC's lock file" if "Auto removed" in line else line for line in lines))


@pytest.fixture(scope="module")
def killed(chain, tmp_path_factory):
    "A second project like `chain`, in which nothing has run, and what the kills come to"
    folder = tmp_path_factory.mktemp("killed")
    (folder/"project").mkdir()
    copy = Copy(folder/"project")
    make_tiny(copy)
    copy.timetable = read_timetable(chain)
    copy.seconds = max(end for _, end in copy.timetable.values())
    copy.kills, copy.rows, copy.at = draw_kills(copy.seconds), [], 0.
    yield copy
    for process in psutil.process_iter():
        if is_inside(process, copy.root): send(process.pid, signal.SIGKILL)


def close_row(copy: Copy, run: Run, at: float):
    "Note what the run after a kill said, and how many more seconds it took from that moment to this one"
    if copy.rows:
        stage = copy.rows[-1]["stage"]
        said = pick_lines(run.said_before) or f"stage {stage} ran again from its start"
        copy.rows[-1] |= dict(next_run=said, lost_seconds=round(max(time.monotonic() - run.began - (at - copy.at), 0), 1))
    copy.at = at


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(NUM_BATCHES))
def test_kills_at_random_moments(killed, batch):
    "Proves: SIGKILL to dvc, runner, kernel or all of them, at random moments of a whole run, is met by `dvc repro` again"
    size = NUM_KILLS // NUM_BATCHES
    for number in range(batch * size, (batch + 1) * size):
        moment, victim = killed.kills[number]
        run = Run(killed, number)
        def is_due():
            stage, position = run.find_position(killed.timetable)
            return stage if stage and position >= moment and run.kill(victim) else ""
        stage = wait_for(is_due, run.process, pause=.1)
        run.process.wait()
        if victim == "kernel": assert f"error: stage {stage}: its kernel was killed" in run.said(), run.said()[-3000:]
        assert "Traceback" not in run.said(), run.said()[-3000:]
        close_row(killed, run, moment)
        killed.rows.append(dict(moment=round(moment, 1), stage=stage, victim=victim))


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_in_the_hashes_of_an_undisturbed_one(chain, killed):
    "Proves: after twenty kills, `dvc repro` ends with the dvc.lock of a run that nobody disturbed"
    assert len(killed.rows) == NUM_KILLS, "run the whole file: the kills come before"
    run = Run(killed, NUM_KILLS)
    run.process.wait()
    run.said_before = run.said()
    assert run.process.returncode == 0, run.said()[-3000:]
    close_row(killed, run, killed.seconds)
    assert (killed.root/"dvc.lock").read_text(encoding="utf-8") == (chain.root/"dvc.lock").read_text(encoding="utf-8"), killed(f"diff dvc.lock {chain.root}/dvc.lock", rc=None)
    assert "Data and pipelines are up to date." in killed("dvc repro")
    for victim in VICTIMS: assert any(row["victim"] == victim for row in killed.rows)
    machine = describe_machine()
    about = dict(undisturbed_seconds=round(killed.seconds, 1), cpu=machine["cpu"], cpus=os.cpu_count(), torch=machine["versions"]["torch"])
    write_csv(ROOT/"results"/"faults.csv", [row | about for row in killed.rows])
