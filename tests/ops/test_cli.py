"The command line: where a document went, and how it is forgotten, on a project in which the whole chain has run"
import hashlib, inspect, json, shlex, sqlite3, subprocess, sys, zipfile

import pytest
from copies import FORGE, ROOT, Copy, ask, refuse, sibling
from jsonschema import validate
from typer.testing import CliRunner

from forge_nb.core.project import parse_dvc_lock
from forge_nb.ops.cli import ANSWER_MODELS, answer_schema, app

KEPT = ("runs/live/index", "runs/search/ab12", ".cache/gguf", ".cache/judge")
TUNED = "sft dpo reward rlhf rl distill".split()
SHIPPED = {*"tangle ingest assess curate retrieval synth freeze decide tokenizer ngram pretrain evaluate judge gate export card".split(), *TUNED}  # `make new` adds others


def rows(copy: Copy, path: str) -> list:
    return [json.loads(line) for line in (copy.root/path).read_text(encoding="utf-8").splitlines()]


def fingerprints(copy: Copy) -> dict:
    "Hash of every file that people or DVC would notice"
    skip = (".git/", ".dvc/", ".ckpt/", ".cache/")
    names = [p.relative_to(copy.root).as_posix() for p in copy.root.rglob("*") if p.is_file()]
    return {n: hashlib.sha256((copy.root/n).read_bytes()).hexdigest() for n in names if not n.startswith(skip) and "__pycache__" not in n}


def lock(copy: Copy) -> dict:
    return parse_dvc_lock((copy.root/"dvc.lock").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def asked(chain) -> Copy:
    "A finished project with a page that the model was trained on, facts taken from it, and a near-duplicate of it; nobody writes to it"
    return chain


@pytest.fixture(scope="module")
def forgotten(asked, tmp_path_factory):
    "The page forgotten"
    copy = sibling(asked, tmp_path_factory.mktemp("forget")/"project")
    for place in KEPT:  # an index and a GGUF file that search and ask keep
        (copy.root/place).mkdir(parents=True)
        (copy.root/place/"passages.jsonl").write_text(json.dumps(dict(source=asked.page, text=asked.text)), encoding="utf-8")
    before = fingerprints(copy)
    return dict(copy=copy, answer=ask(copy, f"forget {asked.page} --yes"), before=before)


def test_every_verb_explains_itself(bare):
    assert "whereis" in bare(FORGE) and "forget" in bare(f"{FORGE} --help")
    assert json.loads(bare(f"{FORGE} schema whereis")) == answer_schema("whereis")
    call = lambda *words: CliRunner().invoke(app, words).output  # in this process: an import for each would take two minutes
    for verb in ("whereis", "forget", "search", "ask", "draft", "label", "refresh", "estimate", "sweep", "cycle", "review", "freeze", "verify", "bom", "papers", "bundle", "verify-receipt", "schema"): assert "Example: forge " + verb in call(verb, "--help")
    for verb in ANSWER_MODELS: assert json.loads(call("schema", verb)) == answer_schema(verb)


def test_every_verb_answers_programs():
    "Each has --json and a schema of its answer; those have none whose answers are no single object"
    verbs = {command.name: inspect.signature(command.callback).parameters for command in app.registered_commands}
    assert not [name for name, parameters in verbs.items() if "as_json" not in parameters]
    assert set(verbs) - {"schema", "mcp"} == set(ANSWER_MODELS)
    for verb in ANSWER_MODELS:
        said = [option["properties"]["verb"] for option in answer_schema(verb)["$defs"].values() if "verb" in option.get("properties", {})]
        assert said and all(field["const"] == verb for field in said), "an answer does not say whose it is"


@pytest.mark.parametrize("line, rc, words", [
    ("whereis", 2, ["say which document"]),
    ("forget", 2, ["say which document"]),
    ("nosuch", 2, ["nosuch"]),
    ("forget --nosuch", 2, ["--nosuch"]),
    ("schema nosuch", 2, ["whereis, forget"]),
    ("whereis docs/no-such-page.txt", 3, ["no document `docs/no-such-page.txt`"]),
    ("whereis data/docs/indx.txt", 3, ["did you mean docs/index.txt"]),
    ("whereis 0123456789abcdef", 3, ["no document"]),
    ("whereis --query 'words that nobody has ever put in this order'", 3, ["no document holds"]),
    ("forget docs/no-such-page.txt --yes", 3, ["no document"]),
    ("forget data/facts/objects.csv --yes", 2, ["table of facts", "make adopt"]),
    ("forget --undo", 3, ["no forget is unfinished"]),
    ("forget docs/index.txt", 2, ["--yes", "--dry-run"]),
    ("review --sample -1", 2, ["--sample -1"]),
    ("freeze", 2, ["--because"]),
    ("label --sample 0", 2, ["--sample is 0"]),
    ("estimate --model nosuch", 2, ["config/hardware.yaml", "mistral-small-4"]),
    ("estimate --profile nosuch", 2, ["no profile `nosuch`", "tiny"])])
def test_bad_input_is_a_sentence(tiny, line, rc, words):
    before = fingerprints(tiny)
    refuse(tiny, f"{line} </dev/null", rc, *words)
    assert fingerprints(tiny) == before
    if line.split()[0] in ANSWER_MODELS: assert words[0] in ask(tiny, f"{line} </dev/null", rc)["error"]


def test_outside_a_project(tmp_path):
    env_path = str(ROOT)
    done = subprocess.run([sys.executable, "-m", "forge_nb.ops.cli", "whereis", "x", "--json"], cwd=tmp_path, env={"PYTHONPATH": env_path, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "dvc.yaml" in json.loads(done.stdout)["error"]


def test_import_is_light():
    code = "import sys, forge_nb.ops.cli; print([m for m in ('dvc', 'torch', 'numpy', 'pandas', 'pyarrow', 'nbformat', 'papermill') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout.strip() == "[]"


def test_a_trained_document_reached_every_model(asked):
    [d] = ask(asked, f"whereis data/{asked.page}")["documents"]
    assert d["source"] == asked.page and d["splits"] == {"train": 1} and d["sha256"] == hashlib.sha256(asked.text.encode()).hexdigest()
    assert [m["path"] for m in d["models"]] == [*(f"artifacts/{m}/model" for m in ("pretrain", *TUNED)), "artifacts/distill/student_without_teacher"] and d["summary"].startswith("trained on")
    assert {r["stage"] for r in d["reached"]} >= {"curate", "tokenizer", "pretrain", *TUNED, "evaluate"}
    splits = [r for r in d["reached"] if r["path"].startswith("artifacts/curate/documents")]
    assert [f for r in splits for f in r["files"]] == ["artifacts/curate/documents/train.jsonl"]
    assert all(r["hash"] in (asked.root/"dvc.lock").read_text(encoding="utf-8") for r in splits)
    assert {"table": "objects.csv", "rows": [asked.row]} in [f | {"rows": [r for r in f["rows"] if r == asked.row]} for f in d["facts"]]
    assert any("zz old copy" in t["source"] for t in d["near_duplicates"])
    assert ask(asked, f"whereis {d['ids'][0][:9]}")["documents"] == [d]
    assert asked.page in asked(f"{FORGE} whereis {asked.page}")


def test_a_test_document_reached_evaluate_and_no_model(asked):
    facts = "".join(p.read_text(encoding="utf-8") for p in (asked.root/"data/facts").glob("*.csv"))
    page = next(d for d in rows(asked, "artifacts/curate/documents/test.jsonl") if d["source"] not in facts)
    [d] = ask(asked, f"whereis {page['source']}")["documents"]
    assert d["splits"] == {"test": 1} and d["models"] == [] and "no model" in d["summary"] and "held out" in d["summary"]
    assert {r["stage"] for r in d["reached"]} & SHIPPED - {"ingest"} == {"assess", "curate", "retrieval", "synth", "freeze", "ngram", "decide", "evaluate", "judge", "gate", "export", "card"}


def test_a_dropped_document_reached_nothing(asked):
    named = {d["source"] for s in ("train", "valid", "test") for d in rows(asked, f"artifacts/curate/documents/{s}.jsonl")}
    facts = "".join(p.read_text(encoding="utf-8") for p in (asked.root/"data/facts").glob("*.csv"))
    page = next(p for p in sorted((asked.root/"data/docs/ref").rglob("*.txt")) if (s := p.relative_to(asked.root/"data").as_posix()) not in named and s not in facts)
    [d] = ask(asked, f"whereis {page.relative_to(asked.root)}")["documents"]
    assert d["dropped"] and not d["splits"] and not d["models"] and {r["stage"] for r in d["reached"]} <= {"ingest", "assess", "curate"} and "dropped by curate" in d["summary"]


def test_training_rows_are_found_by_their_parents(asked):
    parent = rows(asked, "artifacts/synth/rows/sft.jsonl")
    numbers = sorted({int(p.split(":")[1]) for r in parent for p in r["parents"] if p.startswith("objects.csv:")})
    lines = (asked.root/"data/facts/objects.csv").read_text(encoding="utf-8").splitlines()
    number, source = next((n, cell) for n in numbers for cell in lines[n - 1].split(",") if cell.startswith("docs/"))
    [d] = ask(asked, f"whereis {source}")["documents"]
    named = {n for f in d["facts"] if f["table"] == "objects.csv" for n in f["rows"]}
    assert number in named
    found = next(t for t in d["training"] if t["file"] == "artifacts/synth/rows/sft.jsonl")
    assert found["rows"] >= sum(any(p == f"objects.csv:{n}" for n in named for p in r["parents"]) for r in parent) > 0
    assert "artifacts/sft/model" in [m["path"] for m in d["models"]]


def test_query_finds_what_words_say(asked):
    words = shlex.quote(" ".join(asked.text.split()[40:52]).upper())
    found = [d["source"] for d in ask(asked, f"whereis --query {words}")["documents"]]
    assert asked.page in found and "docs/zz old copy.txt" in found
    assert set(found) <= {r["path"] for r in ask(asked, f"forget --query {words} --dry-run")["removed"]}


def test_history_tells_held_and_lost(asked, tmp_path):
    [d] = ask(asked, f"whereis {asked.page} --history")["documents"]
    assert d["history"][0]["tags"] == ["shipped"] and d["history"][0]["included"] is True
    [t] = ask(asked, "whereis 'docs/zz old copy.txt' --history")["documents"]
    assert t["history"][0]["included"] is False and True not in {h["included"] for h in t["history"]}
    poor = sibling(asked, tmp_path/"poor")
    poor("rm -rf .dvc/cache")
    assert {h["included"] for h in ask(poor, f"whereis {asked.page} --history")["documents"][0]["history"]} == {None}


def test_dry_run_changes_nothing(asked):
    before, status = fingerprints(asked), asked("git status --porcelain")
    answer = ask(asked, f"forget {asked.page} --dry-run")
    assert answer["state"] == "dry-run" and {r["path"] for r in answer["removed"]} == {asked.page, "docs/zz old copy.txt"}
    assert SHIPPED - {"ingest"} <= set(answer["may_run"])
    assert fingerprints(asked) == before and asked("git status --porcelain") == status
    kept = ask(asked, f"forget {asked.page} --dry-run --keep-duplicates")
    assert [r["path"] for r in kept["removed"]] == [asked.page] and kept["kept_duplicates"]


def test_dirty_data_is_refused(asked, tmp_path):
    copy = sibling(asked, tmp_path/"dirty")
    (copy.root/"data/docs/index.txt").write_text("altered by hand\n", encoding="utf-8")
    refuse(copy, f"forget {asked.page} --yes", 2, "data/docs/index.txt was altered")
    copy("python -m forge_nb.core.runner adopt")
    refuse(copy, f"forget {asked.page} --yes", 2, "data/ is not what data.dvc records")
    assert (copy.root/"data"/asked.page).exists() and not (copy.root/"receipts").exists()


def test_a_failure_while_removing_leaves_data_whole(asked, tmp_path):
    copy = sibling(asked, tmp_path/"failing")
    before = fingerprints(copy)
    copy("""python - <<'E'
from forge_nb.ops import cli, erasure
real, calls = erasure.run_dvc, []
def broken(root, *words, **more):
    calls.append(words)
    if words[:1] == ('add',) and len([c for c in calls if c[:1] == ('add',)]) == 2: raise OSError(28, 'No space left on device', 'data')
    return real(root, *words, **more)
erasure.run_dvc = broken
cli.main(['forget', '%s', '--yes'])
E""" % asked.page, rc=1)
    assert fingerprints(copy) == before


@pytest.mark.slow
def test_kill_and_undo_bring_everything_back(asked, tmp_path):
    "Proves: a forget that is killed is undone byte for byte, or finished by a second call, and no receipt comes before the proof"
    copy = sibling(asked, tmp_path/"project")
    before = fingerprints(copy)
    copy.kill_when(f"{FORGE} forget {asked.page} --yes", "receipts/.pending.json")
    assert ask(copy, "forget --undo")["state"] == "undone"
    assert fingerprints(copy) == before
    copy.kill_when(f"{FORGE} forget {asked.page} --yes", ".ckpt/pretrain/*/last/state.json")
    refuse(copy, "forget docs/index.txt --yes", 2, "is not finished", "--undo")
    refuse(copy, "forget --dry-run", 2, "is not finished")
    assert not list((copy.root/"receipts").glob("*.md")), "a receipt before the proof"
    assert ask(copy, "forget")["state"] == "done"


@pytest.mark.slow
def test_forget_reruns_what_it_touched_and_proves_it(forgotten, asked):
    "Proves: a document that was trained on is removed, what it touched is made again, and nothing downstream holds a trace of it"
    copy, r = forgotten["copy"], forgotten["answer"]
    assert r["state"] == "done" and {e["path"] for e in r["removed"]} == {asked.page, "docs/zz old copy.txt"}
    assert not (copy.root/"data"/asked.page).exists() and not (copy.root/"data/docs/zz old copy.txt").exists()
    assert "Data and pipelines are up to date." in copy("dvc repro")
    p = r["proof"]
    assert (p["ids"], p["paths"], p["ngrams"], p["traces"], p["up_to_date"]) == (0, 0, 0, [], True) and p["ngrams_searched"] > 100 and p["files"] > 30
    assert p["before"]["ids"] > 0 and p["before"]["paths"] > 0 and p["before"]["ngrams"] >= p["ngrams_searched"], "the search finds nothing even when it is there"
    assert all(u.endswith(("model.safetensors", ".npy")) for u in p["unreadable"]), p["unreadable"]
    assert {"tangle", "curate", "tokenizer", "pretrain", *TUNED, "evaluate"} <= {*r["ran"], *r["restored"]}
    new = {o["path"]: o["md5"] for s in lock(copy).values() for o in s["outs"]}
    for a in r["artifacts"]: assert a["new"] == new[a["path"]] and (a["old"] != a["new"] or a["path"] != "artifacts/dpo/model")
    assert r["data"]["new"] in (copy.root/"data.dvc").read_text(encoding="utf-8") and r["data"]["old"] in asked("cat data.dvc")
    assert r["evaluation"] and any(e["before"] != e["after"] for e in r["evaluation"]) and r["effects"]


@pytest.mark.slow
def test_forget_reaches_the_index(forgotten, asked):
    "Proves: an erasure reaches the indexes, and what search and ask keep"
    for name in ("train", "live"):
        sources = lambda project: {p["source"] for p in rows(project, f"artifacts/retrieval/{name}/passages.jsonl")}
        assert asked.page in sources(asked) and asked.page not in sources(forgotten["copy"])
    found = ask(asked, f"search {shlex.quote(' '.join(asked.text.split()[40:60]))} --k 20")["passages"]
    assert asked.page in {p["source"] for p in found}
    assert not [place for place in KEPT if (forgotten["copy"].root/place).exists()]


def test_an_answer_comes_with_what_it_rests_on(asked):
    answer = ask(asked, f"ask {shlex.quote(' '.join(asked.text.split()[40:60]))} --k 2")
    assert 0 < len(answer["passages"]) + len(answer["not_shown"]) <= 2 and answer["answer"] and answer["passages"][0]["text"]


@pytest.mark.slow
def test_the_receipt_is_complete_and_holds_no_text(forgotten, asked):
    "Proves: the receipt of an erasure is whole, and holds none of the text"
    copy, r = forgotten["copy"], forgotten["answer"]
    paper, page = (copy.root/r["receipt"]), (copy.root/r["receipt"]).with_suffix(".md")
    assert json.loads(paper.read_text(encoding="utf-8")) == r and len(paper.stem) == 12 and r["removed"][0]["ids"][0].startswith(paper.stem)
    validate(r, answer_schema("forget"))
    for words in (asked.page, "Not forgotten", "dvc gc --workspace", r["commit"], "artifacts/dpo/model"): assert words in page.read_text(encoding="utf-8")
    runs = [" ".join(asked.text.split()[n:n + 8]) for n in range(0, len(asked.text.split()) - 8, 5)]
    assert not [w for w in runs if w in page.read_text(encoding="utf-8") or w in paper.read_text(encoding="utf-8")]
    assert not list((copy.root/"receipts").glob(".pending*"))


@pytest.mark.slow
def test_the_facts_went_with_it_and_nothing_else(forgotten, asked):
    "Proves: rows of facts that name a removed page go, and nothing else changes in data/"
    copy, old = forgotten["copy"], (asked.root/"data/facts/objects.csv").read_text(encoding="utf-8").splitlines()
    new = (copy.root/"data/facts/objects.csv").read_text(encoding="utf-8").splitlines()
    assert new == [line for line in old if asked.page not in line] and len(new) < len(old)
    gone = {"data/" + e["path"] for e in forgotten["answer"]["removed"]}
    before = {n: h for n, h in forgotten["before"].items() if n.startswith("data/")}
    after = {n: h for n, h in fingerprints(copy).items() if n.startswith("data/")}
    assert set(before) - set(after) == gone and {n for n in after if after[n] != before[n]} == {"data/SHA256SUMS", "data/facts/objects.csv"}


@pytest.mark.slow
def test_forgotten_is_not_found_again(forgotten, asked):
    "Proves: what was forgotten is not found again"
    copy = forgotten["copy"]
    refuse(copy, f"forget {asked.page} --yes", 3, "no document")
    refuse(copy, f"whereis {forgotten['answer']['removed'][0]['ids'][0]}", 3, "no document")


@pytest.mark.slow
def test_forgetting_what_was_never_used_trains_nothing(forgotten):
    "Proves: to forget a page that curate dropped trains nothing"
    copy = sibling(forgotten["copy"], forgotten["copy"].root.parent/"unused")
    copy("git add -A && git -c user.name=t -c user.email=t@localhost commit -qm forgotten")
    named = {d["source"] for s in ("train", "valid", "test") for d in rows(copy, f"artifacts/curate/documents/{s}.jsonl")}
    facts = "".join(p.read_text(encoding="utf-8") for p in (copy.root/"data/facts").glob("*.csv"))
    page = next(s for p in sorted((copy.root/"data/docs/releases").glob("*.txt")) if (s := p.relative_to(copy.root/"data").as_posix()) not in named and s not in facts)
    old = lock(copy)
    r = ask(copy, f"forget {page} --yes")
    assert set(r["ran"]) <= {"tangle", "ingest", "assess", "curate", "retrieval", "synth", "decide", "card"} and {k: r["proof"][k] for k in ("ids", "paths", "ngrams")} == dict(ids=0, paths=0, ngrams=0)
    for stage in ("pretrain", *TUNED): assert lock(copy)[stage] == old[stage]
    assert not [e for e in r["evaluation"] if e["before"] != e["after"]]
    status = copy("git status --porcelain")
    assert "receipts/" in status and "artifacts/dpo" not in status


@pytest.mark.slow
def test_the_proof_finds_what_was_planted(forgotten, asked):
    "Proves: text, an id, a path and tokens put back by hand are each counted where they are"
    from forge_nb.ops.inventory import hash_ngrams
    from forge_nb.ops.receipt import prove_erasure
    copy = sibling(forgotten["copy"], forgotten["copy"].root.parent/"planted")
    r, words = forgotten["answer"], " ".join(asked.text.split()[100:130])
    journal = dict(kept_duplicates=[], removed=r["removed"], rows=[], mentioned={}, leftovers=[], before=dict(ids=0, paths=0, ngrams=0))
    (copy.root/"receipts"/".pending.ngrams").write_bytes(hash_ngrams(words).astype("<u8").tobytes())
    with open(copy.root/"artifacts/synth/rows/sft.jsonl", "a", encoding="utf-8") as f: f.write(json.dumps(dict(id=r["removed"][0]["ids"][0], parents=[asked.page], text=words)) + "\n")
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    import numpy as np
    ids = Tokenizer.from_file(str(copy.root/"artifacts/tokenizer/tokenizer/tokenizer.json")).encode(words).ids
    save_file(dict(tokens=np.array(ids, "int32")), copy.root/"artifacts/tokenizer/tokens/planted.safetensors")
    (copy.root/"reports/html").mkdir(exist_ok=True); (copy.root/"reports/html/old.html").write_text(f"<p>{words}</p>", encoding="utf-8")
    proof = prove_erasure(copy.root, journal)
    where = {w["file"]: w for w in proof["traces"]}
    assert where["artifacts/synth/rows/sft.jsonl"] == dict(file="artifacts/synth/rows/sft.jsonl", ids=1, paths=1, ngrams=len(hash_ngrams(words)))
    assert where["artifacts/tokenizer/tokens/planted.safetensors"]["ngrams"] == len(hash_ngrams(words))
    assert "reports/html/old.html" in journal["leftovers"] and not (copy.root/"reports/html/old.html").exists()
    kept = rows(copy, "artifacts/curate/documents/train.jsonl")[0]  # a copy of the same content stays, so its id is no trace
    journal |= dict(removed=[dict(path="docs/gone.txt", ids=[kept["id"]])], kept_duplicates=[dict(source=kept["source"], reason="same content")])
    assert prove_erasure(copy.root, journal)["ids"] == 0 < prove_erasure(copy.root, journal | dict(kept_duplicates=[]))["ids"]


def test_parts_of_archives_are_refused(asked, tmp_path):
    "A table's rows are cut out of their file (test_erasure); a file inside an archive is not"
    copy = sibling(asked, tmp_path/"parts")
    with zipfile.ZipFile(copy.root/"data/docs/parts.zip", "w") as box: box.writestr("bolt.txt", "bolt costs 3 EUR\n")
    with open(copy.root/"artifacts/curate/documents/train.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps(dict(id="ab" * 8, source="docs/parts.zip!/bolt.txt", kind="docs", cluster="", text="bolt costs 3 EUR\n")) + "\n")
    refuse(copy, "forget docs/parts.zip!/bolt.txt --yes", 2, "part of data/docs/parts.zip", "make adopt")
    refuse(copy, f"forget {'ab' * 8} --yes", 2, "part of data/docs/parts.zip")
    assert [r["path"] for r in ask(copy, "forget docs/parts.zip --dry-run")["removed"]] == ["docs/parts.zip"]


def test_clusters_and_drops_of_curate_count_as_near_duplicates(asked, tmp_path):
    "Whatever curate's records tie together goes together, dropped documents included"
    copy = sibling(asked, tmp_path/"clusters")
    path = copy.root/"artifacts/curate/documents/train.jsonl"
    kept = rows(copy, "artifacts/curate/documents/train.jsonl")
    one, two = [d for d in kept if d["kind"] == "code"][:2]
    path.write_text("".join(json.dumps(d | dict(cluster="c7" if d["source"] in (one["source"], two["source"]) else "")) + "\n" for d in kept), encoding="utf-8")
    drop = dict(id="cd" * 8, source="docs/index.txt", kind="docs", reason="near duplicate", detail=one["source"], cluster="c7")
    (copy.root/"artifacts/curate/dropped.jsonl").write_text(json.dumps(drop) + "\n", encoding="utf-8")
    found = {r["path"]: r["reason"] for r in ask(copy, f"forget {one['source']} --dry-run")["removed"]}
    assert found[two["source"]] == "same cluster" and found["docs/index.txt"] == "same cluster"
    [d] = ask(copy, f"whereis {'cd' * 8}")["documents"]
    assert d["dropped"] == [dict(reason="near duplicate", detail=one["source"], documents=1)]


def test_estimate_answers_for_this_run_and_for_what_does_not_fit(tiny):
    own = ask(tiny, "estimate --seconds 1 --cycles 2")
    assert own["tokens"] == 30 * 8 * 64 and own["this_machine"]["tokens_per_second"] > 0 and own["best"]["parameters"][1] <= own["best"]["parameters"][0] <= own["best"]["parameters"][2]
    known = {row["stage"]: row["seconds"] for row in own["stages"]}
    assert {"ingest", "pretrain", "sft", "evaluate", "card"} <= set(known) and all(known.values())  # the card by what it took last
    assert own["total"]["seconds"] == pytest.approx(sum(known.values())) and own["serving"]["questions_per_hour"] > 0
    assert [row["path"] for row in own["costs"]] == ["prompt", "retrieval", "api_tuning", "adapters", "continued", "scratch"]
    assert own["cycles"]["count"] == 2 and own["cycles"]["seconds"] > 2 * known["sft"] / 2
    large = ask(tiny, "estimate --model mistral-small-4 --gpus 8")
    assert large["this_machine"] is None and 118e9 < large["parameters"]["total"] < 120e9 and all(m["gpus"] >= 8 for m in large["machines"])
    small = ask(tiny, "estimate --model smollm2-135m --seconds 0")
    assert 134e6 < small["parameters"]["total"] < 135e6 and small["parameters"]["matmul"] == pytest.approx(134.5e6, rel=.01)  # tied: the embedding multiplies too


def test_a_run_is_compared_with_its_prediction(tiny, tmp_path):
    copy = sibling(tiny, tmp_path/"project")
    copy("rm -rf runs/history")
    assert not ask(copy, "estimate --seconds 1")["predictions"]
    copy("dvc repro -f -s pretrain")
    [row] = ask(copy, "estimate --seconds 1 --plot law.png")["predictions"]
    log = [json.loads(line) for line in (copy.root/"runs/pretrain.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row["seconds"] == next(r["total_seconds"] for r in log if "total_seconds" in r) and row["predicted_seconds"] > 0
    assert (copy.root/"law.png").exists() and (copy.root/"law-predictions.png").exists() and (copy.root/"law-costs.png").exists()


def test_a_database_becomes_data(bare, tmp_path):
    with sqlite3.connect(tmp_path/"shop.sqlite") as c: c.executescript("""
        create table makers (id integer primary key, name text);
        create table parts (name text primary key, price real, maker integer references makers(id));
        insert into makers values (7, 'Bolt & Co'); insert into parts values ('M3', 0.5, 7), ('M4', null, 7);""")
    answer = json.loads(bare(f"SHOP_URL=sqlite:///{tmp_path}/shop.sqlite {FORGE} snapshot SHOP_URL --name shop --json"))
    validate(answer, answer_schema("snapshot"))
    assert answer == dict(verb="snapshot", file="data/shop.sqlite", tables=dict(makers=1, parts=2))
    bare("python -m forge_nb.core.tangle && dvc status --quiet data.dvc")
    output = bare(f"{FORGE} snapshot postgresql://me:hunter2@127.0.0.1:1/x", 2)
    assert "hunter2" not in output and "error: " in output
    assert "letters, digits" in bare(f"{FORGE} snapshot SHOP_URL --name ../x", 2)
    bare("git checkout -q . && rm data/shop.sqlite && dvc checkout -q --force data.dvc")
