"The pretraining loop under fire: terminated, resumed, and out of room"
import signal, subprocess, sys

import pytest

from conftest import ENV

RUN = """
import hashlib, sys
from pathlib import Path
from transformers import AutoTokenizer
from forge_nb.project import command, pin
from forge_nb.train import build, fit, follow
def run():
    pin(0, 1)
    made, checkpoints = Path("artifacts/tokenizer"), Path(sys.argv[1])
    words = AutoTokenizer.from_pretrained(made/"tokenizer")
    plan = follow(1, vocabulary=len(words), context=64, tokens_per_parameter=.1) | dict(rows=4, steps=120, optimizer=sys.argv[2], warmup=5, decay=.5, z_weight=1e-4)
    model = build(words, context=64, **{k: plan[k] for k in ("layers", "width", "inner")})
    state = fit(model, words, made/"tokens", context=64, plan=plan, looks=2, seed=0, checkpoints=checkpoints, every=3600.)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    print("made", digest.hexdigest(), state["curve"])
command(run)
"""


def start(tiny, folder, optimizer="muon", before=()) -> subprocess.Popen:
    "The loop on the tiny chain's tokens, as a process of its own"
    line = [*before, sys.executable, "-u", "-c", RUN, str(folder), optimizer]
    return subprocess.Popen(line, cwd=tiny.root, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def result(process) -> str:
    "The line that holds the hash of the weights and the curve"
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return next(row for row in said.splitlines() if row.startswith("made "))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_terminated_anywhere_and_resumed_gives_the_same_bits(tiny, tmp_path, optimizer):
    whole, parts = result(start(tiny, tmp_path/"whole", optimizer)), tmp_path/"parts"
    running = start(tiny, parts, optimizer)
    for row in running.stdout:
        if row.startswith("held out"): running.send_signal(signal.SIGTERM); break
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 2 and "ended by SIGTERM after step" in said and "Traceback" not in said
    assert result(start(tiny, parts, optimizer)) == whole


def test_a_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    result(start(tiny, tmp_path, "muon"))
    refused = start(tiny, tmp_path, "adamw")
    said, _ = refused.communicate(timeout=300)
    assert refused.returncode == 2 and "this checkpoint is of another model" in said and "delete the folder" in said, said


def test_no_room_for_a_checkpoint(tiny, tmp_path):
    room = "unshare --map-root-user --mount"
    if subprocess.run([*room.split(), "true"], capture_output=True).returncode: pytest.skip("this system gives no user a mount of his own")
    (tmp_path/"small").mkdir()
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}/small && exec \"$@\""
    full = start(tiny, tmp_path/"small"/"checkpoints", before=[*room.split(), "bash", "-c", mount, "-"])
    said, _ = full.communicate(timeout=300)
    assert full.returncode == 2 and "a checkpoint needs" in said and "make room" in said, said
