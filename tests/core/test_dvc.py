"What DVC documents works here: experiments, checkouts, shared caches, worktrees, shallow clones; on a project of five stages that take seconds"
import hashlib, json, shutil
from pathlib import Path

import pytest
from copies import ROOT, Copy, wait_for
from ruamel.yaml import YAML

CHEAP = ("tangle", "ingest", "assess", "curate", "ngram")
COMMIT = "git add -A && git commit -qm"
CLEAN = "Data and pipelines are up to date."


@pytest.fixture(scope="module")
def little(tmp_path_factory) -> Copy:
    "A small project that has run and is committed: two folders of pages, and a pipeline that ends with `ngram`"
    copy = Copy(tmp_path_factory.mktemp("little")/"project")
    for path in (copy.root/"data").iterdir():
        if path.is_dir(): shutil.rmtree(path)
    for name in ("docs/topics", "docs/howto"): shutil.copytree(ROOT/"data"/name, copy.root/"data"/name)
    graph = YAML(typ="safe").load(copy.root/"dvc.yaml")
    YAML().dump(dict(stages={name: graph["stages"][name] for name in CHEAP}), copy.root/"dvc.yaml")
    (copy.root/"dvc.lock").unlink()
    copy("git config user.name t && git config user.email t@localhost && python -m forge_nb.core.runner profile tiny && "
         f"python -m forge_nb.core.runner adopt && dvc add -q data && dvc repro -q && {COMMIT} little")
    return copy


@pytest.fixture
def tidy(little):
    "The same project, given back as it was"
    yield little
    little("git checkout -q . && dvc checkout -q && dvc exp remove -q -A; git clean -fdq")


def another(copy: Copy, folder: Path, kind: str = "copy", how: str = "git clone -q --depth 1 file://{from_} {to}") -> Copy:
    "A second checkout of a project, on a cache that both may use"
    other = object.__new__(Copy)
    other.root = folder/"second"
    shutil.copytree(copy.root/".dvc"/"cache", folder/"cache")
    copy(how.format(from_=copy.root, to=other.root))
    other(f"git config user.name t && git config user.email t@localhost && dvc cache dir --local {folder}/cache && "
          f"dvc config --local cache.type {kind} && dvc checkout -q")
    return other


def swap(path: Path, old: str, new: str):
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def order(copy: Copy) -> int:
    "The parameter that the last run of `ngram` had"
    return json.loads((copy.root/"artifacts/ngram/metrics.json").read_text(encoding="utf-8"))["order"]


def spoiled(cache: Path) -> list:
    "Objects of a cache whose content is not what their name says"
    return [p for p in (cache/"files"/"md5").glob("??/*") if p.suffix != ".dir"
            and hashlib.md5(p.read_bytes()).hexdigest() != p.parent.name + p.name]


def test_nobody_is_asked_for_studies_that_nobody_ran(tidy):
    assert CLEAN in tidy("dvc status") and tidy("dvc checkout") == ""
    tidy("dvc exp run -q -n one -S ngram.order=3 && git checkout -q . && dvc checkout")
    assert CLEAN in tidy("dvc status") and order(tidy) == 4
    tidy("dvc exp apply one")
    assert CLEAN in tidy("dvc status") and order(tidy) == 3


def test_studies_are_whole_as_they_stand(little):
    "Its own project knows every study, and finds the committed figures as its lock says"
    changed = json.loads(little("cd studies && dvc status --json"))
    assert set(changed) == set(YAML(typ="safe").load(ROOT/"studies"/"dvc.yaml")["stages"])
    outs = {path: how for entries in changed.values() for e in entries if isinstance(e, dict) for path, how in e.get("changed outs", {}).items()}
    assert set(outs.values()) == {"not in cache"} and not [p for p in outs if p.endswith((".csv", "metrics.json"))], outs


@pytest.mark.parametrize("form", ["dvc exp run -n trial", "dvc exp run --temp -n trial",
                                  pytest.param("dvc exp run --queue -n trial", marks=pytest.mark.slow)])
def test_experiments_in_every_form(tidy, form):
    "Proves: an experiment in place, beside the tree or in a queue is shown, compared, applied and branched"
    assert order(tidy) == 4
    tidy(f"{form} -S ngram.order=2")
    if "--queue" in form:
        tidy("dvc queue start")
        said = wait_for(lambda: next((s for s in [tidy("dvc queue status")] if "Success" in s or "Failed" in s), ""), pause=1)
        assert "Failed" not in said, said
    assert order(tidy) == (4 if "--" in form else 2)
    tidy("git checkout -q . && dvc checkout -q")
    shown = json.loads(tidy("dvc exp show --json"))
    assert "trial" in json.dumps(shown)
    told = json.loads(tidy("dvc exp diff HEAD trial --json"))
    assert told["params"]["params.yaml"]["ngram.order"] == dict(old=4, new=2, diff=-2) and told["metrics"]["artifacts/ngram/metrics.json"]
    tidy("dvc exp apply trial")
    assert order(tidy) == 2 and CLEAN in tidy("dvc status")
    tidy("git checkout -q . && dvc exp branch trial branched && git checkout -q branched && dvc checkout -q")
    assert order(tidy) == 2 and CLEAN in tidy("dvc repro")
    tidy("git checkout -q - && git branch -qD branched")


def test_what_compares_compares_and_leaves_nothing(tidy):
    tidy("dvc exp run -q -n deep -S ngram.order=5")
    for line in ("dvc plots show", "dvc plots diff HEAD", "dvc metrics diff", "dvc params diff", "dvc dag --md"): assert tidy(line), line
    assert "ngram.order" in tidy("dvc params diff") and "bpb" in tidy("dvc metrics diff")
    wide, narrow = (max(map(len, tidy(f"dvc exp show {how}").splitlines())) for how in ("", "--only-changed"))
    assert narrow < wide / 3
    tidy("git checkout -q . && dvc checkout -q")
    assert tidy("git status --porcelain") == "", "dvc plots leaves a folder"
    assert tidy("dvc repro ngrm", rc=255).splitlines()[0].startswith("ERROR: Stage 'ngrm' not found")


def test_readme_names_the_narrow_forms():
    text = "".join((ROOT/page).read_text(encoding="utf-8") for page in ("README.md", "CONTRIBUTING.md"))
    assert "dvc exp show --only-changed" in text and "dvc dag --md" in text


@pytest.mark.parametrize("kind", [pytest.param("hardlink", marks=pytest.mark.slow), "symlink"])
def test_links_that_dvc_makes_are_data(little, tmp_path, kind):
    "Proves: a second clone on a shared cache gives the same bytes when all runs again, and the cache left as it was"
    other = another(little, tmp_path, kind)
    page = other.root/"data/docs/howto/index.txt"
    assert page.is_symlink() if kind == "symlink" else page.stat().st_nlink > 1
    assert CLEAN in other("dvc repro") and not (other.root/"runs").exists()
    other("dvc repro -q --force --single-item ingest curate && test -z \"$(git status --porcelain)\"")
    other("python -m forge_nb.core.runner ingest && git diff --exit-code")  # over the links that are there
    (other.root/"data/docs/new.txt").write_text("A new page.\n", encoding="utf-8")
    other("python -m forge_nb.core.runner adopt && dvc add -q data")
    assert not spoiled(tmp_path/"cache")


def test_a_link_to_elsewhere_is_refused_and_its_remedy_works(little, tmp_path):
    "Also where the same command was refused a moment ago: what is kept of that run is not taken up"
    other = another(little, tmp_path, "symlink")
    pages = [p for p in (other.root/"data"/"docs").rglob("*") if p.is_file()]
    for n, page in enumerate(pages):
        shutil.copyfile(page, tmp_path/f"{n}.txt")
        page.unlink(); page.symlink_to(tmp_path/f"{n}.txt")
    said = other("python -m forge_nb.core.runner ingest", rc=2)
    assert "no document can be read" in said and "Traceback" not in said
    assert (other.root/"artifacts/ingest/rejects.jsonl").read_text(encoding="utf-8").count("found a link that leads out of it; copy the file itself") == len(pages)
    for n, page in enumerate(pages): page.unlink(); shutil.copyfile(tmp_path/f"{n}.txt", page)
    other("python -m forge_nb.core.runner ingest && git diff --exit-code")


def test_a_changed_test_document_reruns_no_training_stage(tidy):
    "A sentence more in a page of the test split: neither a split that trains nor what a training stage reads is another"
    hashes = lambda: {o["path"]: o["md5"] for s in YAML(typ="safe").load(tidy.root/"dvc.lock")["stages"].values() for o in s.get("outs", [])}
    before = hashes()
    page = next(json.loads(line)["source"] for line in open(tidy.root/"artifacts/curate/documents/test.jsonl", encoding="utf-8"))
    with open(tidy.root/"data"/page, "a", encoding="utf-8") as f: f.write("\nAnother sentence stands at the end of this page.\n")
    tidy("python -m forge_nb.core.runner adopt && dvc add -q data && dvc repro -q")
    changed = {"data"} | {path for path, digest in hashes().items() if digest != before[path]}
    assert {"artifacts/ingest/documents", "artifacts/curate/documents/test.jsonl", "artifacts/ngram/documents.jsonl"} <= changed
    assert not {f"artifacts/curate/documents/{s}.jsonl" for s in ("train", "valid")} & changed
    stages = YAML(typ="safe").load(ROOT/"dvc.yaml")["stages"]
    train = [name for name, s in stages.items() if any(isinstance(o, str) and o.endswith(("/model", "/tokenizer")) for o in s["outs"])]
    assert len(train) == 8
    for name in train: assert not [d for d in stages[name]["deps"] if any(c == d or c.startswith(d + "/") or d.startswith(c + "/") for c in changed)], name


@pytest.mark.slow
def test_a_worktree_runs_its_own_code(little, tmp_path):
    "Proves: a worktree of git runs its own code"
    other = another(little, tmp_path, how="git worktree add -q --detach {to}")
    assert CLEAN in other("dvc status") and CLEAN in other("dvc repro")
    book = next((other.root/"nbs").glob("*_ngram.ipynb"))
    swap(book, "bits per byte\\\"", "bits a byte\\\"")
    assert "order 1: 4.83" in (said := other("dvc repro")) and "bits a byte" in said and "bits a byte" not in little("dvc repro -f -s ngram")
    assert order(other) == 4
    other("dvc exp run -q --temp -n there -S ngram.order=3 && dvc exp apply there")
    assert order(other) == 3 and order(little) == 4
    little(f"dvc exp remove -q -A; git worktree remove --force {other.root} && git diff --exit-code")


def test_a_shallow_clone(little, tmp_path):
    other = another(little, tmp_path)
    assert other("git rev-parse --is-shallow-repository") == "true\n"
    assert CLEAN in other("dvc status") and CLEAN in other("dvc repro")
    other("dvc exp run -q -n one -S ngram.order=3 && git checkout -q . && dvc exp apply one")
    assert order(other) == 3
    said = other("python -m forge_nb.ops.cli sweep ngram.order=2,3 --metric ngram:bpb --trials 1", rc=2)
    assert said.splitlines()[-1].startswith("error: this clone is shallow") and "git fetch --unshallow" in said and "Traceback" not in said


def test_a_remote_brings_everything(tidy, tmp_path):
    tidy(f"dvc remote add -q --local -d store {tmp_path}/store && dvc push -q && git clone -q . {tmp_path}/second")
    other = object.__new__(Copy)
    other.root = tmp_path/"second"
    other(f"dvc remote add -q --local -d store {tmp_path}/store && dvc pull -q")
    assert CLEAN in other("dvc status") and CLEAN in other("dvc repro")
    tidy("dvc remote remove -q --local store")


def test_an_experiment_beside_the_tree_finds_the_base_of_its_project(little):
    "A base lies in nobody's git, and an experiment's folder holds what git and DVC know"
    beside = little.root/".dvc/tmp/exps/standalone/one"
    for place in ("own", ".cache/bases/smollm2"):
        (little.root/place).mkdir(parents=True)
        for name in ("config.json", "model.safetensors"): (little.root/place/name).touch()
    asked = "import forge_nb.train.bases as b; b.hash_weights = lambda folder: b.load_catalogue()['smollm2']['weights']; b.check_model_folder = lambda folder, name: folder; print(b.find_base('own')[0], b.find_base('smollm2')[0])"
    try: assert little(f'git clone -q . {beside} && cd {beside} && python -c "{asked}"') == f"{little.root}/own {little.root}/.cache/bases/smollm2\n"
    finally: little(f"rm -rf own .cache/bases {beside}")


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Copy:
    "A project of its own in which the whole chain has run"
    copy = object.__new__(Copy)
    copy.root = tmp_path_factory.mktemp("finished")/"project"
    shutil.copytree(tiny.root, copy.root, symlinks=True)
    copy("git config user.name t && git config user.email t@localhost")
    return copy


@pytest.mark.slow
def test_the_whole_chain_is_clean_without_its_studies(finished):
    assert CLEAN in finished("dvc status") and finished("dvc checkout") == ""
    finished("dvc exp run -q -n one -S card.max_rows=6 && git checkout -q . && dvc checkout")
    assert CLEAN in finished("dvc status")
    finished("dvc exp apply one")
    assert CLEAN in finished("dvc status") and finished("git diff --exit-code dvc.lock", rc=None)
    finished("git checkout -q . && dvc checkout -q")


@pytest.mark.slow
def test_studies_run_beside_the_pipeline_and_forget_reaches_them(finished, tmp_path):
    "On hard links, so that a file which is written where it lies would spoil the cache"
    finished("dvc config --local cache.type hardlink && dvc checkout -q --relink && cd studies && dvc config --local cache.type hardlink")
    finished(f"cd studies && dvc repro -q effort && dvc exp run -q -n deeper -S moe.depth=2 moe && cd .. && dvc repro -q && {COMMIT} studied")
    made = [finished.root/"studies"/p for p in ("artifacts/effort/model/model.safetensors", "artifacts/moe/loads.json", "reports/effort.ipynb", "reports/moe.ipynb")]
    assert all(p.exists() for p in made) and not (finished.root/"reports/moe.ipynb").exists()
    finished("dvc gc -q --workspace --force && rm -r studies/reports && cd studies && dvc checkout effort moe")
    assert all(p.exists() for p in made) and finished("git status --porcelain") == ""
    for project in (".", "studies"): assert CLEAN in finished(f"cd {project} && dvc status {'effort moe' if project == 'studies' else ''}")
    page = next(json.loads(line)["source"] for line in open(finished.root/"artifacts/curate/documents/train.jsonl", encoding="utf-8") if '"kind": "docs"' in line)
    assert "studies/artifacts/effort/model" in finished(f"python -m forge_nb.ops.cli whereis '{page}'")
    answer = json.loads(finished(f"python -m forge_nb.ops.cli forget '{page}' --yes --json 2>.git/said"))
    assert "effort" in answer["ran"] and answer["proof"]["up_to_date"] and "cd studies && dvc gc" in json.dumps(answer["remaining_copies"])
    assert {a["path"]: a["old"] != a["new"] for a in answer["artifacts"]}["studies/artifacts/effort/model"]
    for cache in (".dvc/cache", "studies/.dvc/cache"): assert not spoiled(finished.root/cache)
