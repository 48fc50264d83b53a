"The pretraining loop under fire: terminated, resumed, out of room, and in several processes"
import json, math, re, signal, subprocess, sys, time

import psutil
import pytest
import torch

from copies import ENV, HANG, wait_for
from forge_nb.train.model import product_dtype

RUN = """
import dataclasses, hashlib, json, sys
from pathlib import Path
from transformers import AutoTokenizer
from forge_nb.core.project import pin, run_cli
from forge_nb.train.architecture import PretrainConfig, build_model, derive_config
from forge_nb.train.checkpoint import gather_weights, make_accelerator
from forge_nb.train.launch import is_main_process
from forge_nb.train.loop import train_model
def run():
    folder, checkpoints, options = Path("artifacts/tokenizer"), Path(sys.argv[1]), json.loads(sys.argv[2])
    checkpoint_seconds = options.pop("checkpoint_seconds", 3600.)
    pin(0, options.pop("threads", 1))
    tokenizer = AutoTokenizer.from_pretrained(folder/"tokenizer")
    defaults = PretrainConfig(depth=1, context_length=64, tokens_per_parameter=.1, batch_size=4, max_steps=120, warmup_steps=5, warmdown_ratio=.5, z_loss_weight=1e-4, num_evals=2)
    shape, config = derive_config(dataclasses.replace(defaults, **options), len(tokenizer))
    model = build_model(tokenizer, shape)
    state = train_model(model, tokenizer, folder/"tokens", config=config, checkpoints=checkpoints, checkpoint_seconds=checkpoint_seconds)
    weights = gather_weights(make_accelerator(), model)
    digest = hashlib.sha256(b"".join(weights[k].detach().numpy().tobytes() for k in sorted(weights)))
    if is_main_process(): print("made", digest.hexdigest(), json.dumps(state["curve"]), flush=True)
run_cli(run)
"""


def start(tiny, folder, before=(), processes=1, **given) -> subprocess.Popen:
    "The loop on the tiny chain's tokens, as a process of its own, or as many"
    (tiny.root/"runs"/"loop.py").write_text(RUN, encoding="utf-8")
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else ["-u"]
    line = [*before, sys.executable, *how, str(tiny.root/"runs"/"loop.py"), str(folder), json.dumps(given)]
    return subprocess.Popen(line, cwd=tiny.root, env=ENV | dict(PYTHONPATH=str(tiny.root), OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")


def result(process) -> str:
    "The line that holds the hash of the weights and the curve"
    said, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0, said
    return next(row for row in said.splitlines() if row.startswith("made "))


def stopped(running) -> str:
    "End a run with SIGTERM after its first measurement; what it printed"
    said = []
    for row in running.stdout:
        said.append(row)
        if row.startswith("held out"): running.send_signal(signal.SIGTERM); break
    return "".join(said) + running.communicate(timeout=HANG)[0]


@pytest.mark.parametrize("given", [dict(num_experts=4), pytest.param(dict(depth=2), marks=pytest.mark.slow), pytest.param(dict(optimizer="adamw"), marks=pytest.mark.slow), pytest.param(dict(micro_batch_size=2), marks=pytest.mark.slow)], ids=str)
def test_terminated_anywhere_and_resumed_gives_the_same_bits(tiny, tmp_path, given):
    "Proves: a run that is ended by SIGTERM and called again gives the weights and the curve of one that was not"
    whole, parts = result(start(tiny, tmp_path/"whole", **given)), tmp_path/"parts"
    running = start(tiny, parts, **given)
    said = stopped(running)
    assert running.returncode == 2 and "ended by SIGTERM after step" in said and "Traceback" not in said
    assert result(start(tiny, parts, **given)) == whole


@pytest.mark.slow
def test_killed_anywhere_and_resumed_gives_the_same_bits(tiny, tmp_path):
    "Proves: a run that is killed several times, also while it writes a checkpoint, gives the weights of one that was not"
    whole, parts, killed = result(start(tiny, tmp_path/"whole", threads=2)), tmp_path/"parts", 0
    for moment in (0., .2, .4, .6):
        running = start(tiny, parts, threads=2, checkpoint_seconds=0.)  # a checkpoint after each step, so that some kill meets one half-written
        wait_for(lambda: running.poll() is not None or (parts/"last"/"state.json").exists(), pause=.01)
        time.sleep(moment); running.kill(); running.communicate(timeout=HANG)
        killed += running.returncode == -signal.SIGKILL
    assert killed >= 2 and result(start(tiny, parts, threads=2)) == whole


def curve(line: str) -> list:
    "Bits per byte at each measurement, from what `result` gives"
    return [row["held_out_bpb"] for row in json.loads(line.split(" ", 2)[2])]


def halves(processes: int) -> dict:
    "So many processes that take a batch in halves: two take one each, one takes them one after the other and rounds as they do"
    return dict(processes=processes, micro_batch_size=0 if processes == 2 else 2)


# Bits. Two processes add up gradients in another order than one; what rounding makes of that stays below a hundredth of a bit in bfloat16, and below three in float32 (0.011 seen), where a wrong average would cost tenths.
ROUNDING = .01 if product_dtype() == torch.bfloat16 else .03


@pytest.mark.parametrize("sharding", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns(tiny, tmp_path, sharding):
    "Proves: two processes, with whole copies of the model or with its parts, reach the loss of one"
    usual = dict(depth=2, lookup_heads=0, tie_word_embeddings=False)  # an induction circuit takes the other order to other weights within twenty steps
    one = curve(result(start(tiny, tmp_path/"one", **usual, **halves(1))))
    two = curve(result(start(tiny, tmp_path/"two", **usual, sharding=sharding, **halves(2))))
    assert len(one) == len(two) == 2 and all(math.isclose(a, b, abs_tol=ROUNDING) for a, b in zip(one, two)), (one, two)
    assert one[0] - one[1] > .1, "nothing was learned, so nothing was compared"


@pytest.mark.parametrize("before, after", [pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_a_checkpoint_resumes_with_another_count_of_processes(tiny, tmp_path, before, after):
    "Proves: what one count of processes wrote, another goes on with, to the same loss"
    whole = curve(result(start(tiny, tmp_path/"whole", sharding="fsdp", **halves(1))))
    running = start(tiny, tmp_path/"parts", sharding="fsdp", **halves(before))
    said = stopped(running)
    assert running.returncode and "ended by SIGTERM after step" in said, said
    goes_on = start(tiny, tmp_path/"parts", sharding="fsdp", **halves(after))
    said, _ = goes_on.communicate(timeout=HANG)
    assert goes_on.returncode == 0 and "resumed at step" in said, said
    end = curve(next(row for row in said.splitlines() if row.startswith("made ")))
    assert all(math.isclose(a, b, abs_tol=ROUNDING) for a, b in zip(whole, end)), (whole, end)


def test_rows_that_processes_cannot_share(tiny, tmp_path):
    running = start(tiny, tmp_path, processes=2, batch_size=3)
    said, _ = running.communicate(timeout=HANG)
    assert running.returncode and "3 rows in a batch cannot be shared evenly by 2 processes" in said, said


@pytest.mark.slow
def test_a_killed_worker_is_a_sentence_and_the_run_goes_on(tiny):
    "Proves: a worker process that is killed ends the stage with one sentence, and the next call goes on from its checkpoint"
    set_to = lambda old, new: (tiny.root/"params.yaml").write_text((tiny.root/"params.yaml").read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    set_to("num_processes: 1", "num_processes: 2"); set_to("  max_steps: 30", "  max_steps: 300")
    set_to("  batch_size: 1 ", "  batch_size: 2 ")  # of pretrain alone: a row for each process
    try:
        running = subprocess.Popen(["bash", "-c", "dvc repro pretrain"], cwd=tiny.root, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
        wait_for(lambda: list(tiny.root.glob(".ckpt/pretrain/*/last/state.json")), running)
        mine = [p for p in psutil.Process(running.pid).children(recursive=True) if "forge_nb.pretrain" in p.cmdline() and p.environ().get("RANK") == "1"]
        assert len(mine) == 1
        mine[0].kill()
        said, _ = running.communicate(timeout=HANG)
        error = [row for row in said.splitlines() if row.startswith("error: ")]
        assert running.returncode and len(error) == 1 and "2 processes: a worker process was ended by SIGKILL; run again to go on" in error[0] and "Traceback" not in said, said
        again = tiny("dvc repro pretrain")
        assert int(re.search(r"resumed at step (\d+)", again)[1]) >= 150
    finally: tiny("git checkout -q params.yaml && dvc repro && git diff --exit-code")


def test_a_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    result(start(tiny, tmp_path))
    refused = start(tiny, tmp_path, optimizer="adamw")
    said, _ = refused.communicate(timeout=HANG)
    assert refused.returncode == 2 and "this checkpoint is of another model" in said and "delete the folder" in said, said


def test_no_room_for_a_checkpoint(tiny, tmp_path):
    room = "unshare --map-root-user --mount"
    if subprocess.run([*room.split(), "true"], capture_output=True).returncode: pytest.skip("this system gives no user a mount of his own")
    (tmp_path/"small").mkdir()
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}/small && exec \"$@\""
    full = start(tiny, tmp_path/"small"/"checkpoints", before=[*room.split(), "bash", "-c", mount, "-"])
    said, _ = full.communicate(timeout=HANG)
    assert full.returncode == 2 and "a checkpoint needs" in said and "make room" in said, said
