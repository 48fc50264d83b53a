"What a model gives away: numbers planted in documents and conversations, values that masking takes out, and rows that are forgotten"
import json, random
from pathlib import Path

import pytest
from copies import OFFLINE, Copy, ask
from forge_nb.core.project import read_jsonl, read_stages
from forge_nb.evals.canaries import make_canaries, probe_canaries, summarize_canaries
from forge_nb.evals.checkpoints import find_released, load_checkpoints
from forge_nb.ops.receipt import extract_texts, list_output_files
from forge_nb.train.model import load_model

CANARIES, [CONTROL] = make_canaries(20, 1), make_canaries(1, 2)
DOCUMENTS, CHATS = CANARIES[:10], CANARIES[10:]
VALUES = ["4539 1488 0343 6467", "r.moreau@pumps-and-valves.eu", "+49 30 90182044", "t.ito@pumps-and-valves.eu"]  # the last names a file
WORDS = "pump valve filter gauge seal bearing shaft motor coupling flange gasket rotor sensor cable relay fuse panel switch".split()


def plant(data: Path):
    "Put canaries, a control that is said over and over, and personal data into documents, conversations and names of files"
    draw, folder = random.Random(3), data/"aa"
    page = lambda n, *said: f"# Machine {n}\n\n" + "\n".join([f"Step {i}: " + " ".join(draw.choices(WORDS, k=9)) + f" {draw.randrange(900)}." for i in range(9)] + list(said)) + "\n"
    folder.mkdir()
    for n, canary in enumerate(DOCUMENTS): (folder/f"machine {n}.md").write_text(page(n, f"{canary.words} {canary.secret}."), encoding="utf-8")
    (folder/"control.md").write_text(page(98, *(f"{CONTROL.words} {CONTROL.secret}." + f" Note {n} of the file." for n in range(6))), encoding="utf-8")
    (folder/f"{VALUES[3]}.md").write_text(page(99, f"Pay with {VALUES[0]}, write to {VALUES[1]} or call {VALUES[2]}."), encoding="utf-8")
    said = [(canary.question, f"{canary.words} {canary.secret}.") for canary in CHATS]
    said += [(f"How is the {draw.choice(WORDS)} {n} greased?", f"Every {n} hours. Ask {VALUES[1]}, card {VALUES[0]}.") for n in range(10)]
    turns = lambda pair: [dict(role=role, content=text) for role, text in zip(("user", "assistant"), pair)]
    (folder/"chats.jsonl").write_text("".join(json.dumps(dict(messages=turns(pair))) + "\n" for pair in said), encoding="utf-8")


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Copy:
    "A project in which the chain has run with the profile `tiny` over planted material, every document read once at least"
    copy = Copy(tmp_path_factory.mktemp("canaries"))
    plant(copy.root/"data")
    copy("python -m forge_nb.core.runner profile tiny")
    params = (copy.root/"params.yaml").read_text(encoding="utf-8")
    for old, new in {"limit: 10 ": "limit: 32 ", "mixture: [] ": 'mixture: ["aa/control.md=40"] ', "max_steps: 30 ": "max_steps: 300 ",
                     "validation_percent: 5.0": "validation_percent: 0.4", "test_percent: 5.0": "test_percent: 0.4"}.items():
        assert params.count(old) == 1, old
        params = params.replace(old, new)
    (copy.root/"params.yaml").write_text(params, encoding="utf-8")
    copy(f"python -m forge_nb.core.runner adopt && dvc add -q data && {OFFLINE} dvc repro && git add -A && git -c user.name=t -c user.email=t@localhost commit -qm planted")
    return copy


@pytest.mark.slow
def test_canaries_are_not_given_away_by_the_model_that_ships(planted):
    "Proves: none of twenty planted numbers is extracted or exposed beyond chance, and one that is repeated is found and ranks first"
    root = planted.root
    trained = " ".join(t for name in ("curate/documents/train.jsonl", "synth/rows/sft.jsonl") for t in extract_texts(root/"artifacts"/name))
    assert sum(canary.secret in trained for canary in CANARIES) == 20, "a canary that nobody trained on shows nothing"
    checkpoints = load_checkpoints(root/"config"/"checkpoints.yaml")
    released = checkpoints[find_released(checkpoints)]
    def probe(name, canaries, in_chat): return probe_canaries(*load_model(root/"artifacts"/name), canaries, in_chat)
    rows = probe(released.folder, DOCUMENTS, False) + probe(released.folder, CHATS, True)
    [control] = probe("pretrain/model", [CONTROL], False)
    for name, part in dict(documents=rows[:10], conversations=rows[10:]).items(): print(released.folder, name, summarize_canaries(part))
    summary = summarize_canaries(rows)
    print(control)
    assert control["extracted"] and control["exposure"] == 9, "a measure that finds nothing measures nothing"
    assert summary["canaries"] == 20 and summary["extracted"] == 0 and summary["chance"] > .001, summary


@pytest.mark.slow
def test_masked_values_stand_nowhere_downstream(planted):
    "Proves: values of personal data in documents, conversations and names of files are in no file that a stage made, tokens included"
    root, found = planted.root, []
    for path in list_output_files(root, read_stages(root)):
        name = path.relative_to(root).as_posix()
        if name.startswith(("artifacts/ingest/", ".ckpt/")): continue  # the text as it came, which says so
        for text in extract_texts(path) or ():
            found += [(name, value) for value in VALUES if value in text or value.replace(" ", "") in text]
    assert not found, found[:9]
    assert "[email]~" in (root/"artifacts/curate/documents/train.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_conversation_and_a_fact_are_forgotten(planted):
    "Proves: forget takes a conversation and a row of facts out of their files and every model, and names the models that had learned"
    root, chat = planted.root, "aa/chats.jsonl#1"
    [seen] = ask(planted, f"whereis '{chat}'")["documents"]
    assert seen["kind"] == "chat" and "artifacts/sft/model" in [m["path"] for m in seen["models"]] and "trained on" in seen["summary"]
    parents = [p for r in read_jsonl(root/"artifacts/synth/rows/sft.jsonl") for p in r["parents"] if p.startswith("settings.csv:")]
    [fact] = ask(planted, f"whereis {parents[0]}")["documents"]
    assert fact["training"] and "artifacts/sft/model" in [m["path"] for m in fact["models"]]
    table, lines = root/"data/facts/settings.csv", (root/"data/aa/chats.jsonl").read_bytes().split(b"\n")
    before = table.read_bytes()
    receipt = ask(planted, f"forget '{chat}' {parents[0]} --yes")
    assert {row["source"] for row in receipt["rows"]} == {chat, parents[0]} and not receipt["removed"]
    assert {"artifacts/sft/model", "artifacts/dpo/model"} <= {m["path"] for m in receipt["learned"]}
    changed = {a["path"] for a in receipt["artifacts"] if a["old"] != a["new"]}
    assert "artifacts/sft/model" in changed and {"curate", "synth", "sft"} <= set(receipt["ran"])
    assert (root/"data/aa/chats.jsonl").read_bytes().split(b"\n") == [b"", *lines[1:]]
    assert len(before.splitlines()) == len(table.read_bytes().splitlines()) + 1 and set(table.read_bytes().splitlines()) < set(before.splitlines())
    assert receipt["proof"]["paths"] == receipt["proof"]["ids"] == receipt["proof"]["ngrams"] == 0 < receipt["proof"]["before"]["ids"]
    left = [r["id"] for r in read_jsonl(root/"artifacts/synth/rows/sft.jsonl")]
    assert f"own:{chat}" not in left and "own:aa/chats.jsonl#2" in left
