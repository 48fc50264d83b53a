"What damage is met with: every case ends in the bytes of an undisturbed run, or in one sentence whose remedy ends there"
import os, re, signal, subprocess, time

import psutil
import pytest
from copies import ENV, Copy, fails_with, send, wait_for
from test_chain import set_parameter

ONE = "dvc repro --single-item"
RUNNER = "python -m forge_nb.core.runner"
MOUNT = "unshare --map-root-user --mount"
can_mount = pytest.mark.skipif(subprocess.run([*MOUNT.split(), "true"], capture_output=True).returncode != 0, reason="this system gives a user no mounts of his own")


@pytest.fixture
def damaged(tiny):
    "The project in which the whole chain has run, given back as it was"
    yield tiny
    tiny("git checkout -q . && git clean -fdq && dvc checkout -q --force && rm -rf .ckpt")


def change(copy: Copy, stage: str, field: str, value) -> None:
    "Another value of a parameter, so that the stage has something to do"
    set_parameter(copy, stage, field, value)
    copy(f"{ONE} -q tangle")


def locked_outs(copy: Copy, stage: str) -> str:
    "What dvc.lock records of a stage"
    return re.search(rf"(?m)^  {stage}:\n(?:    .*\n)+", (copy.root/"dvc.lock").read_text(encoding="utf-8"))[0]


def same_undisturbed(copy: Copy, stage: str) -> bool:
    "Whether the stage gives the same bytes when it is called again and nothing happens to it"
    before = locked_outs(copy, stage)
    assert copy.executed(copy(f"{ONE} --force {stage}")) == [stage]
    return locked_outs(copy, stage) == before


def test_deleted_and_truncated_artifacts_come_back_from_the_cache(damaged):
    copy, lock = damaged, (damaged.root/"dvc.lock").read_bytes()
    weights = copy.root/"artifacts/pretrain/model/model.safetensors"
    whole = weights.read_bytes()
    copy("rm -r artifacts/tokenizer/tokenizer artifacts/sft/model")
    for path in (weights, copy.root/"reports/dpo.ipynb"):
        half = path.read_bytes()[:path.stat().st_size // 2]
        path.unlink(); path.write_bytes(half)
    assert copy.executed(copy("dvc repro")) == []
    assert weights.read_bytes() == whole and (copy.root/"dvc.lock").read_bytes() == lock
    copy("git diff --exit-code")


def test_a_file_of_git_that_was_truncated_comes_back_from_the_run_that_wrote_it(damaged):
    (damaged.root/"artifacts/ngram/metrics.json").write_text('{"bpb"', encoding="utf-8")
    assert "Stage 'ngram' is cached - skipping run, checking out outputs" in damaged("dvc repro")
    damaged("git diff --exit-code")


def test_a_truncated_object_of_the_cache_is_made_again(damaged):
    md5 = re.search(r"path: reports/ngram.ipynb\n +hash: md5\n +md5: (\w+)", locked_outs(damaged, "ngram"))[1]
    stored = damaged.root/".dvc/cache/files/md5"/md5[:2]/md5[2:]
    whole = stored.read_bytes()
    stored.unlink(); stored.write_bytes(whole[:99])
    (damaged.root/"reports/ngram.ipynb").unlink()
    assert damaged.executed(damaged(f"{ONE} ngram")) == ["ngram"]
    assert stored.read_bytes() == whole
    damaged("git diff --exit-code")


@can_mount
@pytest.mark.parametrize("folder", ["artifacts/ngram", "reports"])
def test_a_folder_that_cannot_be_written_to_is_one_sentence(damaged, folder):
    change(damaged, "ngram", "order", 3)
    fails_with(damaged, f"{MOUNT} bash -c 'mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && {RUNNER} ngram'",
               "Read-only file system", "work in a clone that you may write to")
    damaged(f"{ONE} ngram")
    assert same_undisturbed(damaged, "ngram")


@can_mount
def test_a_full_disk_under_the_cache_ends_in_a_sentence_and_space_mends_it(damaged):
    change(damaged, "ngram", "order", 3)
    said = damaged(f"{MOUNT} bash -c 'mount -t tmpfs -o size=8k none .dvc/cache && {ONE} ngram'", rc=None)
    assert "ERROR: failed to reproduce 'ngram': [Errno 28] No space left on device" in said and "Traceback" not in said
    damaged(f"{ONE} ngram")
    assert same_undisturbed(damaged, "ngram")


def test_times_of_another_clock_change_nothing(damaged):
    "Every file dated a year ahead, as after a clock that was wrong and was set back"
    folders = ("data", "artifacts", "build", "nbs", "forge_nb", "company", ".dvc/cache")
    files = [path for folder in folders for path in (damaged.root/folder).rglob("*") if path.is_file()]
    for moment in (time.time() + 365 * 24 * 3600, time.time()):
        for path in files: os.utime(path, (moment, moment))
        assert damaged.executed(damaged("dvc repro")) == []
    assert same_undisturbed(damaged, "ngram")


def test_a_checkpoint_with_a_flipped_bit_is_not_used(damaged):
    "Nothing that reads it would notice: the run would end in other weights"
    change(damaged, "pretrain", "max_steps", 200)  # with a checkpoint in the middle
    damaged.kill_when(f"{ONE} pretrain", ".ckpt/pretrain/*.sums.json")
    (last, ) = (damaged.root/".ckpt"/"pretrain").glob("*/last")
    path = max(last.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    said = damaged(f"{ONE} pretrain")
    assert "checkpoint last was damaged and is not used" in said and "resumed at step" not in said
    assert same_undisturbed(damaged, "pretrain")


def find(copy: Copy, words: str) -> psutil.Process | None:
    "The process that works in the copy and has these words on its command line"
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(copy.root) and words in " ".join(process.cmdline()): return process
        except psutil.Error: continue


class Frozen:
    "`dvc repro` of `ngram` in the midst of its work, which stands still until it is let go on"

    def __init__(self, copy: Copy):
        (copy.root/"reports/ngram.failed.ipynb").unlink(missing_ok=True)
        self.copy = copy
        self.dvc = self.start("first.log")
        self.runner = wait_for(lambda: find(copy, "forge_nb.core.runner ngram"), self.dvc)
        self.kernel = wait_for(lambda: find(copy, "ipykernel_launcher"), self.dvc)
        for process in (self.runner, self.kernel): process.suspend()

    def start(self, name: str) -> subprocess.Popen:
        with open(self.copy.root/".git"/name, "w", encoding="utf-8") as f:
            return subprocess.Popen(["dvc", "repro", "--single-item", "--no-run-cache", "ngram"], cwd=self.copy.root, env=ENV, stdout=f, stderr=f)

    def go_on(self):
        for process in (self.kernel, self.runner): process.resume()

    def said(self, name: str) -> str: return (self.copy.root/".git"/name).read_text(encoding="utf-8")

    def run_second(self) -> str:
        "A second run, which waits before the first goes on; what it said"
        second = self.start("second.log")
        wait_for(lambda: "already running" in self.said("second.log"), second)
        self.go_on()
        assert second.wait() == 0, self.said("second.log")
        return self.said("second.log")


@pytest.fixture
def frozen(damaged):
    change(damaged, "ngram", "order", 3)
    frozen = Frozen(damaged)
    yield frozen
    for process in (frozen.dvc, frozen.runner, frozen.kernel): send(process.pid, signal.SIGKILL)
    frozen.dvc.wait()


def test_dvc_killed_alone_leaves_its_stage_and_the_next_run_waits_for_it(damaged, frozen):
    frozen.dvc.kill(); frozen.dvc.wait()
    said = frozen.run_second()
    assert "stage ngram is already running in another process; this run waits for it" in said
    assert "stage ngram: the other process made what this run would; nothing is computed again" in said, said
    assert not list((damaged.root/".ckpt").glob("*/*")) and same_undisturbed(damaged, "ngram")


def test_what_a_second_run_deleted_is_made_again(damaged, frozen):
    "DVC deletes a stage's outs before it calls the runner, also those that the run before has written by then"
    frozen.dvc.kill(); frozen.dvc.wait()
    early = damaged.root/"artifacts/ngram/early.json"  # for what the stage wrote and DVC deleted
    early.write_text("{}", encoding="utf-8"); early.unlink()
    said = frozen.run_second()
    assert "this run waits for it" in said and "nothing is computed again" not in said
    assert same_undisturbed(damaged, "ngram")


def test_a_killed_runner_takes_its_kernel_along_and_nobody_waits_for_the_dead(damaged, frozen):
    frozen.kernel.resume()
    frozen.runner.kill()
    assert frozen.dvc.wait() and "failed to reproduce 'ngram'" in frozen.said("first.log")
    wait_for(lambda: not frozen.kernel.is_running() or frozen.kernel.status() == psutil.STATUS_ZOMBIE)
    assert "waits" not in damaged(f"{ONE} ngram") and same_undisturbed(damaged, "ngram")


def test_two_runs_of_dvc_at_once(damaged, frozen):
    "DVC itself ends at once with its own sentence, and the first run is not disturbed"
    said = damaged(f"{ONE} ngram", rc=None)
    assert f"is busy, it is being blocked by:\n  (PID {frozen.dvc.pid}): " in said and "Traceback" not in said
    frozen.go_on()
    assert frozen.dvc.wait() == 0 and same_undisturbed(damaged, "ngram")
