"The studies' figures: each plot of dvc.yaml reads columns that are there, and the lock holds the parameters that made them"
import csv

import pytest
from ruamel.yaml import YAML

from forge_nb.core.project import ROOT

load = lambda path: YAML(typ="safe").load(ROOT/path)


def list_plots(project: str) -> list:
    "(file, columns) of every CSV plot of a dvc.yaml whose file is in the checkout"
    plots = []
    for stage in load(f"{project}dvc.yaml")["stages"].values():
        for entry in stage.get("plots", []):
            path, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
            columns = [options[axis] for axis in ("x", "y") if axis in options]
            if path.endswith(".csv") and (ROOT/project/path).exists(): plots.append((f"{project}{path}", columns))
    return plots


@pytest.mark.parametrize("path, columns", [*list_plots(""), *list_plots("studies/")])
def test_a_plot_names_columns_of_its_file(path, columns):
    with open(ROOT/path, newline="", encoding="utf-8") as f: header = next(csv.reader(f))
    assert set(columns) <= set(header), f"{path} has the columns {header}"


def test_the_results_of_every_study_are_here():
    assert {path.split("/")[2] for path, _ in list_plots("studies/")} == set(load("studies/dvc.yaml")["stages"])


def test_committed_results_were_made_with_the_parameters_of_today():
    "A changed parameter asks for a new run: `make studies`, whose lock is committed with its results"
    lock, params = load("studies/dvc.lock")["stages"], load("studies/params.yaml")
    assert {name: stage["params"]["params.yaml"][name] for name, stage in lock.items()} == params
