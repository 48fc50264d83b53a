"""The runner: which cells of a page a stage executes."""
import nbformat
import pytest

from forge_nb.core.runner import execute_notebook

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
    "On a machine that is shared the library's minute is not enough: a run ended there after four stages"
    import papermill
    asked = {}
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **options: asked.update(options))
    nbformat.write(nbformat.v4.new_notebook(), tmp_path/"a.ipynb")
    execute_notebook("a", tmp_path/"a.ipynb", {}, tmp_path/"partial.ipynb")
    assert asked["start_timeout"] >= 600


def test_a_parameter_that_papermill_cannot_parse_is_no_warning(tmp_path, caplog):
    "The runner has checked all parameters by then; a user takes *Passed unknown parameter* for a fault"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('weights: list = ["filter_output=3.0"]  # multiples, by kind'), nbformat.v4.new_code_cell("#| run\nprint(weights)")])
    nb.metadata.kernelspec = dict(name="python3", display_name="python3", language="python")
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, tmp_path/"toy.ipynb")
    assert execute_notebook("toy", tmp_path/"toy.ipynb", dict(weights=["a=1"]), tmp_path/"toy.failed.ipynb", tmp_path).cells[-1].outputs[0].text == "['a=1']\n"
    assert "unknown parameter" not in caplog.text
