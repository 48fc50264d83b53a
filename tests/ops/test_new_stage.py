"`make new`: what it writes runs and passes the tests of the repository at once; what it refuses leaves nothing behind"
import json, random, shutil

import pytest
from copies import COMMIT, fails_with, sibling

from forge_nb.core.project import load_params

TESTS = "tests/test_breadth.py tests/test_consistency.py tests/test_measures.py"
PARTS = "pump valve filter gauge seal bearing shaft motor coupling flange gasket housing rotor sensor cable relay fuse panel".split()
PYTEST = "python -m pytest -q -p no:cacheprovider"


@pytest.fixture(scope="module")
def made(bare, tmp_path_factory):
    "A project of sixty short documents, in which a new stage has run"
    copy = sibling(bare, tmp_path_factory.mktemp("new")/"project")
    shutil.rmtree(copy.root/"data")
    draw = random.Random(3)
    for n in range(60):
        page = copy.root/"data"/"docs"/f"page {n}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"The {draw.choice(PARTS)} {draw.randrange(99)} is checked every {draw.randrange(2, 9)} weeks by team {draw.randrange(9)}." for _ in range(2 + n % 2 * 10)]
        page.write_text(f"# {draw.choice(PARTS).title()} {n}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    copy(f"python -m forge_nb.core.runner adopt && dvc add -q data && git add -A && {COMMIT} -m small")
    copy.said = copy("make --silent -o setup new STAGE=breadth && git add -A")
    copy.ran = copy("dvc repro breadth")
    return copy


def test_a_new_stage_runs_at_once(made):
    assert "nbs/16_breadth.ipynb" in made.said and "Running stage 'breadth'" in made.ran
    metrics = json.loads((made.root/"artifacts/breadth/metrics.json").read_text(encoding="utf-8"))
    assert 0 < metrics["documents"] < 60 and metrics["characters"] > 200 * metrics["documents"], "documents under 200 characters are not counted"
    assert made.executed(made("dvc repro breadth")) == []
    assert "reports" not in made("git status --porcelain --untracked-files=all"), "git would keep a report"


def test_it_has_its_place_in_the_order(made):
    for path, found in (("dvc.yaml", load_params(made.root/"dvc.yaml")["stages"]), ("params.yaml", load_params(made.root/"params.yaml"))):
        assert list(found)[list(found).index("curate") + 1] == "breadth", path
    assert "16_breadth.ipynb" not in made("git diff --name-only HEAD -- nbs/index.ipynb"), "the tour reads the stages from dvc.yaml"


def test_a_new_stage_passes_its_own_tests_and_those_of_its_page(made):
    "The tests of the repository that look at a page, and all that it could have broken for others"
    names = "breadth or export or clean or agree or definition or place or tidy or cache or few"
    said = made(f'{PYTEST} {TESTS} -k "{names}"')
    assert " passed" in said and "failed" not in said


@pytest.mark.slow
def test_a_new_stage_passes_every_test_of_the_repository_about_pages(made):
    "Proves: a stage that `make new` wrote passes every test of consistency and of measures as it is"
    said = made(f"{PYTEST} {TESTS}")
    assert " passed" in said and "failed" not in said


def test_a_second_one_of_the_name_is_refused(made):
    before = made("git status --porcelain && git diff | sha256sum")
    fails_with(made, "make --silent -o setup new STAGE=breadth", "STAGE=breadth: a stage has it")
    assert made("git status --porcelain && git diff | sha256sum") == before


@pytest.mark.parametrize("name, words", [
    ("sft", "a stage has it"), ("dedup", "nbs/data/85_dedup.ipynb has it"), ("'two words'", "lower-case letters"), ("Prices", "lower-case letters"),
    ("../x", "lower-case letters"), ("class", "lower-case letters"), ("", "make new STAGE=name"), ("read_template", "defines read_template")])
def test_a_name_that_will_not_do_is_refused_and_nothing_is_touched(mend, name, words):
    before = mend("git status --porcelain && git diff | sha256sum")
    fails_with(mend, f"make --silent -o setup new STAGE={name}", words)
    assert mend("git status --porcelain && git diff | sha256sum") == before
