"A file as it stood when the model was trained, told from git's history alone"
import subprocess

import pytest

from forge_nb.core.frozen import describe_change_since_training, find_training_commit, read_file_at_training, read_model_hash
from forge_nb.core.project import Invalid, NotFound

OUTS = "    outs:\n" + "    - path: artifacts/{stage}/model\n      hash: md5\n      md5: {digest}.dir\n"


class History:
    "A made repository; each commit has a dvc.lock that names models, and a rules.yaml"
    def __init__(self, top, folder=""):
        self.top, self.root = top, top/folder
        self.root.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *words], cwd=self.top, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, rules=None, **models):
        stages = "".join(f"  {stage}:\n    cmd: a\n" + OUTS.format(stage=stage, digest=digest) for stage, digest in models.items())
        if models: (self.root/"dvc.lock").write_text(f"schema: '2.0'\nstages:\n{stages}", encoding="utf-8")
        if rules is not None: (self.root/"rules.yaml").write_text(rules, encoding="utf-8")

    def commit(self, rules=None, **models):
        self.write(rules, **models)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "state")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def history(tmp_path): return History(tmp_path/"project")


def test_the_first_commit_that_names_the_model_counts(history):
    first = history.commit("a: 1\n", rl="a1")
    history.commit("a: 2\n", rl="a1")
    history.commit("a: 3\n", rl="b2")
    history.commit("a: 4\n", rl="a1")  # an experiment was taken back; the model is the one of the first commit
    assert find_training_commit(history.root) == first and read_file_at_training(history.root, "rules.yaml") == "a: 1"
    assert describe_change_since_training(history.root, "rules.yaml").startswith(f"rules.yaml was changed after the model was trained (commit {first[:12]})")


def test_the_hash_must_stand_at_the_model_s_own_folder(history):
    history.commit("a: 1\n", dpo="a1", rl="b2")  # dpo's model, which rl passes on from the second commit
    passed_on = history.commit("a: 2\n", dpo="a1", rl="a1")
    assert find_training_commit(history.root) == passed_on and find_training_commit(history.root, "artifacts/dpo/model") != passed_on


def test_a_model_from_a_branch_was_trained_there(history):
    history.commit("a: 1\n", rl="a1")
    history.git("checkout", "-q", "-b", "other")
    trained = history.commit("a: 2\n", rl="b2")
    history.git("checkout", "-q", "main")
    history.commit("a: 1\n")
    history.git("merge", "-q", "-X", "theirs", "--no-ff", "-m", "merge", "other")
    assert find_training_commit(history.root) == trained and not describe_change_since_training(history.root, "rules.yaml")


def test_a_model_that_no_commit_names_has_what_stands_there(history):
    history.commit("a: 1\n", rl="a1")
    history.write("a: 2\n", rl="b2")
    assert find_training_commit(history.root) == "" and read_file_at_training(history.root, "rules.yaml") == "a: 2"


def test_a_project_inside_a_repository(tmp_path):
    history = History(tmp_path/"work", "models/ours")
    first = history.commit("a: 1\n", rl="a1")
    history.commit("a: 2\n", rl="a1")
    assert find_training_commit(history.root) == first and read_file_at_training(history.root, "rules.yaml") == "a: 1"


def test_line_ends_are_no_change(history):
    history.commit("a: 1\nb: 2\n", rl="a1")
    (history.root/"rules.yaml").write_bytes(b"a: 1\r\nb: 2\r\n")
    assert not describe_change_since_training(history.root, "rules.yaml")


def test_a_removed_and_a_new_file(history):
    history.commit("a: 1\n", rl="a1")
    (history.root/"rules.yaml").unlink()
    (history.root/"late.yaml").write_text("a: 1\n", encoding="utf-8")
    assert "rules.yaml was removed after" in describe_change_since_training(history.root, "rules.yaml")
    assert "late.yaml came after" in describe_change_since_training(history.root, "late.yaml")


def test_without_a_whole_history_it_is_one_sentence(history, tmp_path):
    for number in range(3): history.commit(f"a: {number}\n", rl="a1")
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{history.top}", str(tmp_path/"shallow")], check=True)
    bare = tmp_path/"none"
    bare.mkdir()
    (bare/"dvc.lock").write_text((history.root/"dvc.lock").read_text(encoding="utf-8"), encoding="utf-8")
    for folder, words in ((tmp_path/"shallow", "git fetch --unshallow"), (bare, "git init")):
        with pytest.raises(Invalid, match=words) as error: read_file_at_training(folder, "rules.yaml")
        assert "\n" not in str(error.value)


def test_without_a_model_it_is_one_sentence(history):
    history.commit("a: 1\n", dpo="a1")
    with pytest.raises(NotFound, match="dvc.lock names no artifacts/rl/model"): read_model_hash(history.root)
