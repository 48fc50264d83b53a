"`forge watch`: what runs is seen without touching its lock, whatever the log holds"
import fcntl, json, os, subprocess, time

import pytest
from copies import ENV, wait_for
from forge_nb.core.project import ROOT, NotFound
from forge_nb.ops import cli
from forge_nb.ops.watch import WatchAnswer, find_owners, find_running_stage, repro_when_free, watch_once
from jsonschema import validate


@pytest.fixture
def project(tmp_path):
    (tmp_path/"dvc.yaml").write_bytes((ROOT/"dvc.yaml").read_bytes())
    for folder in ("runs/history", ".ckpt"): (tmp_path/folder).mkdir(parents=True)
    return tmp_path


def begin(project, name: str, *lines):
    "A stage that holds its lock, as the runner does; closing it ends the stage"
    (project/"runs"/f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    lock = open(project/".ckpt"/f"{name}.lock", "w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def test_a_stage_is_seen_and_its_lock_is_never_taken(project):
    now = time.time()
    lock = begin(project, "sft", dict(time=now - 60, text="stage sft (12 of 22)"),
                 dict(time=now, text="sft 1,5/x strange"), dict(time=now, text="sft 300/400 · loss 0.5 · 20 s left", step=300, seconds=58.0, loss=.5))
    with open(project/"runs"/"sft.jsonl", "a", encoding="utf-8") as f: f.write('{"time": 1, "te')
    answer = watch_once(project, now + 5)
    assert (answer.stage, answer.step, answer.steps, answer.seconds_left, answer.figures) == ("sft", 300, 400, 15, {"loss": .5})
    assert {"dpo", "evaluate", "gate", "card"} <= answer.behind.keys() and not {"sft", "curate", "ngram"} & answer.behind.keys()
    lock.close()
    for _ in range(20):  # a look at it never makes the runner's own attempt fail
        find_running_stage(project, ["sft"])
        begin(project, "sft").close()
    with pytest.raises(NotFound, match="no stage runs"): watch_once(project, now)


def test_a_stage_without_steps_goes_by_its_last_run(project):
    (project/"runs"/"history"/"stages.jsonl").write_text("\n".join(json.dumps(dict(stage=name, time=1.0, total_seconds=seconds)) for name, seconds in
                                                                   (("synth", 90), ("synth", 50), ("sft", 300))), encoding="utf-8")
    lock = begin(project, "synth", dict(time=1000.0, text="stage synth (6 of 22)"), dict(time=1010.0, text="facts left out"))
    answer = watch_once(project, 1020.0)
    assert (answer.seconds_left, answer.step, answer.line) == (30, None, "facts left out")
    assert answer.total_seconds_left == 330 and answer.behind["dpo"] is None
    assert watch_once(project, 2000.0).seconds_left == 0
    lock.close()


def test_the_verb_answers_in_its_schema(project, monkeypatch, capsys):
    monkeypatch.setattr(cli, "ROOT", project)
    lock = begin(project, "ngram", dict(time=time.time(), text="stage ngram (10 of 22)"))
    cli.app(["watch", "--json"], standalone_mode=False)
    validate(json.loads(capsys.readouterr().out), WatchAnswer.model_json_schema())
    cli.app(["watch", "--once"], standalone_mode=False)
    assert capsys.readouterr().out.startswith("stage ngram (")
    lock.close()


SLOW = """stages:
  one:
    cmd: echo begun >> begun && while [ ! -e go ]; do sleep .05; done && echo done > made
    outs: [made]
"""


@pytest.fixture
def running(tmp_path):
    "A project of one stage that ends when a file `go` is there, and a DVC that runs it"
    call = lambda line: subprocess.run(line, shell=True, cwd=tmp_path, env=ENV, check=True)
    (tmp_path/"dvc.yaml").write_text(SLOW, encoding="utf-8")
    call("git init -q && dvc init -q && echo {} > params.yaml")
    process = subprocess.Popen(["dvc", "repro"], cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path/"begun").exists(), process)
    yield process, tmp_path
    (tmp_path/"go").touch()
    process.wait()


def test_make_run_waits_for_a_dvc_that_lives(running):
    process, root = running
    assert find_owners(root) == [process.pid]
    shown = []
    def show(text): shown.append(text); (root/"go").touch()
    assert repro_when_free(root, show, pause=.1) == 0
    assert f"another DVC works in this folder (process {process.pid}); this run waits for it" in shown[0]
    assert (root/"begun").read_text(encoding="utf-8") == "begun\n", "the stage ran twice"


@pytest.mark.parametrize("left", ['{"wri', json.dumps(dict(write={"/x/made": dict(pid=os.getpid(), cmd="dvc repro")}, read={}))], ids=["half", "another"])
def test_what_a_dead_dvc_left_keeps_nobody_waiting(running, left):
    "Half a list of holders, and one whose number another program has now: DVC alone refuses both"
    process, root = running
    (root/"go").touch(); process.wait()
    (root/".dvc"/"tmp"/"rwlock").write_text(left.replace("/x/", f"{root}/"), encoding="utf-8")
    (root/"made").unlink()
    shown = []
    assert subprocess.run(["dvc", "repro"], cwd=root, env=ENV, capture_output=True).returncode
    assert repro_when_free(root, shown.append, pause=.1) == 0 and (root/"made").exists() and not shown
