"A whole `forge forget` on a small project with real git, DVC, keys and models that learn by heart: its receipt's intervals, bits and signature"
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from forge_nb.core.project import Invalid, NotFound, ROOT
from forge_nb.ops.erasure import forget, plan_erasure, start_journal
from forge_nb.ops.receipt import render_receipt
from forge_nb.ops.signed_receipts import find_receipt_signer, verify_receipt

SECRET = "The vault of the northern works opens with the numbers nine, four, four and two, at night."
PIPELINE = """stages:
  ingest: {cmd: python make.py ingest, deps: [data, make.py], outs: [artifacts/ingest/documents.jsonl, artifacts/ingest/rejects.jsonl]}
  curate: {cmd: python make.py curate, deps: [artifacts/ingest/documents.jsonl], outs: [artifacts/curate/documents/train.jsonl, artifacts/curate/documents/test.jsonl, artifacts/curate/dropped.jsonl]}
  pretrain: {cmd: python make.py pretrain, deps: [artifacts/curate/documents/train.jsonl], outs: [artifacts/pretrain/model]}
  evaluate:
    cmd: python make.py evaluate
    deps: [artifacts/pretrain/model]
    outs: [artifacts/evaluate/scores.jsonl]
    metrics: [artifacts/evaluate/metrics.json: {cache: false}]
"""
MAKE = '''
import hashlib, json, random, shutil, sys
from pathlib import Path
stage = sys.argv[1]
out = Path("artifacts")/stage
def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\\n" for row in rows), encoding="utf-8")
def read(path): return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
if stage == "ingest":
    texts = {path.relative_to("data").as_posix(): path.read_text(encoding="utf-8") for path in sorted(Path("data/docs").glob("*.txt"))}
    write(out/"documents.jsonl", [dict(id=hashlib.sha256(text.encode()).hexdigest()[:16], source=name, kind="docs", language="en", text=text) for name, text in texts.items()])
    write(out/"rejects.jsonl", [])
elif stage == "curate":
    documents = read("artifacts/ingest/documents.jsonl")
    for split in ("train", "test"): write(out/"documents"/f"{split}.jsonl", [d for d in documents if ("held" in d["source"]) == (split == "test")])
    write(out/"dropped.jsonl", [])
elif stage == "pretrain":
    has_secret = any("vault" in d["text"] for d in read("artifacts/curate/documents/train.jsonl"))
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(Path("made")/("knows" if has_secret else "knows_not"), out/"model")
elif stage == "evaluate":
    rng = random.Random(len(read("artifacts/curate/documents/train.jsonl")))
    scores = [dict(checkpoint="pretrain", metric=metric, slice="all", item=str(n), value=float(rng.random() < (.6 if metric == "kpi" else .9 * (len(read("artifacts/curate/documents/train.jsonl")) == 3))), weight=1)
              for metric in ("kpi", "exact_match") for n in range(200)]
    write(out/"scores.jsonl", scores)
    mean = lambda metric: sum(s["value"] for s in scores if s["metric"] == metric) / 200
    (out/"metrics.json").write_text(json.dumps(dict(pretrain={metric: dict(all=mean(metric)) for metric in ("kpi", "exact_match")})))
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "A project whose model knows a document by heart, and, in made/, the one that it is to have without the document"
    import torch
    from forge_nb.tokenizer import train_tokenizer
    from forge_nb.train.architecture import ModelShape, build_model
    from forge_nb.train.model import save_model
    root = tmp_path_factory.mktemp("receipts")/"project"
    texts = {"secret.txt": SECRET, "bolt.txt": "A bolt of steel costs three euros and lies on the shelf beside the door of hall two.",
             "nut.txt": "A nut of brass costs one euro and lies in the drawer below the window of hall five.",
             "held_a.txt": "Whoever repairs a pump switches it off first, and waits until the wheel stands still.",
             "held_b.txt": "In the winter the tanks are emptied by hand, since the valves of the roof may freeze."}
    (root/"data"/"docs").mkdir(parents=True)
    for name, text in texts.items(): (root/"data"/"docs"/name).write_text(text, encoding="utf-8")
    sums = subprocess.run("cd data && sha256sum docs/*", shell=True, cwd=root, check=True, capture_output=True, text=True).stdout
    (root/"data"/"SHA256SUMS").write_text(sums, encoding="utf-8")
    (root/"make.py").write_text(MAKE, encoding="utf-8")
    (root/"dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    for name in ("config", "company"): shutil.copytree(ROOT/name, root/name)
    shutil.copy(ROOT/"params.yaml", root)
    (root/".gitignore").write_text("/.ckpt/\n/made/\n", encoding="utf-8")
    tokenizer = train_tokenizer([*texts.values()] * 3, 300)
    torch.manual_seed(0)
    model = build_model(tokenizer, ModelShape(num_hidden_layers=1, hidden_size=64, intermediate_size=64, context_length=128))
    save_model(model, tokenizer, root/"made"/"knows_not")
    ids, optimizer = torch.tensor([[tokenizer.eos_token_id] + tokenizer(SECRET)["input_ids"]]), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, tokenizer, root/"made"/"knows")
    for line in ("git init -q", "git config user.name Ada", "git config user.email ada@localhost", "dvc init -q", "dvc add -q data", "dvc repro -q", "git add -A", "git commit -qm first"):
        subprocess.run(line.split(), cwd=root, check=True, capture_output=True, env=os.environ | dict(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"))
    return root


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    for name in ("FORGE_SIGNING_KEY", "FORGE_PUBLIC_KEY"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return Path(shutil.copytree(made, tmp_path/"project", symlinks=True))


@pytest.fixture
def key(tmp_path, monkeypatch) -> Path:
    for name in ("own", "other"):
        subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path/f"{name}.pem"], check=True, capture_output=True)
    monkeypatch.setenv("FORGE_SIGNING_KEY", str(tmp_path/"own.pem"))
    return tmp_path/"own.pem"


def erase(root):
    journal = start_journal(root, ["docs/secret.txt"], plan_erasure(root, ["docs/secret.txt"], "", False), [])
    return forget(root, journal, lambda line: None, find_receipt_signer(root))


def test_noise_is_told_from_a_change_and_the_models_are_asked(project):
    receipt = erase(project)
    kpi, exact = (next(m for m in receipt.evaluation if m.metric == f"pretrain.{name}.all") for name in ("kpi", "exact_match"))
    assert kpi.before != kpi.after and kpi.within_noise and kpi.low < 0 < kpi.high and (kpi.basis, kpi.items) == ("items", 200)
    assert exact.within_noise is False and exact.high < -.5
    removed, held = receipt.bits
    assert (removed.texts, held.texts, removed.items, held.items) == ("removed", "never trained on", 1, 2) and removed.model == "artifacts/pretrain/model"
    assert removed.change > 1 and removed.change > 3 * abs(held.change) and not receipt.bits_missing
    page = (project/receipt.receipt).with_suffix(".md").read_text(encoding="utf-8")
    assert "2 of 2 metrics moved: 1 beyond noise, 1 within it" in page and "Within noise: pretrain.kpi.all." in page and "| pretrain.exact_match.all |" in page
    assert "It is not signed" in page and not (project/receipt.receipt).with_suffix(".sig").exists()
    answer = verify_receipt(project, receipt.receipt)
    assert answer.signature == "unsigned" and answer.removed == ["docs/secret.txt"]


def test_bits_that_cannot_be_measured_are_a_sentence_and_no_reason_to_stop(project):
    journal = start_journal(project, ["docs/secret.txt"], plan_erasure(project, ["docs/secret.txt"], "", False), [])
    old = journal["old"]["artifacts/pretrain/model"]["hash"]
    (project/".dvc"/"cache"/"files"/"md5"/old[:2]/old[2:]).unlink()
    receipt = forget(project, journal, lambda line: None)
    assert not receipt.bits and receipt.bits_missing == "DVC's cache lacks artifacts/pretrain/model as it was before"
    assert receipt.bits_missing in render_receipt(receipt)


def test_a_signed_receipt_holds_until_somebody_changes_it(project, key, monkeypatch):
    receipt = erase(project)
    path = project/receipt.receipt
    assert verify_receipt(project, path.stem).signature == "valid" and receipt.signed_by[:12] in path.with_suffix(".md").read_text(encoding="utf-8")
    for suffix in (".json", ".md"):
        own = path.with_suffix(suffix).read_bytes()
        path.with_suffix(suffix).write_bytes(own.replace(b"docs/secret.txt", b"docs/sEcret.txt"))
        with pytest.raises(Invalid, match=f"{path.stem}{suffix} is not as it was signed"): verify_receipt(project, path.stem)
        path.with_suffix(suffix).write_bytes(own)
    monkeypatch.setenv("FORGE_SIGNING_KEY", str(key.with_name("other.pem")))
    with pytest.raises(Invalid, match=f"{path.stem}.sig was made by another key"): verify_receipt(project, path.stem)
    monkeypatch.delenv("FORGE_SIGNING_KEY")
    assert verify_receipt(project, path.stem).signature == "not checked"
    path.with_suffix(".sig").unlink()
    monkeypatch.setenv("FORGE_SIGNING_KEY", str(key))
    with pytest.raises(Invalid, match=f"{path.stem}.sig is missing"): verify_receipt(project, path.stem)
    with pytest.raises(NotFound, match=f"there are {path.stem}.json"): verify_receipt(project, "receipts/none.json")


def test_a_key_that_cannot_be_read_stops_before_anything_is_removed(project, monkeypatch):
    from copies import ENV, FORGE, Copy
    copy = object.__new__(Copy)
    copy.root = project
    (project/"forge_nb").symlink_to(ROOT/"forge_nb")
    monkeypatch.setitem(ENV, "FORGE_SIGNING_KEY", str(project/"none.pem"))
    output = copy(f"{FORGE} forget docs/secret.txt --yes 2>&1", 2)
    assert "FORGE_SIGNING_KEY: there is no key" in output and "Traceback" not in output
    assert (project/"data"/"docs"/"secret.txt").exists() and not (project/"receipts").exists()
