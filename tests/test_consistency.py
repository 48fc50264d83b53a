"The repository agrees with itself: notebooks, package, parameters, pipeline, README"
import ast, json, re, shutil, subprocess, sys

import nbformat
import pytest
import yaml
from nbdev.export import nb_export
from nbdev.test import test_nb as run_lessons

from forge_nb.core import tangle
from forge_nb.core.project import ROOT, all_params, load_params, read_stages

BOOKS = tangle.list_notebooks()  # module → path
NB = {name: nbformat.read(path, 4) for name, path in BOOKS.items()}
STAGES = {name.rpartition(".")[2]: name for name, nb in NB.items() if any(map(tangle.is_parameters, nb.cells))}  # stage → module
DVC = read_stages(ROOT)
PARAMS = all_params(ROOT)
MODULES = {name: (ROOT/"forge_nb"/tangle.module_file(name)).read_text(encoding="utf-8") for name in BOOKS}


def read_modules(folder):
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in folder.rglob("*.py") if not p.name.startswith("_")}


def path_of(entry): return next(iter(entry)) if isinstance(entry, dict) else entry


def test_package_is_what_the_notebooks_export(tmp_path):
    shutil.copytree(ROOT/"nbs", tmp_path/"nbs")
    (tmp_path/"forge_nb").mkdir()
    for path in BOOKS.values(): nb_export(tmp_path/path.relative_to(ROOT), tmp_path/"forge_nb")
    assert read_modules(tmp_path/"forge_nb") == read_modules(ROOT/"forge_nb"), "run `make export`"


def test_notebooks_are_clean(tmp_path):
    shutil.copytree(ROOT/"nbs", tmp_path/"nbs")
    shutil.copy(ROOT/"pyproject.toml", tmp_path)
    subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean('nbs')"], cwd=tmp_path, check=True)
    for path in tangle.notebook_paths():
        assert (ROOT/path).read_text(encoding="utf-8") == (tmp_path/path).read_text(encoding="utf-8"), f"{path}: run `make export`"


@pytest.mark.parametrize("name", BOOKS)
def test_notebook_keeps_its_grammar(name):
    for cell in NB[name].cells:
        if cell.cell_type != "code": continue
        assert not ("run" in tangle.read_directives(cell) and cell.outputs), f"a run cell carries outputs: {cell.source[:60]}"
        if not tangle.is_exported(cell): assert len(cell.source.splitlines()) <= 40, f"a cell is too long to read: {cell.source[:60]}"
        assert "nbdev_export(" not in cell.source
    exported = [c.source for c in NB[name].cells if tangle.is_exported(c)]
    for node in [n for source in exported for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]:
        assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


@pytest.mark.parametrize("name", [*BOOKS, "index", "chat", "explore", "label"])
def test_lessons_run(name, monkeypatch):
    path = BOOKS.get(name, ROOT/"nbs"/f"{name}.ipynb")
    monkeypatch.chdir(ROOT/"nbs")
    passed, _ = run_lessons(path, skip_flags=["run"])
    assert passed


ALONE = """
import importlib, json, os, sys
import datasets, torch, transformers  # once for all: what is tried is this package, each module in a process of its own
heavy, found = {'trl', 'lm_eval', 'matplotlib.pyplot', 'papermill'}, {}
for name in sys.argv[1:]:
    read, write = os.pipe()
    if not (child := os.fork()):
        try: importlib.import_module(f'forge_nb.{name}'); told = sorted(heavy & set(sys.modules))
        except BaseException as error: told = repr(error)
        os.write(write, json.dumps(told).encode()); os._exit(0)
    os.close(write); found[name] = json.loads(os.read(read, 65536)); os.close(read); os.waitpid(child, 0)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported() -> dict:
    "What of the heavy libraries each module brings along when it is imported alone"
    done = subprocess.run([sys.executable, "-c", ALONE, *BOOKS], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BOOKS)
def test_module_imports_alone_and_light(imported, name):
    draws = name in ("report.figures", "report.intervals", "studies.plots")
    asks = name in ("evals.harness", "evals.task_classes", "evals.tasks", "evals.own_tasks", "evals.poison", "evals.gated", "evaluate", "gate", "ops.rivals", "bench.exam_speed")  # through lm-eval, whose class ours extends
    assert imported[name] == (["matplotlib.pyplot"] if draws else ["lm_eval"] if asks else [])


def find_imports(name: str) -> set:
    "Modules that a module imports, also inside its functions"
    return tangle.find_imports(MODULES[name], package=name.rpartition(".")[0])


@pytest.mark.parametrize("name", BOOKS)
def test_a_page_imports_only_what_comes_before_it(name):
    "The order of the folders is tangle's FOLDERS, in a folder it is the number; nothing imports a stage"
    place = {other: tangle.running_order(path.relative_to(ROOT).as_posix()) for other, path in BOOKS.items()}
    for other in find_imports(name):
        assert other in BOOKS, f"{name} imports {other}, which no notebook makes"
        assert other not in STAGES.values(), f"{name} imports the stage {other}; what two stages need belongs in the library"
        assert place[other] < place[name], f"{name} imports {other}, which comes after it"


def test_imports_are_seen():
    assert {"core.project", "core.tangle"} <= find_imports("core.runner") and "metrics.stats" in find_imports("evaluate")


def test_a_name_has_one_definition():
    "So that `grep` finds the one place; main() is each module's command"
    places = {}
    for module, source in MODULES.items():
        for node in ast.parse(source).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"): continue
            places.setdefault(node.name, []).append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1 and name != "main"}


@pytest.mark.parametrize("name", STAGES)
def test_parameters_agree(name):
    [cell] = [c.source for c in NB[STAGES[name]].cells if tangle.is_parameters(c)]
    tangle.check_parameters(name, NB[STAGES[name]], PARAMS)
    used = {**PARAMS["shared"], **PARAMS.get(name, {})}
    for s in ast.parse(cell).body:
        assert ast.literal_eval(s.value) == used[s.target.id], f"{name}: the notebook's default of `{s.target.id}` is not the value in params.yaml"


@pytest.mark.parametrize("name", STAGES)
def test_no_cell_writes_over_a_parameter(name):
    "papermill runs the lessons too: one that takes a parameter's name would run the stage with its toy"
    nb = NB[STAGES[name]]
    for c in nb.cells:
        if c.cell_type != "code" or tangle.is_parameters(c): continue
        tops = [s for s in ast.parse(c.source).body if not isinstance(s, (ast.FunctionDef, ast.ClassDef))]
        stored = {n.id for s in tops for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assert not stored & set(tangle.parse_parameters_cell(nb)), c.source


def test_yaml_dialects_agree():
    for name in ("params.yaml", "studies/params.yaml"):
        old_dialect = yaml.safe_load((ROOT/name).read_text(encoding="utf-8"))
        assert old_dialect == load_params(ROOT/name), f"{name}: a value reads differently in YAML 1.1 and 1.2; write 1.0e-3, not 1e-3"


def test_every_stage_has_its_place():
    assert set(DVC) == {*STAGES, "tangle"}
    assert set(PARAMS) == {*STAGES, "shared"}


@pytest.mark.parametrize("name", STAGES)
def test_pipeline_lists_what_a_stage_stands_on(name):
    stage, deps, nb = DVC[name], set(DVC[name]["deps"]), NB[STAGES[name]]
    assert stage["cmd"] == ("cd .. && " if "wdir" in stage else "") + f"python -m forge_nb.core.runner {name}"
    modules = {STAGES[name], *tangle.collect_dependencies(STAGES[name])}
    assert {d for d in deps if d.startswith("build/")} == {f"build/{tangle.module_file(m)}" for m in modules}
    shared = [k for k in tangle.parse_parameters_cell(nb) if k in PARAMS["shared"] and k not in PARAMS[name]]
    if "wdir" in stage: own, above = stage["params"][0], stage["params"][1]["../params.yaml"]
    else: own, *above = stage["params"]
    assert own == name and sorted(above) == sorted(f"shared.{k}" for k in shared)
    run = "\n".join(c.source for c in nb.cells if "run" in tangle.read_directives(c))
    named = set(re.findall(r'"(data(?:/[\w./]*)?|artifacts/[\w./]+|[\w/]+\.yaml)"', run))
    assert named, "no paths found in the run cells"
    is_own = lambda path: path == f"artifacts/{name}" or path.startswith(f"artifacts/{name}/")
    is_listed = lambda p, d: p == d or p.startswith(f"{d}/") or d.startswith(f"{p}/")  # a folder is named where files of it are listed
    if "data/SHA256SUMS" in deps: named = {p for p in named if not p.startswith("data/")}  # it has the hash of every file of data/
    undeclared = [p for p in named if not is_own(p) and not any(is_listed(p, d) for d in deps)]
    assert not undeclared, f"{name} reads {undeclared}, which dvc.yaml does not list"


def test_pipeline_outputs_are_tidy():
    for name, stage in DVC.items():
        outs = [path_of(o) for o in stage.get("outs", [])]
        small = [path_of(o) for key in ("metrics", "plots") for o in stage.get(key, [])]
        assert name in ("tangle", "freeze") or not [o for o in stage.get("outs", []) if isinstance(o, dict)], "an out with options disables the run cache"
        assert not [p for p in [*outs, *small] if p.startswith("data")]
        assert not [d for d in stage["deps"] if d.endswith(".ipynb")]
        folder = "studies/" if "wdir" in stage else ""
        if name != "tangle": assert f"{folder}reports/{name}.ipynb" in outs and f"{folder}artifacts/{name}/metrics.json" in small


def test_git_keeps_what_the_cache_does_not():
    "A figure that is in neither is gone in the next clone, where its stage would run again"
    small = [path_of(o) for stage in DVC.values() for key in ("metrics", "plots") for o in stage.get(key, []) if isinstance(o, dict) and o[path_of(o)].get("cache") is False]
    ignored = subprocess.run(["git", "check-ignore", "--no-index", *small], cwd=ROOT, capture_output=True, text=True).stdout
    assert len(small) > 50 and not ignored, f".gitignore: {ignored}"


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
