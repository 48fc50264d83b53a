"""The runner: which cells of a page a stage executes, and what it says of a run that it waits for or goes on with."""
import os, subprocess, sys

import nbformat
import pytest
from copies import wait_for

from forge_nb.core.project import Invalid
from forge_nb.core.runner import execute_notebook, find_changed_inputs, hash_files, is_locked, read_stamps, wait_for_lock

CELLS = ["enabled = True", "1 / 0  # a lesson", "#| export\nhanded_on = 7", "#| run\nprint(enabled, handed_on)"]


def test_a_stage_that_is_off_passes_over_its_lessons(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    nb.metadata.kernelspec = dict(name="python3", display_name="python3", language="python")
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, tmp_path/"toy.ipynb")
    run = lambda enabled: execute_notebook("toy", tmp_path/"toy.ipynb", dict(enabled=enabled), tmp_path/"toy.failed.ipynb", tmp_path)
    assert run(False).cells[-1].outputs[0].text == "False 7\n"
    with pytest.raises(SystemExit): run(True)


def test_a_kernel_may_take_minutes_to_start(tmp_path, monkeypatch):
    "On a machine that is shared the library's minute is not enough, nor its four seconds for what a cell printed: runs ended there"
    import papermill
    asked = {}
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **options: asked.update(options))
    nbformat.write(nbformat.v4.new_notebook(), tmp_path/"a.ipynb")
    execute_notebook("a", tmp_path/"a.ipynb", {}, tmp_path/"partial.ipynb")
    assert asked["start_timeout"] >= 600 and asked["config"].NotebookClient.iopub_timeout >= 600


def test_a_parameter_that_papermill_cannot_parse_is_no_warning(tmp_path, caplog):
    "The runner has checked all parameters by then; a user takes *Passed unknown parameter* for a fault"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('weights: list = ["filter_output=3.0"]  # multiples, by kind'), nbformat.v4.new_code_cell("#| run\nprint(weights)")])
    nb.metadata.kernelspec = dict(name="python3", display_name="python3", language="python")
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, tmp_path/"toy.ipynb")
    assert execute_notebook("toy", tmp_path/"toy.ipynb", dict(weights=["a=1"]), tmp_path/"toy.failed.ipynb", tmp_path).cells[-1].outputs[0].text == "['a=1']\n"
    assert "unknown parameter" not in caplog.text


def toy(folder, *sources):
    "A notebook of these cells"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nb.metadata.kernelspec = dict(name="python3", display_name="python3", language="python")
    nbformat.write(nb, folder/"toy.ipynb")
    return folder/"toy.ipynb", folder/"toy.failed.ipynb"


INVALID = "class Invalid(ValueError): pass\nraise Invalid('{}')"
HINT = "; should a checkpoint be damaged: `rm -r .ckpt/toy`, and run again"


@pytest.mark.parametrize("message, hinted", [(".ckpt/toy/ab/last/state.json, line 1: not JSON", True), ("params.yaml: `toy.depth` is 0", False)])
def test_a_checkpoint_that_cannot_be_read_names_its_remedy(tmp_path, message, hinted):
    path, partial = toy(tmp_path, INVALID.format(message))
    with pytest.raises(Invalid) as error: execute_notebook("toy", path, {}, partial, tmp_path, hint=HINT)
    assert str(error.value) == message + HINT * hinted


def test_any_other_failure_of_a_run_that_went_on_does_too(tmp_path, capsys):
    path, partial = toy(tmp_path, "raise RuntimeError('file is truncated')")
    with pytest.raises(SystemExit): execute_notebook("toy", path, {}, partial, tmp_path, hint=HINT)
    assert capsys.readouterr().err.strip().endswith(HINT)


def test_a_lock_whose_owner_was_killed_is_not_waited_for(tmp_path, capsys):
    lock, log = tmp_path/"toy.lock", tmp_path/"toy.jsonl"
    log.write_text('{"text": "toy 1/9"}\n', encoding="utf-8")
    owner = subprocess.Popen([sys.executable, "-c", f"import fcntl, time; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); time.sleep(999)"])
    wait_for(lambda: lock.exists() and is_locked(lock), owner)
    owner.kill(); owner.wait()
    with wait_for_lock(lock, "toy", log) as was_held: assert not was_held and is_locked(lock)
    assert not capsys.readouterr().out and not is_locked(lock)


def test_an_input_edited_while_the_clock_was_set_back_is_noticed(tmp_path):
    "An edit that is dated before the run's start"
    path = tmp_path/"input.txt"
    path.write_text("one", encoding="utf-8")
    hashes, stamps = hash_files([path]), read_stamps([path])
    path.write_text("two", encoding="utf-8")
    os.utime(path, (0, 0))
    hour_later = path.stat().st_ctime + 3600
    assert find_changed_inputs(hashes, stamps, hour_later) == [str(path)]
    path.write_text("one", encoding="utf-8")
    assert find_changed_inputs(hashes, stamps, hour_later) == []
