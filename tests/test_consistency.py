"The repository agrees with itself: notebooks, package, parameters, pipeline, README"
import ast, re, shutil, subprocess, sys

import nbformat
import pytest
import yaml
from nbdev.export import nb_export
from nbdev.test import test_nb as run_lessons

from forge_nb.core import tangle
from forge_nb.core.project import ROOT, load_params, read_stages

BOOKS = tangle.list_notebooks()
NB = {name: nbformat.read(path, 4) for name, path in BOOKS.items()}
STAGES = [name for name, nb in NB.items() if any(map(tangle.is_parameters, nb.cells))]
DVC = read_stages(ROOT)[0]
PARAMS = load_params(ROOT/"params.yaml")


def path_of(entry): return next(iter(entry)) if isinstance(entry, dict) else entry


def test_package_is_what_the_notebooks_export(tmp_path):
    shutil.copytree(ROOT/"nbs", tmp_path/"nbs")
    (tmp_path/"forge_nb").mkdir()
    for path in BOOKS.values(): nb_export(tmp_path/"nbs"/path.name, tmp_path/"forge_nb")
    fresh = {p.name: p.read_text(encoding="utf-8") for p in (tmp_path/"forge_nb").glob("*.py") if not p.name.startswith("_")}
    committed = {p.name: p.read_text(encoding="utf-8") for p in (ROOT/"forge_nb").glob("*.py") if not p.name.startswith("_")}
    assert fresh == committed, "run `make export`"


def test_notebooks_are_clean(tmp_path):
    shutil.copytree(ROOT/"nbs", tmp_path/"nbs")
    shutil.copy(ROOT/"pyproject.toml", tmp_path)
    subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean('nbs')"], cwd=tmp_path, check=True)
    for path in (ROOT/"nbs").glob("*.ipynb"): assert path.read_text(encoding="utf-8") == (tmp_path/"nbs"/path.name).read_text(encoding="utf-8"), f"{path.name}: run `make export`"


@pytest.mark.parametrize("name", BOOKS)
def test_notebook_keeps_its_grammar(name):
    for cell in NB[name].cells:
        if cell.cell_type != "code": continue
        assert not ("run" in tangle.read_directives(cell) and cell.outputs), f"a run cell carries outputs: {cell.source[:60]}"
        assert len([line for line in cell.source.splitlines() if line.strip()]) <= 40, f"a cell is too long to read: {cell.source[:60]}"
        assert "nbdev_export(" not in cell.source
    exported = [c.source for c in NB[name].cells if tangle.is_exported(c)]
    for node in [n for source in exported for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]:
        assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


@pytest.mark.parametrize("name", [*BOOKS, "index"])
def test_lessons_run(name, monkeypatch):
    path = BOOKS.get(name, ROOT/"nbs"/"index.ipynb")
    monkeypatch.chdir(ROOT/"nbs")
    passed, _ = run_lessons(path, skip_flags=["run"])
    assert passed


@pytest.mark.parametrize("name", BOOKS)
def test_module_imports_alone_and_light(name):
    code = f"import sys, forge_nb.{name}; heavy = {{'trl', 'lm_eval', 'matplotlib.pyplot', 'papermill'}} & set(sys.modules); print(sorted(heavy))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout.strip()
    assert out == ("['matplotlib.pyplot']" if name in ("report.figures", "report.intervals") else "[]")


def test_modules_form_a_dag():
    assert {"project"} <= tangle.find_imports((ROOT/"forge_nb"/"effects.py").read_text(encoding="utf-8")), "imports are not seen"
    number = {name: int(path.name[:2], 36) for name, path in BOOKS.items()}
    for name in BOOKS:
        for other in tangle.find_imports((ROOT/"forge_nb"/f"{name}.py").read_text(encoding="utf-8")):
            assert other in number, f"{name} imports {other}, which no notebook makes"
            assert number[other] < 36, f"{name} imports the stage module {other}; what two stages need belongs in the library"
            assert number[other] < number[name], f"{name} imports {other}, which comes after it"


@pytest.mark.parametrize("name", STAGES)
def test_parameters_agree(name):
    assert sum(map(tangle.is_parameters, NB[name].cells)) == 1
    tangle.check_parameters(name, NB[name], PARAMS)
    used = {**PARAMS["shared"], **PARAMS.get(name, {})}
    [cell] = [c.source for c in NB[name].cells if tangle.is_parameters(c)]
    for s in ast.parse(cell).body:
        assert ast.literal_eval(s.value) == used[s.target.id], f"{name}: the notebook's default of `{s.target.id}` is not the value in params.yaml"


@pytest.mark.parametrize("name", STAGES)
def test_no_cell_writes_over_a_parameter(name):
    "papermill runs the lessons too: one that takes a parameter's name would run the stage with its toy"
    for c in NB[name].cells:
        if c.cell_type != "code" or tangle.is_parameters(c): continue
        tops = [s for s in ast.parse(c.source).body if not isinstance(s, (ast.FunctionDef, ast.ClassDef))]
        stored = {n.id for s in tops for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assert not stored & set(tangle.parse_parameters_cell(NB[name])), c.source


def test_yaml_dialects_agree():
    assert yaml.safe_load((ROOT/"params.yaml").read_text(encoding="utf-8")) == PARAMS, "a value reads differently in YAML 1.1 and 1.2; write 1.0e-3, not 1e-3"


def test_every_stage_has_its_place():
    assert set(DVC) == {*STAGES, "tangle"}
    assert set(PARAMS) == {*STAGES, "shared"}


@pytest.mark.parametrize("name", STAGES)
def test_pipeline_lists_what_a_stage_stands_on(name):
    stage, deps = DVC[name], set(DVC[name]["deps"])
    assert stage["cmd"] == ("cd .. && " if "wdir" in stage else "") + f"python -m forge_nb.core.runner {name}"
    assert {d for d in deps if d.startswith("build/")} == {f"build/{m}.py" for m in {name, *tangle.collect_dependencies(name)}}
    shared = {f"shared.{k}" for k in tangle.parse_parameters_cell(NB[name]) if k in PARAMS["shared"] and k not in PARAMS[name]}
    assert set(stage["params"][0]["../params.yaml"] if "wdir" in stage else stage["params"]) == shared | {name}
    run = "\n".join(c.source for c in NB[name].cells if "run" in tangle.read_directives(c))
    named = set(re.findall(r'"(data(?:/[\w./]*)?|artifacts/[\w./]+|\w+\.yaml)"', run))
    assert named, "no paths found in the run cells"
    undeclared = [p for p in named if p != f"artifacts/{name}" and not p.startswith(f"artifacts/{name}/") and not any(p == d or p.startswith(d + "/") for d in deps)]
    assert not undeclared, f"{name} reads {undeclared}, which dvc.yaml does not list"


def test_pipeline_outputs_are_tidy():
    for name, stage in DVC.items():
        outs = [path_of(o) for o in stage.get("outs", [])]
        small = [path_of(o) for key in ("metrics", "plots") for o in stage.get(key, [])]
        assert name == "tangle" or not [o for o in stage.get("outs", []) if isinstance(o, dict)], "an out with options disables the run cache"
        assert not [p for p in [*outs, *small] if p.startswith("data")]
        assert not [d for d in stage["deps"] if d.endswith(".ipynb")]
        folder = "studies/" if "wdir" in stage else ""
        if name != "tangle": assert f"{folder}reports/{name}.ipynb" in outs and f"{folder}artifacts/{name}/metrics.json" in small


def test_lock_pins_everything():
    lines = [line for line in (ROOT/"requirements.lock").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), [x for x in lines if "==" not in x]
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    import tomllib
    project = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", d)[0]).lower() for d in wanted} <= pinned
    assert "torch==2.13.0" in lines


def test_readme_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT/"Makefile").read_text(encoding="utf-8"), re.M))
    for page in ("README.md", "CONTRIBUTING.md", "AGENTS.md"):
        text = (ROOT/page).read_text(encoding="utf-8")
        named = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text, re.M))
        assert (found := {a or b for a, b in named}) <= targets, f"{page}: no such target: {found - targets}"
        assert set(re.findall(r"python -m forge_nb\.([\w.]+\w)", text)) <= set(BOOKS)
        for link in re.findall(r"\]\(([^)#:]+)\)", text): assert (ROOT/link).exists(), f"{page} links {link}, which is not there"
    assert shutil.which("make")
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    for habit in "run test check lab data bench report".split(): assert f"make {habit}" in helped


def test_profiles_name_real_fields():
    for path in (ROOT/"config/profiles").glob("*.yaml"):
        for section, fields in load_params(path).items():
            assert set(fields) <= set(PARAMS[section]), f"{path.name}: {section}"
