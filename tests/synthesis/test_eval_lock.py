"An exam that is not the frozen one stops the stage, until somebody gives a reason; what was frozen after training is known"
import json, subprocess

import pytest

from forge_nb.core.project import Invalid, NotFound, read_json, write_jsonl
from forge_nb.freeze import freeze
from forge_nb.ops.exam_verbs import EXAM_FOLDER, freeze_anew, review
from forge_nb.synthesis.eval_lock import (GRADED_BY, JUDGED_BY, LOCK_NAME, describe_frozen_after, frozen_after_training, give_reason, hash_id, keep_frozen_items,
                                          read_lock)
from forge_nb.synthesis import eval_lock

OUTS = "    outs:\n    - path: artifacts/rl/model\n      hash: md5\n      md5: {}.dir\n"


class Project:
    "A project with an exam of six items, the files that judge it, and git"
    def __init__(self, root):
        self.root = root
        self.items = [dict(id=f"{part}:{n}", part=part, question=f"Oil {part} {n}?", answer=str(n), in_sample=True, passages=[]) for part in ("fact", "own_exam") for n in range(3)]
        for name in GRADED_BY + JUDGED_BY: self.write(name, "a = 1\n")
        self.write(f"{EXAM_FOLDER}/facts_plain.yaml", "task: facts_plain\n")
        self.git("init", "-q")

    def write(self, name, text):
        (self.root/name).parent.mkdir(parents=True, exist_ok=True)
        (self.root/name).write_text(text, encoding="utf-8")

    def git(self, *words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *words], cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, model=None):
        if model: self.write("dvc.lock", "schema: '2.0'\nstages:\n  rl:\n    cmd: a\n" + OUTS.format(model))
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "state")

    def run(self, enforce=True):
        write_jsonl(self.root/EXAM_FOLDER/"items.jsonl", self.items)
        return freeze(self.root, self.root/EXAM_FOLDER, self.root/LOCK_NAME, enforce=enforce, out=self.root/"out")

    def lock(self): return (self.root/LOCK_NAME).read_bytes()


@pytest.fixture
def project(tmp_path): return Project(tmp_path)


EDITS = {
    "a question": (lambda p: p.items[0].update(question="Which?"), "1 item changed (fact:0)"),
    "an answer": (lambda p: p.items[4].update(answer="9"), "1 item changed (own_exam:1)"),
    "choices": (lambda p: p.items[1].update(choices=["1", "2"], gold=0), "1 item changed (fact:1)"),
    "a new item": (lambda p: p.items.append(dict(id="fact:9", part="fact", question="Which?", answer="1")), "1 item added (fact:9)"),
    "an item gone": (lambda p: p.items.pop(), "1 item removed"),
    "the rules": (lambda p: p.write("company/rules.yaml", "a = 2\n"), "company/rules.yaml changed"),
    "a grader": (lambda p: p.write("forge_nb/metrics/graders.py", "a = 2\n"), "forge_nb/metrics/graders.py changed"),
    "the company's number": (lambda p: p.write("company/kpi.py", "a = 2\n"), "company/kpi.py changed"),
    "a task": (lambda p: p.write(f"{EXAM_FOLDER}/facts_plain.yaml", "task: other\n"), "facts_plain.yaml changed"),
    "a new task": (lambda p: p.write(f"{EXAM_FOLDER}/more.yaml", "task: more\n"), "more.yaml changed"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_stops_and_a_reason_lets_it_pass(project, edit):
    change, words = EDITS[edit]
    project.run()
    before = project.lock()
    change(project)
    with pytest.raises(Invalid) as error: project.run()
    assert words in str(error.value) and "forge freeze --because" in str(error.value) and "\n" not in str(error.value), error.value
    assert project.lock() == before
    assert freeze_anew(project.root, "a test wants it").because == "a test wants it"
    assert project.run()["frozen"] and [entry["because"] for entry in read_lock(project.root/LOCK_NAME)["history"]] == ["first run", "a test wants it"]


def test_another_version_of_the_harness_stops_too(project, monkeypatch):
    project.run()
    monkeypatch.setattr(eval_lock, "version", lambda name: "9.9")
    with pytest.raises(Invalid, match="lm-eval changed"): project.run()


def test_passages_and_comments_are_free_and_a_second_run_writes_nothing(project):
    metrics, before = project.run(), project.lock()
    for item in project.items: item.update(passages=[dict(id="a")], prompt="a", sources=["a"], in_sample=False)
    project.write("forge_nb/metrics/graders.py", "# %% other cell\na = 1\n")
    assert (project.run(), project.lock()) == (metrics, before)


def test_the_lock_holds_no_text(project):
    project.items[0].update(id="fact:Kim Doe", question="What does Kim Doe earn?")
    project.run()
    assert b"Kim" not in project.lock() and hash_id("fact:Kim Doe").encode() in project.lock()


def test_another_company_freezes_by_itself_and_an_own_exam_alone_does_not(project):
    project.run()
    for n in range(3): project.items[n].update(id=f"fact:other {n}")
    assert project.run()["because"].startswith("another exam")
    for n in range(3, 6): project.items[n].update(id=f"own_exam:other {n}")
    with pytest.raises(Invalid, match="3 items added .*3 items removed"): project.run()
    project.items = [dict(id="own_exam:0", part="own_exam", question="Which?", answer="1")]  # a company with questions of its own alone
    assert project.run()["because"].startswith("another exam")
    project.items[0].update(id="own_exam:1")
    with pytest.raises(Invalid, match="1 item added"): project.run()


def test_a_profile_that_tests_the_machinery_freezes_nothing(project):
    assert not project.run(enforce=False)["frozen"] and project.lock() == b"{}\n"
    assert project.run()["because"] == "first run"
    before = project.lock()
    project.items.pop()
    assert not project.run(enforce=False)["frozen"] and project.lock() == before


def test_forget_hands_its_reason_over(project):
    project.run()
    project.items.pop()
    with give_reason("documents or rows were forgotten"): project.run()
    assert read_lock(project.root/LOCK_NAME)["history"][-1] | dict(date="") == dict(date="", because="documents or rows were forgotten", items=5, added=0, removed=1, changed=0, files=[])


@pytest.mark.parametrize("text, words", [("<<<<<<< HEAD\n{}\n=======\n", "line 1: conflict marks"), ("{", "not JSON"), ('{"exam": 1}', "it should hold"), ("[]", "it should hold")])
def test_a_broken_lock_is_one_sentence(project, text, words):
    project.write(LOCK_NAME, text)
    with pytest.raises(Invalid, match=words) as error: project.run()
    assert "git checkout -- eval_set.lock" in str(error.value) and "\n" not in str(error.value)


def test_what_was_frozen_after_training_is_known(project):
    project.run()
    project.commit(model="a1")
    assert describe_frozen_after(frozen_after_training(project.root)).startswith("The exam is the one that stood when")
    project.items[0].update(answer="9")
    project.write("company/rules.yaml", "a = 2\n")
    write_jsonl(project.root/EXAM_FOLDER/"items.jsonl", project.items)
    freeze_anew(project.root, "zero is no oil")
    project.commit()
    found = frozen_after_training(project.root)
    assert {name: found[name] for name in ("frozen", "added", "removed", "changed", "files", "because")} == dict(
        frozen=True, added=0, removed=0, changed=1, files=["company/rules.yaml"], because=["zero is no oil"])
    text = project.git("show", "HEAD~1:eval_set.lock")
    assert {item["id"] for item in keep_frozen_items(project.items, json.loads(text))} == {item["id"] for item in project.items[1:]}
    project.commit(model="b2")  # trained anew under the new exam
    assert not frozen_after_training(project.root)["files"]


def test_an_exam_that_came_after_the_model(project):
    project.commit(model="a1")
    project.run()
    assert describe_frozen_after(frozen_after_training(project.root)).startswith("Nothing was frozen when the model was trained")


def test_a_shallow_clone_and_no_lock_are_one_sentence(project, tmp_path_factory):
    project.run()
    project.commit(model="a1")
    project.commit()
    clone = tmp_path_factory.mktemp("clone")/"shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{project.root}", str(clone)], check=True)
    with pytest.raises(Invalid, match="git fetch --unshallow"): frozen_after_training(clone)
    (project.root/LOCK_NAME).unlink()
    with pytest.raises(Invalid, match="eval_set.lock is missing; `dvc repro freeze` writes it"): frozen_after_training(project.root)


def test_nothing_to_freeze_no_reason_and_no_exam_are_one_sentence(project):
    with pytest.raises(NotFound, match="there is no exam yet"): freeze_anew(project.root, "why not")
    with pytest.raises(NotFound, match="there is no exam yet"): review(project.root, 3)
    project.run()
    with pytest.raises(NotFound, match="this exam is frozen already"): freeze_anew(project.root, "why not")
    with pytest.raises(Invalid, match="say why"): freeze_anew(project.root, "")
    assert read_json(project.root/"out"/"metrics.json")["freezes"] == 1
