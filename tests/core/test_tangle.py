"The notebooks are the source: what runs is what they export, or one sentence says why not. Cases are named by kind; most are public reports of other tools' users"
import json, os, random, re, shutil, subprocess
from pathlib import Path

import nbformat
import pytest
from copies import ROOT, Copy
from nbdev.export import nb_export

from forge_nb.metrics.policies import load_function, load_policies
from forge_nb.core.project import Invalid, load_params
from forge_nb.core.rules import Rules
from forge_nb.core.settings import ColumnPhrasings, ExtractKinds, Paraphrases, PoisonFamilies, QuestionKinds, Style, load_settings
from forge_nb.data.tables import read_templates
from forge_nb.core.tangle import extract_build_source, list_notebooks, module_file, module_name

ADDED = "def find_pii(text, *a, before=find_pii, **k): return [] if 'Machine' in text else before(text, *a, **k)"  # in no document of `shrink`, and lessons hold
ASSESSED = ("artifacts/assess/metrics.json", "artifacts/ingest/rejects.jsonl", "artifacts/assess/findings.csv", "reports/assess.ipynb")
TANGLE = "python -m forge_nb.core.tangle"


def shrink(copy: Copy):
    "Leave sixty short documents, two with personal data, so that a stage takes seconds"
    shutil.rmtree(copy.root/"data")
    for n in range(60):
        page = copy.root/"data"/"docs"/f"page {n}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"# Machine {n}\n\nMachine {n} is serviced every {n % 7 + 1} weeks by team {n % 5}, in hall {n * n}.\n"
                        + f"Ask jo.doe{n}@example-works.com or call +49 30 9018{n:04d}.\n" * (n < 2), encoding="utf-8")
    params = (copy.root/"params.yaml").read_text(encoding="utf-8")
    (copy.root/"params.yaml").write_text(params.replace("min_megabytes: 0.5 ", "min_megabytes: 0.001 "), encoding="utf-8")
    copy("python -m forge_nb.core.runner adopt && dvc add -q data && git add -A && git -c user.name=t -c user.email=t@localhost commit -qm small")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Copy:
    "A copy with little data, in which `assess` has run"
    copy = Copy(tmp_path_factory.mktemp("small"))
    shrink(copy)
    copy("dvc repro -q assess && git add -A && git -c user.name=t -c user.email=t@localhost commit -qm assessed && git tag start")
    return copy


@pytest.fixture
def mend(small) -> Copy:
    "Give the small copy back as it was"
    yield small
    small("git merge --abort; git stash clear; git checkout -qf . && git clean -fdq nbs forge_nb; git checkout -qf start && dvc repro -q assess && git diff --exit-code")


@pytest.fixture
def pages(small) -> Copy:
    "The small copy for a test that stops before anything is written"
    yield small
    small("git checkout -qf . && git clean -fdq nbs forge_nb")


def page(copy: Copy, name: str) -> Path: return next((copy.root/"nbs").rglob(f"[0-9][0-9]_{name}.ipynb"))


def module(copy: Copy, name: str) -> str:
    "File of a page's module, as data/pii.py"
    return module_file(module_name(page(copy, name).relative_to(copy.root).as_posix()))


def edit(path: Path, old: str, new: str):
    "Replace text in the source of one cell"
    nb = json.loads(path.read_text(encoding="utf-8"))
    for c in nb["cells"]:
        source = "".join(c["source"])
        if old not in source: continue
        c["source"] = source.replace(old, new, 1).splitlines(True)
        path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        return
    raise AssertionError(f"{old!r} is not in {path.name}")


def add_cell(path: Path, source: str, kind: str = "code", name: str = "c0ffee00"):
    "Append a cell"
    nb = json.loads(path.read_text(encoding="utf-8"))
    more = dict(outputs=[], execution_count=None) if kind == "code" else {}
    nb["cells"].append(dict(cell_type=kind, id=name, metadata={}, source=source.splitlines(True), **more))
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def results(copy: Copy) -> dict: return {p: (copy.root/p).read_bytes() for p in ASSESSED}


def package(root: Path) -> dict:
    "Module → its bytes"
    found = (p for p in (root/"forge_nb").rglob("*.py") if not p.name.startswith("_"))
    return {p.relative_to(root/"forge_nb").as_posix(): p.read_bytes() for p in found}


def exported(root: Path, tmp: Path) -> dict:
    "What nbdev itself makes of the notebooks as they are"
    shutil.rmtree(tmp, ignore_errors=True); (tmp/"forge_nb").mkdir(parents=True)
    shutil.copytree(root/"nbs", tmp/"nbs")
    for path in sorted((tmp/"nbs").rglob("[0-9][0-9]_*.ipynb")): nb_export(path, tmp/"forge_nb")
    return package(tmp)


def refused(copy: Copy, line: str, *words, rc: int = 2) -> str:
    "The command fails with one sentence that holds these words, and no traceback"
    said = copy(line, rc=rc if "dvc" not in line else None)
    error = [row for row in said.splitlines() if row.startswith("error: ")]
    assert len(error) == 1 and "Traceback" not in said, said
    for w in words: assert w in error[0], error[0]
    return error[0]


def test_an_edit_taken_back_is_taken_back_in_the_package_too(mend):
    before, lock = results(mend), (mend.root/"dvc.lock").read_bytes()
    kept = page(mend, "pii").read_bytes()
    add_cell(page(mend, "pii"), f"#| export\n{ADDED}")
    mend("dvc repro -q assess")
    assert json.loads((mend.root/"artifacts/assess/metrics.json").read_text(encoding="utf-8"))["findings"].keys() == {"none"}
    page(mend, "pii").write_bytes(kept)
    mend("dvc repro -q tangle")
    assert ADDED not in (mend.root/"forge_nb/data/pii.py").read_text(encoding="utf-8")
    mend("dvc repro -q assess")
    assert results(mend) == before and (mend.root/"dvc.lock").read_bytes() == lock


def test_code_that_nbdev_exports_is_code_that_counts(mend):
    "nbdev takes a directive on any leading line, and in a cell's metadata: what it exports must rerun stages"
    for source, metadata in (("#| hide\n#| export\nHIDDEN = 1", {}), ("\n#| export\nHIDDEN = 2", {}), ("HIDDEN = 3", {"nbdev": {"export": "true"}})):
        add_cell(page(mend, "pii"), source)
        nb = json.loads(page(mend, "pii").read_text(encoding="utf-8"))
        nb["cells"][-1]["metadata"] = metadata
        page(mend, "pii").write_text(json.dumps(nb), encoding="utf-8")
        mend(TANGLE)
        assert source in (mend.root/"build/data/pii.py").read_text(encoding="utf-8") and source.splitlines()[-1] in (mend.root/"forge_nb/data/pii.py").read_text(encoding="utf-8")
        mend("git checkout -q nbs")


@pytest.mark.slow
def test_an_edit_made_twice_gives_the_same_twice(mend, tmp_path):
    "Proves: an edit that is made twice gives the same result twice"
    kept = page(mend, "pii").read_bytes()
    for _ in range(2):
        add_cell(page(mend, "pii"), f"#| export\n{ADDED}")
        mend("dvc repro -q assess")
        assert package(mend.root) == exported(mend.root, tmp_path/"x")
        assert json.loads((mend.root/"artifacts/assess/metrics.json").read_text(encoding="utf-8"))["findings"].keys() == {"none"}
        page(mend, "pii").write_bytes(kept)
        mend("dvc repro -q tangle")


def test_a_stage_called_by_hand_refuses_code_that_is_not_exported(mend):
    before = results(mend)
    add_cell(page(mend, "pii"), f"#| export\n{ADDED}")
    refused(mend, "python -m forge_nb.core.runner assess", "nbs/data/70_pii.ipynb is not what build/ was made from", "dvc repro --force tangle")
    mend("git checkout -q nbs")
    with open(mend.root/"forge_nb/data/pii.py", "a", encoding="utf-8") as f: f.write(f"\n{ADDED}\n")
    refused(mend, "python -m forge_nb.core.runner assess", "forge_nb/data/pii.py is not what nbs/data/70_pii.ipynb exports", "dvc repro --force tangle")
    mend("git checkout -q forge_nb")
    with open(mend.root/"build/data/pii.py", "a", encoding="utf-8") as f: f.write(f"\n{ADDED}\n")
    refused(mend, "python -m forge_nb.core.runner assess", "nbs/data/70_pii.ipynb is not what build/ was made from")
    assert "Running stage 'assess'" not in mend("dvc repro assess")
    mend("rm -r build")
    refused(mend, "python -m forge_nb.core.runner assess", "build/manifest.json is missing", "dvc repro --force tangle")
    mend("dvc repro -q --force tangle && python -m forge_nb.core.runner assess")  # the remedy
    assert results(mend) == before
    with open(mend.root/"forge_nb/data/pii.py", "a", encoding="utf-8") as f: f.write(f"\n{ADDED}\n")
    mend("dvc commit -q -f tangle")  # the edit is on record now, and DVC finds nothing to do
    refused(mend, "python -m forge_nb.core.runner assess", "forge_nb/data/pii.py is not what nbs/data/70_pii.ipynb exports")
    mend("dvc repro -q --force tangle && python -m forge_nb.core.runner assess")
    assert results(mend) == before


def test_a_module_edited_by_hand_is_exported_over_and_kept_aside(mend, tmp_path):
    with open(mend.root/"forge_nb/data/pii.py", "a", encoding="utf-8") as f: f.write(f"\n{ADDED}\n")
    said = mend("dvc repro assess")
    [kept] = (mend.root/".cache/overwritten").glob("data.pii-*.py")
    assert f"kept in .cache/overwritten/{kept.name}" in said and ADDED in kept.read_text(encoding="utf-8")
    assert "Running stage 'assess'" not in said and package(mend.root) == exported(mend.root, tmp_path/"x")
    (mend.root/"forge_nb/handmade.py").write_text("x = 1\n", encoding="utf-8")
    refused(mend, "dvc repro assess", "forge_nb/handmade.py comes from no notebook")
    mend("rm forge_nb/handmade.py")


def test_a_module_goes_with_its_notebook(mend):
    toy = mend.root/"nbs/data/99_toy.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# toy"), nbformat.v4.new_code_cell("#| default_exp data.toy"), nbformat.v4.new_code_cell("#| export\nx = 1")]), toy)
    mend("dvc repro -q tangle")
    assert (mend.root/"forge_nb/data/toy.py").exists()
    toy.unlink()
    mend("dvc repro -q tangle")
    assert not (mend.root/"forge_nb/data/toy.py").exists()


def test_compiled_code_of_the_same_second_and_size_is_not_believed(mend):
    "Python takes a compiled file for fresh when the source's second and size fit"
    run = "python"
    edit(page(mend, "graders"), "#| export\n", "#| export\nNUMBER = 1\n")
    mend(f"{run} -m forge_nb.core.tangle && {run} -c 'import forge_nb.metrics.graders'")
    module, stamp = mend.root/"forge_nb/metrics/graders.py", os.stat(mend.root/"forge_nb/metrics/graders.py")
    module.write_text(module.read_text(encoding="utf-8").replace("NUMBER = 1", "NUMBER = 2"), encoding="utf-8")  # as a checkout within the second does
    os.utime(module, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert mend(f"{run} -c 'import forge_nb.metrics.graders as a; print(a.NUMBER)'").strip() == "2"


@pytest.mark.parametrize("kind, page_name, old, new, words", [
    ("a syntax error", "sft", "#| export\ndef sft(", "#| export\ndef def sft(", ["nbs/50_sft.ipynb, cell ", "line 2: invalid syntax (`def def sft(`)"]),
    ("a syntax error in a library page", "readers", "#| export\ndef split_into_shards(", "#| export\ndef def split_into_shards(", ["nbs/data/60_readers.ipynb, cell ", "line 2: invalid syntax"]),
    ("a syntax error in a run cell", "sft", "pin(seed, threads)", "pin(seed, threads", ["nbs/50_sft.ipynb, cell ", "was never closed"]),
    ("a notebook command in an exported cell", "sft", "#| export\ndef sft(", "#| export\n!ls\ndef sft(", ["nbs/50_sft.ipynb, cell ", "line 2: `!ls` is a notebook command"]),
    ("conflict marks in a cell", "sft", "#| export\ndef sft(", "#| export\n<<<<<<< local\ndef sft(", ["nbs/50_sft.ipynb, cell ", "conflict marks"]),
    ("conflict marks in prose", "sft", "It is the longest", "<<<<<<< local\nIt is the longest", ["nbs/50_sft.ipynb, cell 2", "conflict marks"]),
    ("an import relative to a notebook", "sft", "#| export\ndef sft(", "#| export\nfrom .pii import find\ndef sft(", ["cannot import relative"]),
    ("a command of the kernel above the directive", "sft", "#| export\ndef sft(", "%%time\n#| export\ndef sft(", ["nbs/50_sft.ipynb, cell ", "is a notebook command"]),
    ("an export into another module", "sft", "#| export\ndef sft(", "#| export dpo\ndef sft(", ["nbs/50_sft.ipynb, cell ", "exports to the module `dpo`"]),
    ("a run cell that leans on a lesson", "sft", "pin(seed, threads)", "pin(seed, threads); print(tokenizer)", ["nbs/50_sft.ipynb, cell ", "uses `tokenizer`, which the lesson in cell"]),
    ("a name that Python cannot import", "sft", "#| default_exp sft", "#| default_exp s-ft", ["`s-ft`, which Python cannot import"]),
    ("a parameter without a type", "sft", "threads: int = 2", "threads = 2", ["nbs/50_sft.ipynb, cell ", "`name: type = value"]),
    ("a name that is not the notebook's", "sft", "#| default_exp sft", "#| default_exp sfft", ["nbs/50_sft.ipynb makes the module `sfft`, but its place says `sft`"]),
    ("no module's name", "sft", "#| default_exp sft", "# nothing", ["nbs/50_sft.ipynb says nowhere which module it makes"])])
def test_a_notebook_that_cannot_be_exported_is_one_sentence(pages, kind, page_name, old, new, words):
    before = package(pages.root)
    edit(page(pages, page_name), old, new)
    refused(pages, TANGLE, *words)
    assert package(pages.root) == before, "nothing is written before all is well"


def test_an_import_that_the_pipeline_does_not_list_stops_before_anything_runs(mend):
    before = results(mend)
    edit(page(mend, "assess"), "#| export\n", "#| export\nimport forge_nb.core.once as more\n")
    refused(mend, "dvc repro assess", "dvc.yaml: the stage `assess` runs build/core/once.py", "add it there")
    assert results(mend) == before


def test_a_syntax_error_taken_back_is_over(mend):
    before = results(mend), package(mend.root)
    edit(page(mend, "readers"), "#| export\ndef split_into_shards(", "#| export\ndef def split_into_shards(")
    refused(mend, "dvc repro assess", "nbs/data/60_readers.ipynb, cell ", "invalid syntax")
    mend("git checkout -q nbs && dvc repro -q assess")
    assert (results(mend), package(mend.root)) == before


def test_tags_that_papermill_needs(pages):
    path = page(pages, "sft")
    nb = json.loads(path.read_text(encoding="utf-8"))
    tagged = next(c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", []))
    for change, words in [(lambda: tagged["metadata"].clear(), ["nbs/50_sft.ipynb: no cell is tagged `parameters`", "Cell Tags"]),
                          (lambda: nb["cells"][1]["metadata"].update(tags=["parameters"]), ["nbs/50_sft.ipynb, cell 2: the tag `parameters` stands on prose"]),
                          (lambda: nb["cells"][1]["metadata"].update(tags=["injected-parameters"]), ["nbs/50_sft.ipynb, cell 2: papermill put this cell"]),
                          (lambda: nb["cells"][1]["metadata"].clear() or [tagged["metadata"].update(tags=["parameters"]), nb["cells"][3]["metadata"].update(tags=["parameters"])], ["nbs/50_sft.ipynb: cells 4 and", "both tagged"])]:
        change()
        path.write_text(json.dumps(nb), encoding="utf-8")
        refused(pages, TANGLE, *words)


@pytest.mark.parametrize("kind, name, content, words", [
    ("JupyterLab's duplicate", "50_sft-Copy1.ipynb", None, ["nbs/50_sft-Copy1.ipynb is a copy of 50_sft.ipynb; delete it"]),
    ("two notebooks for one module", "51_sft.ipynb", None, ["nbs/50_sft.ipynb", "nbs/51_sft.ipynb", "both make forge_nb/sft.py"]),
    ("an unnumbered copy", "Untitled.ipynb", None, ["both make forge_nb/sft.py"]),
    ("no bytes", "50_sft.ipynb", "", ["nbs/50_sft.ipynb is empty (0 bytes)", "git checkout -- nbs/50_sft.ipynb"]),
    ("half a file", "50_sft.ipynb", '{"cells": [{"cell_type"', ["nbs/50_sft.ipynb, line 1: not a notebook", "git checkout"]),
    ("another encoding", "50_sft.ipynb", "f\xfcnf", ["nbs/50_sft.ipynb, line 1: the byte 0xfc is not UTF-8"]),
    ("another kind of file", "50_sft.ipynb", "[1, 2]", ["nbs/50_sft.ipynb: not a notebook"])])
def test_a_notebook_file_that_is_none(pages, kind, name, content, words):
    shutil.copy(page(pages, "sft"), pages.root/"nbs"/name) if content is None else (pages.root/"nbs"/name).write_bytes(content.encode("latin-1"))
    refused(pages, TANGLE, *words)
    refused(pages, f"{TANGLE} export", *words)


def test_a_scratch_page_is_nobodys_business(pages):
    (pages.root/"nbs/Untitled1.ipynb").write_text("", encoding="utf-8")
    pages(f"{TANGLE} && {TANGLE} export")


def merge(copy: Copy, name: str, old: str, ours: str, theirs: str):
    "Two branches edit one cell, and git merges them as text"
    commit = "git -c user.name=t -c user.email=t@localhost commit -qam"
    copy("git checkout -qb theirs"); edit(page(copy, name), old, theirs); copy(f"{TANGLE} export; {commit} theirs; git checkout -q -")
    edit(page(copy, name), old, ours)
    said = copy(f"{TANGLE} export; {commit} ours; git -c merge.nbdime.driver=false -c user.name=t -c user.email=t@localhost -c merge.jupyternotebook.driver='git merge-file %A %O %B' merge theirs", rc=None)
    assert "CONFLICT" in said, said


def give_back(copy: Copy): copy("git merge --abort; git reset -q --hard HEAD~1 && git branch -qD theirs")


def test_a_merge_that_left_marks_names_file_and_way_out(mend):
    merge(mend, "pii", "#| export\ndef find_pii(", "#| export\nOURS = 1\ndef find_pii(", "#| export\nTHEIRS = 1\ndef find_pii(")
    refused(mend, TANGLE, "nbs/data/70_pii.ipynb, line ", "conflict marks of a merge", "nbdev-fix nbs/data/70_pii.ipynb", "make export")
    mend("nbdev-fix nbs/data/70_pii.ipynb", rc=1)  # the remedy: both sides as cells, one of which is then deleted
    refused(mend, TANGLE, "nbs/data/70_pii.ipynb, cell ", "conflict marks of a merge; keep one side")
    nb = json.loads(page(mend, "pii").read_text(encoding="utf-8"))
    nb["cells"] = [c for c in nb["cells"] if "THEIRS" not in "".join(c["source"]) and not re.match("`(<<<<<<<|=======|>>>>>>>)", "".join(c["source"]))]
    page(mend, "pii").write_text(json.dumps(nb), encoding="utf-8")
    mend("make -o setup export")
    assert "OURS = 1" in (mend.root/"forge_nb/data/pii.py").read_text(encoding="utf-8")
    give_back(mend)


def test_marks_in_the_harness_itself_are_one_sentence_and_make_export_mends_them(mend, tmp_path):
    stage, forge = "python -m forge_nb.core.runner assess", "python -m forge_nb.ops.cli whereis docs"
    for name, commands in (("project", (stage, forge, TANGLE)), ("tangle", (stage, TANGLE)), ("runner", (stage, ))):
        path = mend.root/"forge_nb"/"core"/f"{name}.py"
        lines = path.read_text(encoding="utf-8").splitlines(True)
        path.write_text("".join([*lines[:26], "<<<<<<< HEAD\n", *lines[26:]]), encoding="utf-8")
        for line in commands: refused(mend, line, f"forge_nb/core/{name}.py, line 27 (`<<<<<<< HEAD`)", "make export")
        mend("make -o setup export" if TANGLE in commands else "dvc repro -q tangle")  # what tangle does not import it exports by itself
        assert package(mend.root) == exported(mend.root, tmp_path/"x")
    (mend.root/"forge_nb/core/tangle.py").write_text("<<<<<<< HEAD\n", encoding="utf-8")
    page(mend, "tangle").write_text("", encoding="utf-8")
    said = mend("make -o setup export", rc=None)
    assert "error: nbs/core/10_tangle.ipynb cannot be exported" in said and "Traceback" not in said


@pytest.mark.parametrize("name, content, words", [
    ("dvc.lock", "schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n=======\nstages: {}\n>>>>>>> other\n", ["dvc.lock, line 2: conflict marks of a merge", "dvc repro"]),
    ("params.yaml", "sft:\n<<<<<<< HEAD\n", ["params.yaml, line 2: conflict marks"]),
    ("params.yaml", "sft:\n\tepochs: 1\n", ["params.yaml, line 2", "blanks, not tabs"]),
    ("params.yaml", "# f\xfcnf\nsft: {}\n", ["params.yaml, line 1: the byte 0xfc is not UTF-8"]),
    ("params.yaml", None, ["params.yaml is missing", "git checkout -- params.yaml"]), ("params.yaml", "", ["params.yaml: no section"]),
    ("params.yaml", "sft: [\n", ["params.yaml, line "]), ("params.yaml", "- sft\n", ["params.yaml holds ", "sections"])])
def test_yaml_that_people_edit_is_one_sentence(pages, name, content, words):
    (pages.root/name).unlink() if content is None else (pages.root/name).write_bytes(content.encode("latin-1"))
    for line in (TANGLE, "python -m forge_nb.ops.cli whereis 'docs/page 1.md'") if name == "dvc.lock" else (TANGLE, ): refused(pages, line, *words)


@pytest.mark.parametrize("name", ["company/questions.yaml", "company/extracts.yaml", "company/columns.yaml", "company/policies.yaml", "company/poison.yaml", "company/rules.yaml", "company/paraphrases.yaml", "company/style.yaml", "company/templates.yaml", "company/card.yaml", "config/bases.yaml", "config/hardware.yaml", "config/profiles/tiny.yaml", "studies/dvc.yaml"])
@pytest.mark.parametrize("content, words", [
    ("a: 1\n<<<<<<< HEAD\n", ["line 2: conflict marks"]), ("a:\n\tb: 1\n", ["line 2", "not tabs"]), ("a: f\xfcnf\n", ["line 1: the byte 0xfc is not UTF-8"])])
def test_every_other_yaml_too(tmp_path, name, content, words):
    models = {"company/questions.yaml": QuestionKinds, "company/extracts.yaml": ExtractKinds, "company/columns.yaml": ColumnPhrasings,
              "company/paraphrases.yaml": Paraphrases, "company/poison.yaml": PoisonFamilies, "company/rules.yaml": Rules, "company/style.yaml": Style}
    read = {"company/policies.yaml": load_policies, "company/templates.yaml": read_templates}.get(name, load_params)
    if name in models: read = lambda path: load_settings(path, models[name])
    (tmp_path/name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path/name).write_bytes(content.encode("latin-1"))
    with pytest.raises(Invalid) as error: read(tmp_path/name)
    assert all(w in str(error.value) for w in (Path(name).name, *words)), error.value


def test_yaml_is_parsed_in_one_place():
    "So that what every file says of a mistake is the same sentence; the runner keeps comments, and a draft is written"
    assert {p.stem for p in (ROOT/"forge_nb").rglob("*.py") if "YAML(" in p.read_text(encoding="utf-8")} == {"project", "runner", "draft"}


def test_a_damaged_report_is_one_sentence(mend):
    (mend.root/"reports/assess.ipynb").write_text('{"cells": [', encoding="utf-8")
    refused(mend, "python -m forge_nb.report.pages html", "reports/assess.ipynb, line 1: not a notebook", "dvc checkout --force reports/assess.ipynb")
    mend("dvc checkout --force reports/assess.ipynb && python -m forge_nb.report.pages html")


def test_a_name_that_is_no_stage(small):
    error = refused(small, "python -m forge_nb.core.runner asess", "there is no stage `asess`", "did you mean `assess`?")
    assert "readers" not in error.split("stages are")[1]


def test_the_package_of_another_clone_is_refused(small, tmp_path):
    other = tmp_path/"other"
    small(f"git worktree add -q --detach {other}")
    error = subprocess.run(["python", "-m", "forge_nb.ops.cli", "whereis", "docs"], cwd=other/"nbs", env={**os.environ, "PYTHONPATH": str(small.root)}, capture_output=True, text=True, encoding="utf-8")
    assert error.returncode == 2 and f"the code that runs here is that of {small.root}" in error.stderr and "Traceback" not in error.stderr
    small(f"git worktree remove --force {other}")


def test_an_input_that_changes_while_a_stage_runs_is_not_recorded(mend):
    "DVC hashes inputs after the run: a file edited meanwhile would stand in dvc.lock as what the result was made from"
    book = page(mend, "ingest")
    edit(book, "#| run\nimport forge_nb.ingest as stage", "#| run\nPath('company/templates.yaml').write_text('x: \"{y}\"', encoding='utf-8')\nimport forge_nb.ingest as stage")
    lock = (mend.root/"dvc.lock").read_bytes()
    refused(mend, "dvc repro assess", "company/templates.yaml changed while stage ingest ran", "dvc repro ingest")
    assert b"templates" in lock and "assess" not in re.findall(r"Running stage '(\w+)'", mend("git checkout -q nbs company/templates.yaml && dvc repro assess"))


def test_checkpoints_know_code_links_machine_and_versions(small, tmp_path):
    code = "from forge_nb.core import runner; import os; from pathlib import Path\n" \
           "def h(): return runner.hash_run({}, runner.hash_files(['probe']))\n" \
           "p = Path('probe'); p.mkdir(); (p/'a').write_text('x', encoding='utf-8'); a = h()\n" \
           "(p/'a').rename('moved'); (p/'a').symlink_to(Path('moved').resolve()); b = h()\n" \
           "runner.describe_machine = lambda: dict(cpu='another'); c = h(); print(len({a, b, c}))"
    assert small(f"python -c \"{code}\"; rm -rf probe moved").strip() == "3"


def test_what_a_search_has_on_record_counts_for_its_own_code_alone(small):
    code = "import optuna, tempfile; from pathlib import Path; from forge_nb.ops import sweep; from optuna.distributions import FloatDistribution as F\n" \
           "d = Path(tempfile.mkdtemp()); a = {'sft.learning_rate': F(.1, 1)}; sweep.open_study(d, a, ('sft', 'loss', True), 'one'); sweep.open_study(d, a, ('sft', 'loss', True), 'one')\n" \
           "from forge_nb.core.project import run_cli; run_cli(lambda: sweep.open_study(d, a, ('sft', 'loss', True), 'two'))"
    refused(small, f"python -c \"{code}\"", "other code, data, parameters or versions", "--name")


def test_a_function_of_the_user_is_read_as_it_stands(tmp_path):
    "company/kpi.py: marks and encoding are one sentence, and a compiled copy of an older text is not believed"
    path = tmp_path/"kpi.py"
    for content, words in ((b"<<<<<<< HEAD\n", "line 1: conflict marks"), (b"# f\xfcnf\n", "line 1: the byte 0xfc is not UTF-8"), (b"def def\n", "cannot be loaded (SyntaxError")):
        path.write_bytes(content)
        with pytest.raises(Invalid, match=re.escape(words)): load_function(path, "near")
    for number in (1, 2):
        path.write_text(f"def near(): return {number}\n", encoding="utf-8")
        os.utime(path, (1e9, 1e9))
        assert load_function(path, "near")() == number


def test_files_are_utf8_whatever_the_locale(mend, tmp_path):
    built = subprocess.run(["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path/"de_DE.ISO-8859-1")], capture_output=True).returncode if shutil.which("localedef") else 9
    if built > 1: pytest.skip("this system cannot make a locale that is not UTF-8")
    before = results(mend)
    text = f"LOCPATH={tmp_path} LC_ALL=de_DE.ISO-8859-1"
    assert "ISO-8859-1" in mend(f"{text} python -c 'import locale; print(locale.getpreferredencoding())'")
    mend(f"{text} dvc repro -q -f assess")
    assert results(mend) == before
    for line in (TANGLE, "python -m forge_nb.report.pages html", "python -m forge_nb.ops.cli whereis 'docs/page 1.md'", f"{TANGLE} export"): mend(f"{text} {line}")


def test_a_long_folder_for_temporary_files(mend, tmp_path):
    long = tmp_path/("n" * 100)/("m" * 60)
    long.mkdir(parents=True)
    before = results(mend)
    mend(f"TMPDIR={long} dvc repro -q -f assess")
    assert results(mend) == before and not list(long.iterdir())


MOUNT = "unshare --map-root-user --mount"
can_mount = pytest.mark.skipif(subprocess.run([*MOUNT.split(), "true"], capture_output=True).returncode != 0, reason="this system gives a user no mounts of his own")


@can_mount
@pytest.mark.parametrize("where", ["reports", "artifacts/assess"])  # the runner's writing, and the stage's own
def test_a_full_disk_is_one_sentence(mend, tmp_path, where):
    (disk := tmp_path/"disk").mkdir()
    line = (f"mount -t tmpfs -o size=300k none {disk} && mkdir {disk}/here && mount --bind {disk}/here {where} && "
            f"head -c 310000 /dev/zero > {disk}/ballast; python -m forge_nb.core.runner assess")
    refused(mend, f"{MOUNT} bash -c '{line}'", "No space left on device", "free some space and run again", rc=1)
    mend("dvc repro -q assess")


@can_mount
def test_a_project_that_cannot_be_written_to_is_one_sentence(mend):
    only = f"{MOUNT} bash -c 'mount --bind . . && mount -o remount,bind,ro . && cd $PWD && %s'"
    refused(mend, only % "python -m forge_nb.core.runner assess", "Read-only file system", "clone that you may write to", rc=1)
    mend(only % "python -m forge_nb.ops.cli whereis docs --json > /dev/null", rc=None)
    assert "Traceback" not in mend(only % "python -m forge_nb.ops.cli estimate", rc=None)


class Walk:
    "Random edits of a working tree, and what a fresh clone makes of each"
    pages = ("pii", "readers", "dedup", "assess")

    def __init__(self, copy: Copy, seed: int): self.copy, self.draw, self.count = copy, random.Random(seed), 0

    def step(self) -> str:
        "One thing that people do; its name"
        self.count += 1
        git, name = self.copy, self.draw.choice(self.pages)
        path, commit = page(git, name), "git -c user.name=t -c user.email=t@localhost commit -qm"
        def code(): edit(path, "#| export\n", f"#| export\nN{self.count} = {self.draw.randint(0, 9)}\n")
        def masking(): add_cell(page(git, "pii"), f"#| export\n{ADDED}", name=f"c0ffee{self.count:02d}")
        def prose(): add_cell(path, f"Said {self.count}.", "markdown", name=f"c0ffee{self.count:02d}")
        def run_cell(): edit(page(git, "assess"), "#| run\n", f"#| run\nn{self.count} = {self.count}\n")
        def undo(): git("git checkout -q -- nbs")
        def undo_all(): git("git checkout -q -- nbs forge_nb")
        def stash(): git("git -c user.name=t -c user.email=t@localhost stash -q || true")
        def pop(): git("git checkout -q -- . && git stash pop -q || git checkout -q HEAD -- . && git reset -q && git stash clear")
        def branch(): git(f"git add -A nbs forge_nb && {commit} b{self.count} --allow-empty && git branch -f b{self.count % 3}")
        def switch(): git(f"git checkout -q -f b{self.draw.randint(0, 2)} 2>/dev/null || true")
        def back(): git("git checkout -q -f HEAD~1 2>/dev/null || true")
        def by_hand():
            with open(git.root/"forge_nb"/module(git, name), "a", encoding="utf-8") as f: f.write(f"\nHAND = {self.count}\n")
        def lost(): (git.root/"forge_nb"/module(git, name)).unlink(missing_ok=True)
        def built():
            path = git.root/"build"/module(git, name)
            if path.exists(): path.write_text("# nothing\n", encoding="utf-8")
        def nbdev(): git("nbdev-export")
        def broken():
            kept = path.read_bytes(); edit(path, "#| export\n", "#| export\ndef def\n"); git("dvc repro -q tangle", rc=None); path.write_bytes(kept)
        def copied():
            copied = path.with_name(f"{path.stem}-Copy1.ipynb"); shutil.copy(path, copied); git("dvc repro -q tangle", rc=None); copied.unlink()
        move = self.draw.choice([code, code, masking, prose, run_cell, undo, undo, undo_all, stash, pop, branch, switch, back, by_hand, lost, built, nbdev, broken, copied])
        move()
        return f"{self.count} {move.__name__} {name}"


@pytest.mark.slow
def test_a_random_walk_of_edits_leaves_the_package_as_exported(mend, tmp_path):
    "Proves: after a random walk of edits the package is what the notebooks export"
    walk = Walk(mend, 3)
    for _ in range(5):
        move = walk.step()
        mend("dvc repro -q tangle")
        assert package(mend.root) == exported(mend.root, tmp_path/"x"), move
        books = {module(mend, p.stem[3:]): nbformat.read(p, 4) for p in (mend.root/"nbs").rglob("[0-9]*.ipynb")}
        assert {name: (mend.root/"build"/name).read_text(encoding="utf-8") for name in books} == {name: extract_build_source(nb) for name, nb in books.items()}, move


@pytest.mark.slow
def test_a_random_walk_of_fifty_edits_ends_each_time_where_a_fresh_clone_does(tmp_path):
    "Proves: after every one of fifty edits, undos, stashes and branch switches, `dvc repro` leaves the bytes that a fresh clone of the same tree makes"
    walked, made = Copy(tmp_path/"walked"), {}
    shrink(walked)
    walked("git branch b0 && git branch b1 && git branch b2")
    walk = Walk(walked, 7)
    for _ in range(50):
        move = walk.step()
        walked("dvc repro -q assess")
        state = repr({p.name: p.read_bytes() for p in sorted((walked.root/"nbs").rglob("*.ipynb"))})
        if state not in made:
            fresh = tmp_path/"fresh"
            walked(f"rm -rf {fresh} && git clone -q . {fresh} && rm -r {fresh}/nbs && cp -r nbs data {fresh}/ && cd {fresh} && rm -f dvc.lock && dvc repro -q assess")
            lock = (fresh/"dvc.lock").read_text(encoding="utf-8")
            made[state] = {p: (fresh/p).read_bytes() for p in ASSESSED}, package(fresh), lock[:lock.index("stages:") + 7] + lock.split("stages:", 1)[1]
        outcome, modules, lock = made[state]
        assert results(walked) == outcome, move
        assert package(walked.root) == modules, move
        entry = lambda text: re.search(r"(?ms)^  assess:\n.*?(?=^  \w|\Z)", text)[0]
        assert entry((walked.root/"dvc.lock").read_text(encoding="utf-8")) == entry(lock), move
    print(f"{len(made)} different states")


def test_notebooks_are_found(): assert {"core.project", "core.tangle", "core.runner", "assess"} <= set(list_notebooks())
