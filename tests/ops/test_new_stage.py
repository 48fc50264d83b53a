"`make new`: what it writes runs and passes the tests of the repository at once; what it refuses leaves nothing behind"
import json

import pytest
from copies import ROOT, fails_with, sibling

from forge_nb.core.project import load_params
from forge_nb.ops.new_stage import STAGE_SECTION, insert_block

TESTS = "tests/test_breadth.py tests/test_consistency.py tests/test_measures.py"
PYTEST = "python -m pytest -q -p no:cacheprovider"


@pytest.fixture(scope="module")
def made(chain, tmp_path_factory):
    "A finished project with a new stage that has run; then its parameters are those of the repository again, as its tests want them"
    copy = sibling(chain, tmp_path_factory.mktemp("new")/"project")
    copy.said = copy("make --silent -o setup new STAGE=breadth && git add -A")
    copy.ran = copy("dvc repro breadth")
    copy.again = copy("dvc repro breadth")
    shipped = (ROOT/"params.yaml").read_text(encoding="utf-8")
    (copy.root/"params.yaml").write_text(insert_block(shipped, "curate", STAGE_SECTION.format(name="breadth")), encoding="utf-8")
    (copy.root/"studies/params.yaml").write_bytes((ROOT/"studies/params.yaml").read_bytes())
    return copy


def test_a_new_stage_runs_at_once(made):
    assert "nbs/16_breadth.ipynb" in made.said and "Running stage 'breadth'" in made.ran
    metrics = json.loads((made.root/"artifacts/breadth/metrics.json").read_text(encoding="utf-8"))
    assert metrics["documents"] > 1 and metrics["characters"] > 200 * metrics["documents"]
    assert {*made.executed(made.ran)} <= {"tangle", "breadth"} and made.executed(made.again) == []
    assert "reports" not in made("git status --porcelain --untracked-files=all"), "git would keep a report"


def test_it_has_its_place_in_the_order(made):
    for path, found in (("dvc.yaml", load_params(made.root/"dvc.yaml")["stages"]), ("params.yaml", load_params(made.root/"params.yaml"))):
        assert list(found)[list(found).index("curate") + 1] == "breadth", path


def test_a_new_stage_passes_its_own_tests_and_those_of_its_page(made):
    "The tests of the repository that look at a page, and all that it could have broken for others"
    names = "breadth or export or clean or agree or definition or place or tidy or cache or few or index"
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
