"Bad input: one clear sentence with file, field and remedy, a non-zero exit, and earlier results left alone"
import pytest
from copies import ROOT, Copy, fails_with

from forge_nb.core.project import load_params


EPOCHS = f"  num_train_epochs: {load_params(ROOT/'params.yaml')['sft']['num_train_epochs']}"  # sft is the first stage that has them


@pytest.mark.parametrize("old, new, words", [
    (EPOCHS, "  num_train_epoch: 1.5", ["params.yaml", "`sft.num_train_epoch`", "did you mean `num_train_epochs`"]),
    (EPOCHS, "  #", ["params.yaml", "`sft.num_train_epochs`", "is missing", "float"]),
    (EPOCHS, "  num_train_epochs: many", ["params.yaml", "`sft.num_train_epochs`", "type float"]),
    (EPOCHS, "  num_train_epochs: true", ["params.yaml", "`sft.num_train_epochs`", "type float"]),
    ("sft:\n", "stf:\n", ["params.yaml", "`stf`", "stages are"]),
    ("  threads: 2 ", "  treads: 2 ", ["params.yaml", "`shared.treads`"]),
    ("  threads: 2 ", "  #", ["params.yaml", "`shared.threads`", "missing"]),
    ("sft:\n", "sft: 3\nrest:\n", ["params.yaml", "`sft`"]),
    ("sft:\n", "sft: [\n", ["params.yaml, line"])])
def test_parameters(mend, old, new, words):
    text = (mend.root/"params.yaml").read_text(encoding="utf-8")
    assert old in text
    (mend.root/"params.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    fails_with(mend, "python -m forge_nb.core.tangle; exit $?", *words)
    mend("python -m forge_nb.core.tangle", rc=2)


def test_altered_missing_and_new_data_stop_the_pipeline_and_leave_results(mend):
    mend("dvc repro ingest")
    before = (mend.root/"artifacts/ingest/metrics.json").read_bytes()
    page = mend.root/"data/docs/index.txt"
    text = page.read_text(encoding="utf-8")
    page.write_text(text + "an afterthought\n", encoding="utf-8")
    fails_with(mend, "dvc repro", "data/docs/index.txt was altered", "git checkout data.dvc && dvc checkout --force data.dvc", "make adopt")
    page.unlink()
    fails_with(mend, "dvc repro", "data/docs/index.txt is missing", "dvc checkout")
    page.write_text("again something else\n", encoding="utf-8")
    (mend.root/"data/docs/a new page.txt").write_text("new", encoding="utf-8")
    fails_with(mend, "dvc repro", "data/docs/a new page.txt is new", "make adopt")
    mend("git checkout data.dvc && dvc checkout --force data.dvc")  # the remedy that the message names
    assert page.read_text(encoding="utf-8") == text and not (mend.root/"data/docs/a new page.txt").exists()
    assert (mend.root/"artifacts/ingest/metrics.json").read_bytes() == before
    assert "Stage 'ingest' didn't change" in mend("dvc repro ingest")
    mend("git checkout -q data.dvc")


def test_missing_data_is_made_again_byte_for_byte(tmp_path, request):
    copy = Copy(tmp_path)
    copy("rm -rf data .dvc/cache")
    assert "missing data 'source': data" in copy("dvc repro", rc=None)
    copy(f"mkdir -p .cache && cp {request.config.rootpath}/.cache/*.tar.gz .cache/ && python -m forge_nb.data.default_company")
    copy("git diff --exit-code data.dvc && dvc status --quiet data.dvc")


def test_wrong_archive(mend):
    mend("rm -rf data && mkdir -p .cache && echo rubbish > .cache/django-5.2.8.tar.gz")
    fails_with(mend, "python -m forge_nb.data.default_company", "django-5.2.8.tar.gz", "sha256", "make data")
    mend("rm .cache/django-5.2.8.tar.gz")


def test_your_own_folder(mend, tmp_path):
    fails_with(mend, f"python -m forge_nb.data.own_data {tmp_path}/nowhere", "no such folder")
    fails_with(mend, f"python -m forge_nb.data.own_data {tmp_path}", "holds no file")
    (tmp_path/"docs").mkdir()
    for n in range(60): (tmp_path/"docs"/f"page {n} é.md").write_text(f"# Machine {n}\n\nMachine {n} is serviced every {n % 7 + 1} weeks by team {n % 5}.\n", encoding="utf-8")
    (tmp_path/"docs"/"scan.md").write_bytes(bytes(range(256)) * 8)
    (tmp_path/"docs"/"node_modules").mkdir()
    (tmp_path/"docs"/"node_modules"/"readme.md").write_text("# Not ours\n", encoding="utf-8")
    (tmp_path/"docs"/"quiz.csv").write_text("question,A,B,answer\nHow often is machine 3 serviced?,weekly,never,A\n", encoding="utf-8")
    said = mend(f"FROM={tmp_path} make -s -o setup data")
    for words in ("docs/node_modules/", "taken for evaluation sets, which are never trained on: docs/quiz.csv", "company/eval_sets/from_data/",
                  "the data before are in .cache/data_before", "documents", "no row of settings.csv is in data/facts"): assert words in said, words
    assert (mend.root/"company"/"eval_sets"/"from_data"/"docs"/"quiz.csv").exists() and not (mend.root/"data"/"docs"/"quiz.csv").exists()
    assert (mend.root/".cache"/"data_before"/"docs"/"faq"/"admin.txt").exists(), "there is no way back"
    params = mend.root/"params.yaml"
    was = params.read_text(encoding="utf-8")
    params.write_text(was.replace("stop_when_skipped: false", "stop_when_skipped: true"), encoding="utf-8")
    fails_with(mend, "dvc repro curate", "data/ is not ready", "megabytes of text", "section `assess`")
    params.write_text(was, encoding="utf-8")
    mend("dvc repro assess")
    mine = mend.root/"data/docs/page 1 é.md"
    mine.write_text("# Machine 1\n\nMended by hand, and not to be lost.\n", encoding="utf-8")
    fails_with(mend, "python -m forge_nb.data.default_company", "data/docs/page 1 é.md was altered", "make adopt")
    assert "Mended by hand" in mine.read_text(encoding="utf-8")
    mend("python -m forge_nb.core.runner adopt && dvc add -q data && dvc repro ingest")
    mend("rm -rf data")
    fails_with(mend, "python -m forge_nb.data.default_company", "data.dvc records data of yours")
    mend("dvc checkout -q data.dvc")
    assert "Mended by hand" in mine.read_text(encoding="utf-8")
    rejected = (mend.root/"artifacts/ingest/rejects.jsonl").read_text(encoding="utf-8")
    assert '"docs/scan.md"' in rejected and rejected.count("\n") == 1
    mend("dvc repro synth")  # the default company's questions are about tables that are not here
    unused = (mend.root/"artifacts/synth/unused_facts.jsonl").read_text(encoding="utf-8")
    assert '"kind": "setting_default", "reason": "no settings.csv in data/facts"' in unused
    mend("git checkout -q . && dvc checkout -q --force data.dvc")


def test_unknown_names(mend):
    fails_with(mend, "python -m forge_nb.core.runner nosuch", "there is no stage `nosuch`")
    fails_with(mend, "python -m forge_nb.core.runner profile nosuch", "there is no profile `nosuch`", "tiny")
    (mend.root/"config/profiles/bad.yaml").write_text("sft: {epoch: 1}\n", encoding="utf-8")
    fails_with(mend, "python -m forge_nb.core.runner profile bad", "config/profiles/bad.yaml", "sft.epoch")


def test_nothing_calls_out():
    import forge_nb.core.project as project
    env = project.make_environment(1)
    assert env["HF_HUB_OFFLINE"] == env["HF_DATASETS_OFFLINE"] == env["DO_NOT_TRACK"] == "1"
    config = (project.ROOT/".dvc/config").read_text(encoding="utf-8")
    assert "analytics = false" in config and "check_update = false" in config


def test_a_crash_names_the_cell_and_keeps_the_partial_report(mend):
    book = mend.root/"nbs/15_curate.ipynb"
    book.write_text(book.read_text(encoding="utf-8").replace('plot_outcomes(Path(\\"artifacts/curate/outcomes.csv\\"))', 'plot_outcomes(Path(\\"artifacts/curate/nosuch.csv\\"))'), encoding="utf-8")
    said = mend("dvc repro curate", rc=None)
    assert "stage curate failed in cell" in said and "plot_outcomes(Path" in said and "FileNotFoundError" in said and "reports/curate.failed.ipynb" in said
    assert "FileNotFoundError" in (mend.root/"reports/curate.failed.ipynb").read_text(encoding="utf-8")
