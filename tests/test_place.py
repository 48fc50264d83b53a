"A project has no fixed place: moved, renamed, copied, unpacked without git, inside another repository, with any line endings; and notebooks merge with nbdime or without it"
import hashlib, json, os, random, re, shutil, subprocess, sys
from pathlib import Path

import pytest
from copies import ENV, ROOT

NAMES = ["Meine Modelle ü", "a,b (c) 'd' $e #f%g"]
ENVIRONMENT = Path(sys.prefix)
PIP = '''
import pathlib, sys
if "-e" in sys.argv:
    tool = pathlib.Path(sys.prefix, "bin", "tool"); tool.write_text("#!/bin/sh\\nexec '%s/bin/python' -c 'import pathlib, sys; print(pathlib.Path(sys.prefix).parent)'" % sys.prefix.replace("'", "'\\\\''")); tool.chmod(0o755)
'''
SOURCE = "import sys; print(sys.argv[1:])"


def shell(line: str, folder: Path, rc: int | None = 0, **env) -> str:
    "Run a command in a folder, as a user without settings of git; its output, with the exit code checked"
    done = subprocess.run(["bash", "-c", line], cwd=folder, text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=ENV | dict(GIT_CONFIG_GLOBAL="/dev/null", GIT_AUTHOR_NAME="t", GIT_AUTHOR_EMAIL="t@localhost", GIT_COMMITTER_NAME="t", GIT_COMMITTER_EMAIL="t@localhost") | env)
    assert rc is None or done.returncode == rc, f"`{line}` exited with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def project(folder: Path) -> Path:
    "What `make` and git read of the project; its environment is made by the real venv and by a pip that installs one script"
    folder.mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".gitattributes", ".gitignore"): shutil.copy(ROOT/name, folder)
    shutil.copytree(ROOT/".githooks", folder/".githooks")
    (folder/"forge_nb").mkdir()
    for name in ("data/default_company", "data/own_data", "data/versions", "ops/check", "train/bases", "bench/bench"):
        (folder/"forge_nb"/name).parent.mkdir(exist_ok=True)
        (folder/"forge_nb"/f"{name}.py").write_text("" if name in ("data/versions", "ops/check") else SOURCE, encoding="utf-8")
    base, place = sys._base_executable, "lib/python*/site-packages/pip.py"
    (python := folder.parent/"python").write_text(
        f'#!/bin/sh\nif [ "$2" = venv ]; then "{base}" -m venv --without-pip "$3" && cp "{folder.parent}/pip.py" "$(echo "$3"/{place[:-7]})"/; else exec "{base}" "$@"; fi\n', encoding="utf-8")
    python.chmod(0o755)
    (folder.parent/"pip.py").write_text(PIP, encoding="utf-8")
    return folder


def make(words: str, folder: Path, **env) -> str: return shell(f"make PYTHON='{env.pop('python', folder.parent)}/python' {words}", folder, **env)
def tool(folder: Path) -> Path: return Path(shell(".venv/bin/tool", folder).strip())


@pytest.fixture
def here(tmp_path) -> Path:
    "A project that is set up"
    folder = project(tmp_path/"there")
    make("setup", folder)
    assert tool(folder) == folder and not make("setup", folder), "an environment in its place is left alone"
    return folder


def test_moved(here):
    moved = here.rename(here.parent/"renamed")
    assert shell(".venv/bin/tool", moved, None) and not make("-n setup", moved).startswith("bash"), "a moved environment does not run, and make knows"
    assert "set up in another folder" in make("setup", moved)
    assert tool(moved) == moved and not make("setup", moved)


def test_copied(here):
    copy = here.parent/"copy"
    shutil.copytree(here, copy, symlinks=True)
    assert tool(copy) == here, "a copied environment runs the original's"
    make("setup", copy)
    assert (tool(copy), tool(here)) == (copy, here) and not make("setup", here)


def test_python_gone(here):
    python = here/".venv"/"bin"/"python"
    python.unlink(); python.symlink_to("/nowhere/python")
    assert "for another Python" in make("setup", here)
    assert tool(here) == here


def test_interrupted_set_up(here):
    (here/".venv"/"ready").unlink(); (here/".venv"/"bin"/"tool").unlink()
    make("setup", here)
    assert tool(here) == here


def test_lock_changed(here):
    kept = (here/".venv"/"pyvenv.cfg").stat().st_ino
    os.utime(here/"requirements.lock", (2**31, 2**31))
    assert "setting up" in make("setup", here)
    assert (here/".venv"/"pyvenv.cfg").stat().st_ino == kept, "a new lock is installed into the environment that is there"


@pytest.mark.parametrize("name", NAMES)
def test_blanks_and_umlauts(tmp_path, name):
    folder, other = project(tmp_path/name), f"/no where/ü {name}"
    shell("git init -q", folder)
    make("setup", folder, python="..")
    assert tool(folder) == folder and not make("setup", folder, python="..")
    for line, value in (("data", "FROM"), ("base", "BASE"), ("bench", "PART")):
        said = make(f'{line} "{value}=$OTHER"', folder, python="..", OTHER=other.replace("$", "$$"))
        assert str([other]) in said, said
    assert make("data", folder, python="..") == "[]\n"
    shell("git config core.hooksPath && git rev-parse --git-dir && cmp .githooks/notebook .git/notebook", folder)


def test_inside_another_repository(tmp_path):
    outer = tmp_path/"outer"
    shell("git init -q outer && cd outer && git config core.hooksPath mine && echo a > a && git add a && git commit -qm a", tmp_path)
    folder = project(outer/"models"/"forge")
    state = lambda: {p: p.read_bytes() for p in (outer/".git").rglob("*") if p.is_file()}
    before = state()
    make("setup", folder)
    assert state() == before, "the hooks and the settings of the repository around are somebody else's"
    shell("git init -q", folder)
    assert not make("setup", folder) and shell("git config --local core.hooksPath", folder) == ".githooks\n" and state() == before


def test_settings_are_local_and_written_once(tmp_path):
    folder = project(tmp_path/"own")
    shell("git init -q && bash .githooks/setup", folder)
    first = (folder/".git"/"config").read_bytes()
    shell("bash .githooks/setup", folder)
    assert (folder/".git"/"config").read_bytes() == first and str(folder).encode() not in first
    shell("git add -A && git commit -qm a && git worktree add -q ../tree && cd ../tree && bash .githooks/setup && git config merge.jupyternotebook.driver", folder)
    assert (folder/".git"/"config").read_bytes() == first


@pytest.fixture(scope="module")
def unpacked(bare, tmp_path_factory) -> Path:
    "The project as an archive holds it, with data/ and without git"
    folder = tmp_path_factory.mktemp("archive")/"forge"
    shutil.copytree(bare.root, folder, ignore=lambda at, _: {".git"} if Path(at) == bare.root else {"cache", "tmp"} if Path(at).name == ".dvc" else set())
    return folder


REMEDIES = {"git": "git init -q", "no_scm": "dvc config --local core.no_scm true"}


@pytest.mark.parametrize("remedy", REMEDIES)
def test_without_git(unpacked, tmp_path, remedy):
    folder = tmp_path/"forge"
    shutil.copytree(unpacked, folder)
    said = shell("python -m forge_nb.data.default_company", folder, 2)
    assert said == "error: this folder is no git repository: `git init`, or `dvc config --local core.no_scm true`\n"
    shell(f"{REMEDIES[remedy]} && python -m forge_nb.data.default_company && dvc status --quiet data.dvc", folder)
    assert "an experiment starts from a commit" in shell("python -m forge_nb.ops.seeds", folder, 2)
    shell("git init -q && git add -A && git commit -qm a", folder)
    if remedy == "no_scm":
        assert "dvc config --local --unset core.no_scm" in (said := shell("python -m forge_nb.ops.seeds", folder, 2))
        shell(re.search("`(.*)`", said)[1], folder)
    shell('python -c "from forge_nb.core.dvc import require_commit; from forge_nb.core.project import ROOT; require_commit(ROOT)"', folder)


@pytest.mark.parametrize("remedy", REMEDIES)
def test_ignored_by_the_repository_around(unpacked, tmp_path, remedy):
    shell("git init -q && echo forge > .gitignore && git add -A && git commit -qm a", tmp_path)
    folder = tmp_path/"forge"
    shutil.copytree(unpacked, folder)
    assert "around this folder ignores it: `git init`" in shell("python -m forge_nb.data.default_company", folder, 2)
    shell(f"{REMEDIES[remedy]} && python -m forge_nb.data.default_company", folder)


def test_experiment_read_inside_another_repository(unpacked, tmp_path):
    folder = tmp_path/"outer"/"forge"
    shutil.copytree(unpacked, folder)
    shell("git init -q .. && python -m forge_nb.data.default_company && git add -A && git commit -qm a", folder)
    shell("dvc exp run -q --temp -n other -S shared.seed=77 tangle", folder)
    shell("""python -c "from forge_nb.core.dvc import read_experiment_file as r; from forge_nb.core.project import ROOT; assert 'seed: 77' in r(ROOT, 'params.yaml', 'other') and r(ROOT, 'data/LICENSE', 'other')" """, folder)
    shell("echo >> ../a && git -C .. add a && git commit -qm b && echo >> ../a", folder)
    code = "from forge_nb.core.project import ROOT, run_git; assert run_git(ROOT, 'show', 'HEAD:./dvc.lock').startswith('schema') and not run_git(ROOT, 'status', '--porcelain', '-uno', '--', '.')"
    shell(f'python -c "{code}"', folder)


@pytest.mark.slow
@pytest.mark.parametrize("remedy", REMEDIES)
def test_pipeline_without_git(unpacked, tmp_path, remedy):
    folder = tmp_path/"forge"
    shutil.copytree(unpacked, folder)
    shell(f"{REMEDIES[remedy]} && python -m forge_nb.data.default_company && python -m forge_nb.core.runner profile tiny && dvc repro ngram", folder)
    assert (folder/"reports"/"ngram.ipynb").exists()
    if remedy == "no_scm": assert "Only supported for Git repositories" in shell("dvc exp run", folder, 255)


@pytest.mark.slow
def test_real_environment_moved_to_blanks_and_umlauts(unpacked, tmp_path):
    folder = tmp_path/"forge"
    shutil.copytree(unpacked, folder)
    shell("git init -q && make setup && test -x .venv/bin/dvc", folder, PYTHON=sys._base_executable)
    folder = folder.rename(tmp_path/NAMES[0])
    said = shell("make data && . .venv/bin/activate && python -m forge_nb.core.runner profile tiny && dvc repro assess && forge whereis docs/releases/1.0.txt", folder, PYTHON=sys._base_executable)
    assert "set up in another folder" in said and (folder/"reports"/"assess.ipynb").exists()
    assert f"exec' \"{folder}" in (folder/".venv"/"bin"/"dvc").read_text(encoding="utf-8") and str(folder) in shell(
        "cd / && forge_nb=$(\"$OLDPWD/.venv/bin/python\" -c 'import forge_nb; print(forge_nb.__file__)') && echo $forge_nb", folder)


@pytest.mark.parametrize("setting", ["core.autocrlf=true", "core.eol=crlf"])
def test_line_endings(bare, tmp_path, setting):
    shell(f"git -c {setting} clone -q -c {setting} '{bare.root}' clone", tmp_path)
    names = shell("git ls-files -z", bare.root).strip("\0").split("\0")
    hashes = lambda root: {n: hashlib.sha256((root/n).read_bytes()).hexdigest() for n in names}
    assert len(names) > 200 and hashes(tmp_path/"clone") == hashes(bare.root)
    assert not shell("git status --porcelain", tmp_path/"clone")
    endings = shell("git ls-files --eol", bare.root)
    assert not re.findall("i/crlf|i/mixed|w/crlf|w/mixed", endings)


def cells(folder: Path) -> list: return json.loads((folder/"nbs"/"a.ipynb").read_text(encoding="utf-8"))["cells"]


def write(folder: Path, found: list):
    nb = dict(cells=found, metadata={}, nbformat=4, nbformat_minor=5)
    (folder/"nbs").mkdir(exist_ok=True)
    (folder/"nbs"/"a.ipynb").write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def cell(name: str, *lines: str) -> dict: return dict(cell_type="code", execution_count=None, id=name, metadata={}, outputs=[], source="\n".join(lines).splitlines(keepends=True))


BEGIN = [cell(f"cell-{n}", *(f"x{n}{m} = {n * 7 + m}  # the value of line {m} in cell {n}" for m in range(6))) for n in range(5)]


@pytest.fixture
def repository(tmp_path) -> Path:
    "A repository with one notebook, told of the drivers, without an environment"
    folder = project(tmp_path/"Meine Modelle ü")
    write(folder, BEGIN)
    shell("git init -q -b main && bash .githooks/setup && git add -A && git commit -qm begin --no-verify", folder)
    return folder


def branches(folder: Path, ours: list, theirs: list) -> tuple:
    "Merge two versions of the notebook: exit code, text, cells where it still is a notebook"
    for name, found in (("theirs", theirs), ("ours", ours)):
        shell(f"git checkout -q main && git checkout -qB {name}", folder)
        write(folder, found)
        shell(f"git commit -qam {name} --no-verify --allow-empty", folder)
    done = subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "merge", "-q", "--no-edit", "theirs"], cwd=folder, env=ENV, capture_output=True, text=True, encoding="utf-8")
    text = (folder/"nbs"/"a.ipynb").read_text(encoding="utf-8")
    assert "fatal" not in done.stderr and (done.returncode == 0) == (not shell("git ls-files -u", folder))
    try: found = json.loads(text)["cells"]
    except ValueError: found = None
    if found: assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + "\n", "a merged notebook is as nbdev-clean writes it"
    if done.returncode: shell("git merge --abort", folder)
    return done.returncode, text, found


def changed(n: int, line: int, text: str) -> list:
    "The notebook with one line of one cell changed"
    found = json.loads(json.dumps(BEGIN))
    found[n]["source"][line] = text + ("\n" if line < 5 else "")
    return found


def with_nbdime(folder: Path) -> Path:
    "The same, with the environment of these tests"
    (folder/".venv").symlink_to(ENVIRONMENT)
    shell(".venv/bin/python -IX utf8 -c 'import nbdime'", folder)
    return folder


def test_merge_with_nbdime(repository):
    with_nbdime(repository)
    rc, _, found = branches(repository, changed(1, 0, "OURS"), changed(1, 5, "THEIRS"))
    assert rc == 0 and (found[1]["source"][0], found[1]["source"][5]) == ("OURS\n", "THEIRS")
    rc, _, found = branches(repository, changed(1, 5, "OURS"), changed(2, 0, "THEIRS"))
    assert rc == 0 and (found[1]["source"][5], found[2]["source"][0]) == ("OURS", "THEIRS\n"), "neighbours"
    rc, text, found = branches(repository, changed(1, 2, "OURS"), changed(1, 2, "THEIRS"))
    assert rc and [s.strip() for s in found[1]["source"][2:7]] == ["<<<<<<< local", "OURS", "=======", "THEIRS", ">>>>>>> remote"]
    rc, text, found = branches(repository, BEGIN[:1] + BEGIN[2:], changed(1, 2, "THEIRS"))
    assert rc and "THEIRS" in text and found, "deleted here, edited there"


def test_merge_where_nbdime_fails(repository):
    "nbdime 4.0.4 cannot write two cells that were inserted in one place; git's own merge takes over, with both"
    with_nbdime(repository)
    rc, text, _ = branches(repository, [*BEGIN[:2], cell("ours", "OURS"), *BEGIN[2:]], [*BEGIN[:2], cell("theirs", "THEIRS"), *BEGIN[2:]])
    assert rc and "OURS" in text and "THEIRS" in text and "<<<<<<< ours" in text
    assert rc and "manually" in shell("git merge -q theirs; nbdev-fix nbs/a.ipynb", repository, 1), "the way out that CONTRIBUTING names"
    assert ["".join(c["source"]) for c in cells(repository)[2:7]] == ["`<<<<<<< ours`", "OURS", "`=======`", "THEIRS", "`>>>>>>> theirs`"]


def test_merge_without_nbdime(repository):
    rc, text, found = branches(repository, changed(1, 0, "OURS"), changed(3, 5, "THEIRS"))
    assert rc == 0 and (found[1]["source"][0], found[3]["source"][5]) == ("OURS\n", "THEIRS")
    rc, text, found = branches(repository, changed(1, 2, "OURS"), changed(1, 2, "THEIRS"))
    assert rc and not found and text.index("<<<<<<< ours") < text.index("OURS") < text.index("=======") < text.index("THEIRS") < text.index(">>>>>>> theirs")


def test_drivers_without_an_environment(repository):
    write(repository, changed(1, 2, "OURS"))
    show = "git --no-pager diff"
    assert '+    "OURS\\n",' in shell(show, repository)
    assert "HANDED" in shell("git difftool -y -x 'echo HANDED'", repository), "a tool that the user names goes before the driver"
    (repository/".venv"/"bin").mkdir(parents=True); (repository/".venv"/"bin"/"python").symlink_to("/nowhere/python")
    assert '+    "OURS\\n",' in shell(show, repository), "the Python of the environment is gone"
    shell("git worktree add -q ../tree && git checkout -q . && git rm -q nbs/a.ipynb", repository)
    assert '-   "id": "cell-1"' in shell(f"{show} --cached", repository), "a notebook deleted"
    shell("git reset -q --hard", repository)
    tree = repository.parent/"tree"
    write(tree, changed(1, 2, "TREE")); (tree/"nbs"/"b.ipynb").write_text("no notebook", encoding="utf-8")
    assert '+    "TREE\\n",' in shell(f"cd nbs && git add -A && {show} HEAD", tree) and "+no notebook" in shell(f"{show} HEAD", tree)
    shell("git commit -qam tree --no-verify && git rm -rq .githooks .gitattributes && git commit -qm before", tree)
    (tree/".git-attributes").write_text("*.ipynb diff=jupyternotebook merge=jupyternotebook\n", encoding="utf-8")
    write(tree, changed(1, 2, "LATER"))
    assert '+    "LATER\\n",' in shell(f"git config core.attributesFile \"$PWD/.git-attributes\" && {show}", tree), "a commit without the script"
    shell("git clone -q . ../clone && cd ../clone && git --no-pager log -p --ext-diff -1", repository)


def test_diff_with_nbdime(repository):
    with_nbdime(repository)
    write(repository, changed(1, 2, "OURS"))
    said = shell("git --no-pager diff", repository)
    assert "## modified /cells/1/source" in said and "+OURS" in said and "\x1b" not in said
    (repository/"nbs"/"a.ipynb").write_text("<<<<<<< no notebook", encoding="utf-8")
    assert "+<<<<<<< no notebook" in shell("git --no-pager diff", repository), "what nbdime cannot read is compared as text"
    assert shell("git --no-pager diff --exit-code", repository, 1) and shell("git --no-pager diff --no-ext-diff --stat", repository)


@pytest.mark.slow
def test_no_merge_loses_a_side(repository):
    "Random edits of two sides: every word that one wrote is there, or git says conflict; and every word that both kept is there"
    with_nbdime(repository)
    for seed in range(12):
        rng, sides = random.Random(seed), []
        for side in "OURS", "THEIRS":
            found = json.loads(json.dumps(BEGIN))
            for n in range(rng.randint(1, 3)):
                word, at = f"{side}_{seed}_{n}", rng.randrange(len(found))
                how = rng.choice(["edit", "edit", "insert", "delete", "move"])
                line = rng.randrange(6)
                if how == "edit" and len(found[at]["source"]) == 6: found[at]["source"][line] = word + ("\n" if line < 5 else "")
                elif how == "delete": found.pop(at)
                elif how == "move": found.insert(rng.randrange(len(found)), found.pop(at))
                else: found.insert(at, cell(word.lower().replace("_", "-"), word))
            sides.append(found)
        rc, text, found = branches(repository, *sides)
        kept = [set(re.findall(r"(?:OURS|THEIRS)_\d+_\d", json.dumps(s))) for s in sides]
        both = set.intersection(*(set(re.findall(r"x\d\d = \d+", json.dumps(s))) for s in sides))
        missing = {w for w in kept[0] | kept[1] | both if w not in text}
        assert not missing and (found or rc), f"seed {seed}: exit code {rc}, lost {missing}"
