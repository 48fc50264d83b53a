"""Releases of a small project with real git, DVC, weights and index: promoted, served, tampered with, cut off at every step, rolled back,
moved to another clone, revoked. Its stages copy what lies in made/, so a new model is another folder there."""
import fcntl, json, os, re, shutil, signal, subprocess, sys
from pathlib import Path

import pytest
import torch

import copies
from copies import ENV, FORGE, Copy, ask, refuse
from forge_nb.core.dvc import parse_out_hash
from forge_nb.core.project import Invalid, NotFound, ROOT, RunFailed, hash_file, hash_weights, read_json, run_git, write_json, write_jsonl
from forge_nb.data.passages import build_index, load_index, make_document_passages, save_index
from forge_nb.core.settings import load_settings
from forge_nb.evals.gated import ShownPassages, validate
from forge_nb.evals.release import seal_verdict, sign_waiver
from forge_nb.gate import Baseline, find_baseline
from forge_nb.ops import registry
from forge_nb.ops.lineage_db import find_cache, object_path
from forge_nb.ops.lineage_sql import query_lineage
from forge_nb.ops.patch_release import patch_releases
from forge_nb.ops.registry import promote, read_served, rollback
from forge_nb.ops.receipt import CACHE_COPY, GIT_COPY
from forge_nb.ops.release_files import list_folder_files
from forge_nb.ops.release_holders import find_holding_releases, protect_releases, revoke_holders
from forge_nb.ops.release_tags import list_versions, read_release_entry, read_release_events
from forge_nb.ops.served import fetch, prune, releases, revoke_release, served, verify_release
from forge_nb.tokenizer import train_tokenizer
from forge_nb.train.architecture import ModelShape, build_model
from forge_nb.train.model import load_model, save_model

OUTS = {"rl": "artifacts/rl/model", "retrieval": "artifacts/retrieval/live", "synth": "artifacts/synth/eval_set", "card": "artifacts/card/README.md",
        "gate": "artifacts/gate/verdict.json", "export": "artifacts/export/gguf", "curate": "artifacts/curate/documents/train.jsonl"}
PIPELINE = "stages:\n" + "".join(
    f"  {stage}:\n    cmd: rm -rf {out} && mkdir -p {Path(out).parent} && cp -r made/{Path(out).name} {out}\n    deps: [made/{Path(out).name}]\n"
    + (f"    metrics: [{out}: {{cache: false}}]\n" if stage == "gate" else f"    outs: [{out}]\n") for stage, out in OUTS.items())
TEXTS = {"docs/bolts.txt": "A bolt M3 costs 3 EUR.", "docs/nuts.txt": "A nut M3 costs 1 EUR."}


def make_documents(texts): return [dict(id=s, kind="docs", language="en", source=s, text=t) for s, t in texts.items()]


def write_index(root, texts=TEXTS):
    shutil.rmtree(root/"made"/"live", ignore_errors=True)
    save_index(build_index(make_document_passages(make_documents(texts), {}, "en", 1200)), root/"made"/"live")


def write_training_set(root, texts=TEXTS): write_jsonl(root/"made"/"train.jsonl", make_documents(texts))


def write_model(root, seed: int):
    "A small model with real weights and a tokenizer"
    torch.manual_seed(seed)
    tokenizer = train_tokenizer([*TEXTS.values()] * 3, 300)
    model = build_model(tokenizer, ModelShape(num_hidden_layers=1, hidden_size=64, intermediate_size=64, context_length=64))
    shutil.rmtree(root/"made"/"model", ignore_errors=True)
    save_model(model, tokenizer, root/"made"/"model")


def write_verdict(root, verdict="pass", waiver=False):
    "What the gate would have written about the model in made/"
    candidate = dict(name="rl", weights_sha256=hash_weights(root/"made"/"model"))
    written = dict(verdict=verdict, because=[] if verdict == "pass" else ["document: worse"], candidate=candidate, waiver=None, earlier_waivers=[])
    if waiver: written = sign_waiver(written, "J. Doe", "a trial with one customer")
    write_json(root/"made"/"verdict.json", seal_verdict(written))


def run_pipeline(copy, subject="trained"): copy(f"dvc repro -q && git add -A && git commit -qm '{subject}'")


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    "A folder with two pairs of keys"
    folder = tmp_path_factory.mktemp("keys")
    for name in ("release", "other"):
        subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", folder/f"{name}.pem"], check=True, capture_output=True)
        subprocess.run(["openssl", "ec", "-in", folder/f"{name}.pem", "-pubout", "-out", folder/f"{name}.pub"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Copy:
    "A project whose pipeline has run; the code is that of this repository"
    copy, root = object.__new__(Copy), tmp_path_factory.mktemp("registry")/"project"
    copy.root = root
    (root/"made"/"eval_set").mkdir(parents=True)
    (root/"data").mkdir()
    (root/"data"/"bolts.txt").write_text("A bolt.", encoding="utf-8")
    (root/"made"/"gguf").mkdir()
    for name in ("config", "company", "params.yaml", ".gitignore", "eval_set.lock"):
        (shutil.copytree if (ROOT/name).is_dir() else shutil.copy)(ROOT/name, root/name)
    (root/"forge_nb").symlink_to(ROOT/"forge_nb")
    (root/"dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (root/"made"/"eval_set"/"items.jsonl").write_text('{"id": "a"}\n', encoding="utf-8")
    (root/"made"/"gguf"/"model.gguf").write_bytes(b"GGUF")
    (root/"made"/"README.md").write_text("# Card\n", encoding="utf-8")
    write_model(root, 1)
    write_index(root)
    write_training_set(root)
    write_verdict(root)
    copy("git init -q && git config user.name Ada && git config user.email ada@localhost && dvc init -q && dvc add -q data && git add -A && git commit -qm first")
    run_pipeline(copy)
    return copy


def clone_of(copy, folder) -> Copy:
    other = object.__new__(Copy)
    other.root = shutil.copytree(copy.root, folder, symlinks=True)
    return other


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Copy:
    "A copy that a test may change, without a key"
    for name in ("FORGE_SIGNING_KEY", "FORGE_PUBLIC_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delitem(copies.ENV, name, raising=False)
    return clone_of(made, tmp_path/"project")


def use_key(monkeypatch, keys, name="release"):
    "Have the company's key in the environment, as a path"
    monkeypatch.setenv("FORGE_SIGNING_KEY", str(keys/f"{name}.pem"))
    monkeypatch.setitem(copies.ENV, "FORGE_SIGNING_KEY", str(keys/f"{name}.pem"))


@pytest.fixture(scope="module")
def two_made(made, keys, tmp_path_factory) -> Copy:
    "A project with two signed releases, the second of which is in production"
    copy = clone_of(made, tmp_path_factory.mktemp("two")/"project")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_key(monkeypatch, keys)
        promote(copy.root, "", "production", "the first")
        retrain(copy)
        promote(copy.root, "", "production", "another seed")
    return copy


@pytest.fixture
def two(two_made, tmp_path, monkeypatch, keys) -> Copy:
    use_key(monkeypatch, keys)
    return clone_of(two_made, tmp_path/"project")


@pytest.fixture(scope="module")
def three_made(two_made, tmp_path_factory) -> Copy:
    "The same, after a third training"
    copy = clone_of(two_made, tmp_path_factory.mktemp("three")/"project")
    retrain(copy, 3)
    return copy


@pytest.fixture
def three(three_made, tmp_path, monkeypatch, keys) -> Copy:
    use_key(monkeypatch, keys)
    return clone_of(three_made, tmp_path/"project")


def retrain(copy, seed=2):
    write_model(copy.root, seed)
    write_verdict(copy.root)
    run_pipeline(copy, f"seed {seed}")


def hash_served(root, stage="production") -> dict:
    folder = root/"served"/stage
    return {name: hash_file(folder/name) for name in list_folder_files(folder.resolve())}


def faults_of(answer) -> list:
    return [fault.file for stage in answer.stages for fault in stage.faults]


# What goes out

def test_a_release_has_everything_and_says_what_it_rests_on(project, keys, monkeypatch):
    use_key(monkeypatch, keys)
    answer, root = ask(project, "promote rl --to production --because 'the first'"), project.root
    folder = root/"served"/"production"
    assert answer["release"] == "forge@v1.0.0" and answer["is_new"] and answer["is_signed"] and answer["is_baseline"]
    files = {"model/model.safetensors", "model/tokenizer.json", "model/open_book.json", "model/index/manifest.json", "exam/items.jsonl", "exam/eval_set.lock",
             "gate/verdict.json", "gate/rules.yaml", "card/README.md", "export/gguf/model.gguf", "release.json", "release.sig"}
    assert files <= set(list_folder_files(folder.resolve()))
    message = run_git(root, "tag", "-l", "--format=%(contents)", "forge@v1.0.0")
    hashes = {name: hash_file(folder/place) for name, place in dict(verdict="gate/verdict.json", rules="gate/rules.yaml").items()}
    hashes |= {"dvc.lock": hash_file(root/"dvc.lock"), "weights": hash_weights(folder/"model"), "release.json": hash_file(folder/"release.json")}
    for name, value in hashes.items(): assert f"{name}: {value}" in message.splitlines()
    for name in ("exam", "data", "index", "content", "commit", "key"): assert re.search(f"(?m)^{name}: [0-9a-f]", message), name
    entry = load_settings(root/"config"/"baseline.yaml", Baseline)
    baseline = find_baseline(entry, root)
    assert entry.name == "forge@v1.0.0" and load_model(baseline) and load_index(baseline/"index").passages
    assert validate(ShownPassages, read_json(baseline/"open_book.json"), "open_book.json").num_passages == 2
    assert run_git(root, "status", "--porcelain").split() == ["M", "config/baseline.yaml"]
    assert ask(project, "served")["stages"][0]["signature"] == "valid" and ask(project, "verify-release v1.0.0")["verdict"] == "whole"
    refuse(project, "promote --to production", 3, "serves v1.0.0 already")
    assert "promotion of production to v1.0.0: the first" in ask(project, "served")["stages"][0]["event"]


def test_without_a_key_a_release_says_so_and_production_needs_one(project, keys, monkeypatch):
    refuse(project, "promote --to production", 2, "FORGE_SIGNING_KEY", "signed")
    assert not ask(project, "promote --to staging")["is_signed"]
    assert ask(project, "served")["stages"][0]["signature"] == "unsigned" and "not signed" in project(f"{FORGE} served")
    refuse(project, "promote v1.0.0 --to production", 2, "v1.0.0 is not signed")
    use_key(monkeypatch, keys)
    assert ask(project, "promote --to production")["release"] == "forge@v1.0.1"  # the same files, signed
    text = (project.root/"config"/"registry.yaml").read_text(encoding="utf-8").replace("signed: [production]", "signed: []")
    (project.root/"config"/"registry.yaml").write_text(text, encoding="utf-8")
    assert ask(project, "promote v1.0.0 --to production")["before"] == "v1.0.1"


def test_new_weights_are_a_minor_version_and_a_new_index_is_a_patch(project):
    assert promote(project.root, "", "staging").release == "forge@v1.0.0"
    write_index(project.root, TEXTS | {"docs/screws.txt": "A screw costs 2 EUR."})
    run_pipeline(project, "a new document")
    answer = promote(project.root, "", "staging")
    assert answer.release == "forge@v1.0.1" and answer.hashes["weights"] == hash_weights(project.root/"releases"/"v1.0.0"/"model")
    retrain(project)
    assert promote(project.root, "", "staging").release == "forge@v1.1.0"
    retrain(project, 3)
    assert promote(project.root, "", "staging", is_major=True).release == "forge@v2.0.0"
    retrain(project, 2)  # the same weights, index and exam as before
    assert not (answer := promote(project.root, "", "staging")).is_new and answer.release == "forge@v1.1.0"


def write_recall(root, **kinds):
    "What the stage retrieval would have measured: kind → questions, percent"
    (root/"made"/"recall.csv").write_text("kind,questions,answer@3\n" + "".join(f"{kind},{n},{share}\n" for kind, (n, share) in kinds.items()), encoding="utf-8")


def test_a_new_index_on_the_same_weights_must_find_as_much(project):
    root = project.root
    text = (root/"dvc.yaml").read_text(encoding="utf-8") + "  recall:\n    cmd: mkdir -p artifacts/retrieval && cp made/recall.csv artifacts/retrieval\n    deps: [made/recall.csv]\n    metrics: [artifacts/retrieval/recall.csv: {cache: false}]\n"
    (root/"dvc.yaml").write_text(text, encoding="utf-8")
    write_recall(root, price=(400, 96), place=(400, 90), all=(800, 93))
    run_pipeline(project, "measured")
    promote(root, "", "staging")
    write_index(root, TEXTS | {"docs/screws.txt": "A screw costs 2 EUR."})
    write_recall(root, price=(400, 80), place=(400, 91), all=(800, 92))
    run_pipeline(project, "a new index")
    refuse(project, "promote --to staging", 2, "finds less than that of v1.0.0, with the same weights: price 96.0 → 80.0 % of 400 questions")
    assert read_served(root, "staging") == "v1.0.0" and list(list_versions(read_release_events(root, "forge"))) == ["v1.0.0"]
    write_recall(root, price=(390, 95), place=(390, 91), all=(780, 93))
    run_pipeline(project, "mended")
    assert promote(root, "", "staging").release == "forge@v1.0.1"
    retrain(project)
    write_index(root)
    write_recall(root, price=(400, 60), place=(400, 60), all=(800, 60))
    run_pipeline(project, "other weights, which the gate has judged with their index")
    assert promote(root, "", "staging").release == "forge@v1.1.0"


@pytest.mark.parametrize("change, rc, words", [
    ("fail", 2, ["does not let the model out: document: worse"]), ("edited", 2, ["not what the gate wrote"]), ("lock", 2, ["dvc.lock has changes that are not committed"]),
    ("weights", 2, ["is about other weights"]), ("stage", 2, ["the stages are staging, production"]), ("checkpoint", 2, ["`sft` is not what the gate judged"]),
    ("cache", 2, ["model.safetensors", "other bytes than dvc.lock names"]), ("sealed anew", 2, ["is not the one that dvc.lock names"]), ("missing", 3, ["nobody has judged"]),
    ("nobody", 2, ["git does not know who you are"])])
def test_what_may_not_go_out(project, change, rc, words):
    root, line = project.root, "promote --to staging"
    verdict = root/"artifacts"/"gate"/"verdict.json"
    if change == "fail":
        write_verdict(root, "fail")
        run_pipeline(project)
    elif change == "edited": write_json(verdict, read_json(verdict) | dict(because=["nothing"]))
    elif change == "sealed anew": write_json(verdict, seal_verdict(read_json(verdict) | dict(because=["nothing"])))
    elif change == "missing": verdict.unlink()
    elif change == "lock": (root/"dvc.lock").write_text((root/"dvc.lock").read_text() + "\n")
    elif change == "weights":
        write_model(root, 5)
        run_pipeline(project)
    elif change == "stage": line = "promote --to live"
    elif change == "checkpoint": line = "promote sft --to staging"
    elif change == "cache": swap_object(root, "model.safetensors")
    else: project("git config --unset user.name && git config --unset user.email && git config user.useConfigOnly true")
    with_home = "HOME=/nowhere GIT_CONFIG_GLOBAL=/dev/null " if change == "nobody" else ""
    output = project(f"{with_home}{FORGE} {line} 2>&1 >/dev/null", rc)
    [error] = [row for row in output.splitlines() if row.startswith("error: ")]
    assert all(word in error for word in words) and "Traceback" not in output, output
    assert not list(root.glob("releases/v*")) and not list(root.glob("served/*")) and not run_git(root, "tag")


def swap_object(root, name: str):
    "Put other bytes into the cache's object of a file of the model"
    cache = find_cache(root)
    listed = read_json(object_path(cache, parse_out_hash((root/"dvc.lock").read_text(encoding="utf-8"), "artifacts/rl/model")))
    [place] = [object_path(cache, entry["md5"]) for entry in listed if entry["relpath"] == name]
    place.chmod(0o644)
    flip(place)


def flip(path: Path, place: int = -2):
    "Change one byte of a file"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_waiver_goes_out_and_is_remembered(project):
    write_verdict(project.root, "fail", waiver=True)
    run_pipeline(project)
    promote(project.root, "", "staging")
    assert "waiver: J. Doe: a trial with one customer" in run_git(project.root, "tag", "-l", "--format=%(contents)", "forge@v1.0.0")
    [waiver] = load_settings(project.root/"config"/"baseline.yaml", Baseline).waivers
    assert (waiver.version, waiver.name, waiver.waived) == ("forge@v1.0.0", "J. Doe", ["document: worse"])


def test_keys_that_do_not_do(project, keys, monkeypatch, tmp_path):
    shutil.copy(keys/"release.pem", project.root/"key.pem")
    for value, words in ((str(project.root/"key.pem"), "lies in the repository"), (str(tmp_path/"none.pem"), "there is no key")):
        monkeypatch.setitem(copies.ENV, "FORGE_SIGNING_KEY", value)
        refuse(project, "promote --to staging", 2, words)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path/"ed.pem"], check=True, capture_output=True)
    subprocess.run(["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", keys/"release.pem", "-out", tmp_path/"secret.pem"], check=True, capture_output=True)
    for name, words in (("ed.pem", "is of another kind"), ("secret.pem", "is encrypted")):
        monkeypatch.setitem(copies.ENV, "FORGE_SIGNING_KEY", str(tmp_path/name))
        refuse(project, "promote --to staging", 2, words)
    monkeypatch.setitem(copies.ENV, "FORGE_SIGNING_KEY", (keys/"release.pem").read_text())  # the key itself
    monkeypatch.setitem(copies.ENV, "FORGE_PUBLIC_KEY", str(keys/"other.pub"))
    refuse(project, "promote --to staging", 2, "does not belong to the public one")
    monkeypatch.setitem(copies.ENV, "FORGE_PUBLIC_KEY", str(keys/"release.pub"))
    assert ask(project, "promote --to staging")["is_signed"]


# What comes back

def test_rollback_is_byte_for_byte_and_leaves_the_work_tree(two):
    root = two.root
    before = hash_served(root)
    state = [run_git(root, "status", "--porcelain"), run_git(root, "rev-parse", "HEAD"), hash_file(root/"config"/"baseline.yaml")]
    first = {name: hash_file(root/"releases"/"v1.0.0"/name) for name in list_folder_files(root/"releases"/"v1.0.0")}
    shutil.rmtree(root/"releases"/"v1.0.0")  # it comes back from the cache
    refuse(two, "rollback", 2, "say why")
    answer = ask(two, "rollback --because 'it invents prices'")
    assert answer["release"] == "forge@v1.0.0" and answer["before"] == "v1.1.0" and answer["baseline"] == "forge@v1.1.0"
    assert hash_served(root) == first != before and answer["files"] == len(first)
    assert state == [run_git(root, "status", "--porcelain"), run_git(root, "rev-parse", "HEAD"), hash_file(root/"config"/"baseline.yaml")]
    history = ask(two, "releases")["history"]
    assert [(row["event"], row["version"], row["because"], row["who"]) for row in history[:1]] == [("rollback", "v1.0.0", "it invents prices", "Ada")]
    assert [row["version"] for row in history if row["event"] == "release"] == ["v1.1.0", "v1.0.0"]
    refuse(two, "rollback --because again", 3, "nothing that may be served was in production before v1.0.0")
    assert ask(two, "rollback --to v1.1.0 --because 'it was the prices'")["before"] == "v1.0.0" and hash_served(root) == before
    refuse(two, "rollback --to v1.1.0 --because again", 3, "serves v1.1.0 already")
    ask(two, "rollback --because 'and yet'")
    assert ask(two, "promote v1.0.0 --to production")["is_baseline"]  # the gate compares with what is served
    assert load_settings(root/"config"/"baseline.yaml", Baseline).name == "forge@v1.0.0" and not faults_of(served(root))


def test_a_broken_release_is_not_gone_back_to(two):
    root, before = two.root, hash_served(two.root)
    weights = root/"releases"/"v1.0.0"/"model"/"model.safetensors"
    flip(weights)
    assert rollback(root, "", "mended from the cache").release == "forge@v1.0.0" and not faults_of(served(root))
    rollback(root, "v1.1.0", "and forward again")
    shutil.rmtree(find_cache(root))
    flip(weights)
    with pytest.raises(Invalid, match="releases/v1.0.0/model/model.safetensors has other bytes, and nothing can mend it: v1.0.0: DVC's cache lacks it"): rollback(root, "", "tried")
    assert read_served(root, "production") == "v1.1.0" and hash_served(root) == before


def test_a_signature_of_another_key_is_not_gone_back_to(two, keys, monkeypatch):
    before = hash_served(two.root)
    monkeypatch.setenv("FORGE_PUBLIC_KEY", str(keys/"other.pub"))
    with pytest.raises(Invalid, match="releases/v1.0.0/release.sig was made by another key"): rollback(two.root, "", "tried")
    assert read_served(two.root, "production") == "v1.1.0" and hash_served(two.root) == before
    monkeypatch.setenv("FORGE_PUBLIC_KEY", str(keys/"release.pub"))
    assert rollback(two.root, "", "tried").release == "forge@v1.0.0"


# What somebody changed

def retag(root, tag, target, message="moved"):
    subprocess.run(["git", "tag", "-f", "-a", "-m", message, tag, target], cwd=root, check=True, capture_output=True)


FILES = ["model/model.safetensors", "model/tokenizer.json", "model/index/passages.jsonl", "model/index/manifest.json", "card/README.md", "gate/verdict.json", "exam/items.jsonl",
         "export/gguf/model.gguf", "release.json", "release.sig"]


@pytest.mark.parametrize("name", FILES)
def test_one_byte_is_noticed(two, name, monkeypatch, keys):
    path = two.root/"releases"/"v1.1.0"/name
    for place in (0, path.stat().st_size // 2, -2 if path.stat().st_size > 1 else -1):
        content = path.read_bytes()
        flip(path, place)
        assert f"releases/v1.1.0/{name}" in faults_of(served(two.root))
        assert f"releases/v1.1.0/{name}" in [fault.file for fault in verify_release(two.root, "v1.1.0").faults]
        path.write_bytes(content)
    assert not faults_of(served(two.root))
    monkeypatch.delenv("FORGE_SIGNING_KEY")  # hashes notice it without a key, too
    flip(path)
    assert f"releases/v1.1.0/{name}" in faults_of(served(two.root)) and served(two.root).stages[0].signature == "not checked"


@pytest.mark.parametrize("kind", ["added", "added in a new folder", "link", "missing", "emptied", "signature gone"])
def test_a_file_that_came_or_went_is_noticed(two, kind):
    folder = two.root/"releases"/"v1.1.0"
    name = dict(added="model/more.bin", missing="model/config.json", emptied="model/config.json", link="model/config.json").get(kind, "x/y/z.py")
    if kind == "signature gone": name = "release.sig"
    if kind.startswith("added"):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text("", encoding="utf-8")
    elif kind == "emptied": (folder/name).write_text("", encoding="utf-8")
    else: (folder/name).unlink()
    if kind == "link": (folder/name).symlink_to(two.root/"releases"/"v1.0.0"/name)
    assert faults_of(served(two.root)) and f"releases/v1.1.0/{name}" in faults_of(served(two.root))
    assert two(f"{FORGE} served", rc=1).count(f"releases/v1.1.0/{name}") >= 1 and "tampered" in two(f"{FORGE} verify-release v1.1.0", rc=1)


def test_another_key_is_noticed(two, keys, monkeypatch):
    monkeypatch.setenv("FORGE_PUBLIC_KEY", str(keys/"other.pub"))
    answer = verify_release(two.root, "v1.1.0")
    assert answer.signature == "broken" and [(f.file, "another key" in f.fault) for f in answer.faults] == [("releases/v1.1.0/release.sig", True)]
    assert faults_of(served(two.root)) == ["releases/v1.1.0/release.sig"]
    monkeypatch.setenv("FORGE_PUBLIC_KEY", str(keys/"release.pub"))
    registry.sign_folder(two.root/"releases"/"v1.1.0", (keys/"other.pem").read_bytes())  # signed anew, by somebody else
    answer = verify_release(two.root, "v1.1.0")
    assert answer.signature == "broken" and [fault.file for fault in answer.faults] == ["releases/v1.1.0/release.sig"]


@pytest.mark.parametrize("how", ["to HEAD", "to the other release", "with its message", "light", "deleted"])
def test_a_tag_moved_by_hand_is_noticed(two, how):
    root, tag, place = two.root, "forge@v1.1.0", "refs/tags/forge@v1.1.0"
    message = run_git(root, "tag", "-l", "--format=%(contents)", tag)
    if how == "to HEAD": retag(root, tag, "HEAD")
    elif how == "to the other release": retag(root, tag, "forge@v1.0.0^{}", message)
    elif how == "with its message": retag(root, tag, "HEAD", message)
    elif how == "light": two(f"git tag -f {tag} HEAD")
    else: two(f"git tag -d {tag}")
    files = faults_of(served(root))
    assert place in files or how == "deleted" and "served/production" in files, files
    if how != "deleted": assert place in [fault.file for fault in verify_release(root, "v1.1.0").faults]
    else: pytest.raises(NotFound, verify_release, root, "v1.1.0")


def test_a_moved_assignment_or_link_is_noticed(two):
    [tag] = [t for t in run_git(two.root, "tag").splitlines() if t.startswith("forge#production") and "v1.1.0" in run_git(two.root, "tag", "-l", "--format=%(subject)", t)]
    message = run_git(two.root, "tag", "-l", "--format=%(contents)", tag)
    retag(two.root, tag, "forge@v1.0.0^{}", message)
    assert f"refs/tags/{tag}" in faults_of(served(two.root))
    retag(two.root, tag, "forge@v1.1.0^{}", message)
    assert not faults_of(served(two.root))
    (two.root/"served"/"production").unlink()
    (two.root/"served"/"production").symlink_to("../releases/v1.0.0")
    assert faults_of(served(two.root)) == ["served/production"]


def test_a_swapped_object_of_the_cache_is_noticed(two):
    cache = find_cache(two.root)
    entry = read_release_entry(two.root, run_git(two.root, "rev-parse", "forge@v1.1.0^{commit}"))
    listed = {e["relpath"]: e["md5"] for e in json.loads(object_path(cache, entry["md5"]).read_text())}
    path = object_path(cache, listed["model/tokenizer.json"])
    path.chmod(0o644)
    flip(path)
    [fault] = verify_release(two.root, "v1.1.0").faults
    assert path.name in fault.file and "releases/v1.1.0/model/tokenizer.json" in fault.fault and not faults_of(served(two.root))
    flip(two.root/"releases"/"v1.1.0"/"model"/"tokenizer.json")  # now nothing can mend the folder
    rollback(two.root, "v1.0.0", "tried")
    with pytest.raises(Invalid, match="releases/v1.1.0/model/tokenizer.json has other bytes, and so has DVC's cache"): rollback(two.root, "v1.1.0", "tried")
    assert read_served(two.root, "production") == "v1.0.0"


# What was cut off

def run_cut_off(function, step: str, when: str):
    "Run a function in a process that is killed before or after a step"
    sys.stdout.flush()
    if not (child := os.fork()):
        original = getattr(registry, step)
        def cut(*arguments, **options):
            if when == "after": original(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(registry, step, cut)
        try: function()
        finally: os._exit(3)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, f"{step} was not reached"


STEPS = ["collect_release", "check_verdict", "write_json", "sign_folder", "store_folder", "install_release", "commit_release_file", "register_version", "require_whole",
         "write_baseline", "assign_stage", "switch_served"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_promotion_cut_off_anywhere_leaves_what_was_served_and_ends_when_run_again(three, step, when):
    root = three.root
    before = hash_served(root)
    run_cut_off(lambda: promote(root, "", "production", "a third seed"), step, when)
    is_done = (step, when) == ("switch_served", "after")
    assert read_served(root, "production") == ("v1.2.0" if is_done else "v1.1.0")
    if is_done: pytest.raises(NotFound, promote, root, "", "production", "a third seed")
    else:
        assert hash_served(root) == before
        assert promote(root, "", "production", "a third seed").release == "forge@v1.2.0"
    assert list(list_versions(read_release_events(root, "forge"))) == ["v1.2.0", "v1.1.0", "v1.0.0"] and not faults_of(served(root))
    assert sorted(path.name for path in (root/"releases").iterdir()) == ["v1.0.0", "v1.1.0", "v1.2.0"] and len(list((root/"served").iterdir())) == 1
    assert verify_release(root, "v1.2.0").verdict == "whole" and load_settings(root/"config"/"baseline.yaml", Baseline).name == "forge@v1.2.0"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["require_whole", "unpack_folder", "assign_stage", "switch_served"])
def test_a_rollback_cut_off_anywhere_leaves_what_was_served_and_ends_when_run_again(two, step, when):
    root = two.root
    shutil.rmtree(root/"releases"/"v1.0.0")
    before = hash_served(root)
    run_cut_off(lambda: rollback(root, "", "it invents prices"), step, when)
    if (step, when) == ("switch_served", "after"): assert read_served(root, "production") == "v1.0.0"
    else:
        assert read_served(root, "production") == "v1.1.0" and hash_served(root) == before
        assert rollback(root, "", "it invents prices").release == "forge@v1.0.0"
    assert read_served(root, "production") == "v1.0.0" and not faults_of(served(root))


def test_of_two_promotions_at_once_one_is_refused(three):
    two = three
    (two.root/".ckpt").mkdir(exist_ok=True)
    with open(two.root/".ckpt"/"registry.lock", "w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refuse(two, "promote --to production", 2, "already running in another process")
        refuse(two, "rollback --because now", 2, "already running in another process")
    both = [subprocess.Popen(["bash", "-c", f"{FORGE} promote --to production"], cwd=two.root, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert sorted(process.returncode for process in both)[0] == 0 and {process.returncode for process in both} <= {0, 2, 3} and "Traceback" not in "".join(said), said
    assert list(list_versions(read_release_events(two.root, "forge")))[0] == "v1.2.0" and not faults_of(served(two.root))


# Another machine, and the end

def test_a_release_moves_by_tag_and_cache(two, tmp_path, keys, monkeypatch):
    monkeypatch.delenv("FORGE_SIGNING_KEY")
    remote = f"dvc remote add -q --local -d store {tmp_path}/store"  # a tag of before knows no remote that is committed later
    two(f"{remote} && dvc push -q --all-tags")
    other = object.__new__(Copy)
    other.root = tmp_path/"elsewhere"
    subprocess.run(["git", "clone", "-q", str(two.root), str(other.root)], check=True)
    other(remote)
    with pytest.raises(NotFound, match="forge fetch production"): served(other.root)
    monkeypatch.setenv("FORGE_PUBLIC_KEY", str(keys/"release.pub"))
    answer = fetch(other.root, "production")
    assert answer.release == "forge@v1.1.0" and answer.fetched and answer.signature == "valid" and hash_served(other.root) == hash_served(two.root)
    assert not faults_of(served(other.root)) and verify_release(other.root, "v1.1.0").verdict == "whole"
    assert fetch(other.root, "v1.0.0").fetched and rollback(other.root, "v1.0.0", "tried").release == "forge@v1.0.0"
    shutil.rmtree(tmp_path/"store")
    third = object.__new__(Copy)
    third.root = tmp_path/"third"
    subprocess.run(["git", "clone", "-q", str(two.root), str(third.root)], check=True)
    with pytest.raises((RunFailed, Invalid), match="v1.1.0.*(no remote gives it|lacks it)"): fetch(third.root, "production")
    assert not (third.root/"served").exists()


def test_the_cache_keeps_what_may_be_served(three):
    two, root = three, three.root
    shutil.rmtree(root/"releases")
    assert prune(root, is_dry_run=True).objects == prune(root).objects >= 0
    rollback(root, "v1.0.0", "from the cache")
    assert verify_release(root, "v1.0.0").verdict == "whole"
    answer = ask(two, "revoke v1.1.0 --because 'a letter in its index'")
    assert answer["release"] == "forge@v1.1.0" and not answer["serves_in"]
    refuse(two, "rollback --to v1.1.0 --because now", 2, "v1.1.0 is revoked (a letter in its index)")
    refuse(two, "promote v1.1.0 --to staging", 2, "is revoked")
    refuse(two, "fetch v1.1.0", 2, "is revoked")
    refuse(two, "revoke v1.1.0 --because again", 3, "revoked already")
    pruned = prune(root)
    assert pruned.dropped == ["v1.1.0"] and pruned.kept == ["v1.0.0"] and pruned.objects
    assert verify_release(root, "v1.0.0").verdict == "whole" and verify_release(root, "v1.1.0").verdict == "tampered"
    assert verify_release(root, "v1.1.0").revoked == "a letter in its index"
    assert revoke_release(root, "v1.0.0", "and this one").serves_in == ["production"] and "served/production" in faults_of(served(root))


def test_the_history_knows_releases(two):
    rows = query_lineage(two.root, "select tag, version, is_active, message from releases order by tag").rows
    assert [row[:3] for row in rows] == [["forge@v1.0.0", "v1.0.0", 1], ["forge@v1.1.0", "v1.1.0", 1]] and rows[0][3] == "forge v1.0.0: the first"
    assert query_lineage(two.root, "select stage, who from assignments where is_active").rows == [["production", "Ada"]]
    revoke_release(two.root, "v1.0.0", "a letter")
    assert query_lineage(two.root, "select is_active from releases where version = 'v1.0.0'").rows == [[0]]
    assert [row.is_revoked for row in releases(two.root).history if row.version == "v1.0.0"] == [True] * 3
    assert "v1.1.0" in two("gto history forge")


# A document that has to go

def test_an_erasure_finds_and_revokes_the_releases_that_hold_a_document(three):
    root, page = three.root, "docs/bolts.txt"
    write_training_set(root, rest := {source: text for source, text in TEXTS.items() if source != page})
    run_pipeline(three, "trained without it")
    assert promote(root, "", "staging").release == "forge@v1.2.0"  # its index has the page still
    write_index(root, rest)
    run_pipeline(three, "a new index")
    assert promote(root, "", "staging").release == "forge@v1.2.1"
    held = find_holding_releases(root, {page})
    assert [(r.release, r.holds_in, r.serves_in) for r in held] == [
        ("forge@v1.2.0", ["index"], []), ("forge@v1.1.0", ["training", "index"], ["production"]), ("forge@v1.0.0", ["training", "index"], [])]
    assert not find_holding_releases(root, {"docs/none.txt"}) and len(find_holding_releases(root, {"docs/nuts.txt"})) == 4
    journal = dict(started_at="2026-11-30T10:00:00Z", releases=[r.model_dump() for r in held])
    for _ in range(2): assert all(r.is_revoked for r in revoke_holders(root, journal))  # a forget that was cut off does it again
    assert not find_holding_releases(root, {page}) and page not in run_git(root, "tag", "-l", "--format=%(contents)")
    with pytest.raises(Invalid, match="v1.1.0 is revoked .an erasure of 2026-11-30"): rollback(root, "v1.1.0", "tried", "staging")
    assert "served/production" in faults_of(served(root)) and promote(root, "v1.2.1", "production").before == "v1.1.0"
    cache, other = protect_releases(root, [CACHE_COPY, GIT_COPY], held)[:2]
    assert cache.command == "forge prune" and other == GIT_COPY
    assert [copy.command for copy in protect_releases(root, [], held)] == ["rm -r releases/v1.2.0", "rm -r releases/v1.1.0", "rm -r releases/v1.0.0"]
    assert prune(root).dropped == ["v1.2.0", "v1.1.0", "v1.0.0"] and verify_release(root, "v1.2.1").verdict == "whole"
    texts = "".join(path.read_text(encoding="utf-8", errors="replace") for path in find_cache(root).rglob("*") if path.is_file())
    assert TEXTS[page] not in texts and TEXTS["docs/nuts.txt"] in texts


def test_a_document_of_the_index_alone_is_followed_by_a_patch_release(three):
    root, page = three.root, "docs/screws.txt"
    write_index(root, TEXTS | {page: "A screw costs 2 EUR."})
    run_pipeline(three, "a new document, that is not trained on")
    assert promote(root, "", "production").release == "forge@v1.2.0"
    held = find_holding_releases(root, {page})
    assert [(r.release, r.holds_in, r.serves_in) for r in held] == [("forge@v1.2.0", ["index"], ["production"])]
    revoke_holders(root, dict(started_at="2026-11-30T10:00:00Z", releases=[r.model_dump() for r in held]))
    write_index(root)
    three("dvc repro -q")  # nobody commits it
    head, tracked = run_git(root, "rev-parse", "HEAD"), run_git(root, "status", "--porcelain")
    [patch] = patch_releases(root, held)
    assert (patch.release, patch.replaces, patch.stage, patch.refused) == ("forge@v1.2.1", "forge@v1.2.0", "production", "")
    assert read_served(root, "production") == "v1.2.1" and not faults_of(served(root)) and verify_release(root, "v1.2.1").verdict == "whole"
    assert hash_weights(root/"served"/"production"/"model") == hash_weights(root/"releases"/"v1.2.0"/"model") and not find_holding_releases(root, {page})
    after = run_git(root, "status", "--porcelain").splitlines()
    assert head == run_git(root, "rev-parse", "HEAD") and {line.strip() for line in after} - {line.strip() for line in tracked.splitlines()} <= {"M config/baseline.yaml"}
    assert load_settings(root/"config"/"baseline.yaml", Baseline).name == "forge@v1.2.1"
    assert patch_releases(root, held) == [patch]  # a forget that was cut off does it again


def test_where_nothing_may_go_out_the_receipt_says_why(three):
    root, page = three.root, "docs/screws.txt"
    write_index(root, TEXTS | {page: "A screw costs 2 EUR."})
    run_pipeline(three, "a new document, that is not trained on")
    promote(root, "", "production")
    held = find_holding_releases(root, {page})
    revoke_holders(root, dict(started_at="2026-11-30T10:00:00Z", releases=[r.model_dump() for r in held]))
    write_index(root)
    write_verdict(root, "fail")
    three("dvc repro -q")
    [patch] = patch_releases(root, held)
    assert not patch.release and "does not let the model out" in patch.refused and read_served(root, "production") == "v1.2.0"
    (root/"artifacts"/"gate"/"verdict.json").unlink()
    assert "nobody has judged" in patch_releases(root, held)[0].refused
    write_model(root, 7)
    write_verdict(root)
    three("dvc repro -q --force")
    assert "the weights were made anew" in patch_releases(root, held)[0].refused
    assert faults_of(served(root)) == ["served/production"]


def test_where_the_cache_lost_it_nobody_can_tell(two):
    lock = (two.root/"dvc.lock").read_text(encoding="utf-8")
    object_path(find_cache(two.root), parse_out_hash(lock, "artifacts/curate/documents/train.jsonl")).unlink()
    assert {part for release in find_holding_releases(two.root, {"docs/none.txt"}) for part in release.holds_in} == {"unknown"}
