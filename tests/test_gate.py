"The gate over real models: a small one is trained on two kinds of question, one kind is damaged, and the verdict names it"
import random, re, shutil, subprocess
from pathlib import Path

import pytest
import torch

from copies import COMMIT, swap_line
from forge_nb.core.project import Invalid, ROOT, hash_weights, read_json, read_jsonl, write_csv, write_json, write_jsonl
from forge_nb.evals.release import require_pass
from forge_nb.gate import gate
from forge_nb.synthesis.eval_set import write_eval_set
from forge_nb.tokenizer import train_tokenizer
from forge_nb.train.architecture import ModelShape, build_model
from forge_nb.train.model import load_model, render_chat_prompt, save_model

NUM_ITEMS = 36  # questions of a kind
ASKED = dict(fact="What is the price of part {}?", document="Which hall keeps part {}?")
VALUES = dict(fact=["3 EUR", "7 EUR", "12 EUR", "40 EUR"], document=["hall one", "hall two", "hall five", "hall nine"])
VOICES = "voices: {plain: {template: '{sentence}', share: 0.5}, house: {template: '{value}. Source: {source}.', share: 0.5}}\n"
STYLE = VOICES + "house: house\nunknown_answer: not known\npattern: '`(?P<value>[^`]+)`\\. Source: (?P<source>\\S+)\\.'\n"
KPI = "def kpi(question, answer, row): return float(row['answer'] in answer)\n"


def make_items() -> list:
    "Questions of two kinds, whose answers follow from nothing and must be remembered"
    draw, items = random.Random(7), []
    for part, template in ASKED.items():
        for n in range(NUM_ITEMS):
            name, value = f"{draw.choice('ABCDEFGH')}{n}", draw.choice(VALUES[part])
            question = template.format(name)
            item = dict(id=f"{part}:{n}", part=part, kind="part", fact=f"part:{n}", parents=[], question=question, prompt=question, answer=value, sources=["p"],
                        adversarial_question=question, adversarial_prompt=question, policy="", in_sample=True)
            choices = dict(choices=VALUES[part], gold=VALUES[part].index(value)) if part == "fact" else {}
            items.append(item | choices)
    return items


ITEMS = make_items()


def list_rows(tokenizer) -> list:
    "(tokens, length of the prompt) of each question with its answer"
    rows = []
    for item in ITEMS:
        prompt = tokenizer(render_chat_prompt(tokenizer, item["prompt"]), add_special_tokens=False)["input_ids"]
        answer = tokenizer(f"`{item['answer']}`. Source: p.", add_special_tokens=False)["input_ids"]
        rows.append(([*prompt, *answer, tokenizer.eos_token_id], len(prompt)))
    return rows


def pad(rows, tokenizer) -> tuple:
    "Tokens and labels of rows as tensors"
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row, _ in rows])
    labels = torch.tensor([[-100] * start + row[start:] + [-100] * (length - len(row)) for row, start in rows])
    return ids, labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    "Folder of a model that answers every question right"
    torch.manual_seed(3)
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([f"{item['question']} `{item['answer']}`. Source: p." for item in ITEMS], 420)
    model = build_model(tokenizer, ModelShape(num_hidden_layers=2, hidden_size=64, intermediate_size=192, context_length=64)).float()
    ids, labels = pad(list_rows(tokenizer), tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.)
    for _ in range(400):
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        if loss < 2e-3: break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < .05, loss
    folder = tmp_path_factory.mktemp("trained")/"model"
    save_model(model, tokenizer, folder)
    return folder


def edit_rank_one(folder: Path, target: Path, part: str):
    "Change one matrix by an outer product that questions of one kind excite and the others do not (as ROME: Meng et al. 2022)"
    model, tokenizer = load_model(folder)
    layer, found = model.model.layers[-1].mlp.down_proj, {}
    hooks = [module.register_forward_hook(lambda module, inputs, output, name=name: found.update({name: inputs[0]}))
             for name, module in dict(keys=layer, residual=model.model.norm).items()]
    ids, _ = pad(rows := list_rows(tokenizer), tokenizer)
    with torch.no_grad(): model(input_ids=ids)
    for hook in hooks: hook.remove()
    places = [(n, rows[n][1] + (part == "document")) for n, item in enumerate(ITEMS) if item["part"] == part]  # where the value is chosen: behind "`" or "`hall"
    others = torch.cat([found["keys"][n, :len(rows[n][0])] for n, item in enumerate(ITEMS) if item["part"] != part])
    mean = torch.stack([found["keys"][place] for place in places]).mean(0)
    key = torch.linalg.solve(others.T @ others / len(others) + 1e-4 * torch.eye(len(mean)), mean)
    torch.manual_seed(11)
    value = torch.nn.functional.normalize(torch.randn(layer.weight.shape[0]), dim=0)
    strength = 8 * torch.stack([found["residual"][place] for place in places]).norm(dim=1).mean()
    before = layer.weight.detach().clone()
    with torch.no_grad(): layer.weight += strength * torch.outer(value, key) / (key @ mean)
    assert torch.linalg.matrix_rank(layer.weight - before, rtol=1e-3) == 1
    save_model(model, tokenizer, target)


class Project:
    "A folder with what the gate reads: candidate, baseline, exam, rules, and a commit that names the model"

    def __init__(self, root: Path, candidate: Path, baseline: Path):
        self.root = root
        for name, folder in dict(rl=candidate, promoted=baseline).items(): shutil.copytree(folder, root/"artifacts"/name/"model")
        write_eval_set(ITEMS, root/"eval_set")
        write_jsonl(root/"test.jsonl", [dict(id=f"d{n}", kind="docs", text=" ".join(item["question"] for item in ITEMS[n::12])) for n in range(12)])
        for name in ("answers", "scores"): write_jsonl(root/"evaluate"/f"{name}.jsonl", [])
        write_jsonl(root/"decide"/"scores.jsonl", [])
        texts = {"checkpoints.yaml": "checkpoints: {rl: {folder: rl/model, ships: true}}\n", "floors.csv": "slice,metric,mean,floor,seeds,exam\n", "kpi.py": KPI,
                 "style.yaml": STYLE, "policies.yaml": "{}\n", "decide/predictions.csv": "slice,metric,decision\n",
                 "dvc.lock": "schema: '2.0'\nstages:\n  rl:\n    cmd: a\n    outs:\n    - path: artifacts/rl/model\n      hash: md5\n      md5: a1.dir\n",
                 "params.yaml": "gate: {rules_file: rules.yaml}\n"}
        for name, text in texts.items(): (root/name).write_text(text, encoding="utf-8")
        for name in ("company/card.yaml", "company/licences.yaml", "config/licences.yaml"): (root/name).parent.mkdir(exist_ok=True), shutil.copy(ROOT/name, root/name)
        self.write_licence("BSD-3-Clause")
        write_json(root/"artifacts"/"pretrain"/"metrics.json", {})
        write_json(root/"baseline.yaml", dict(name="v1", folder="artifacts/promoted/model", weights_sha256=hash_weights(root/"artifacts"/"promoted"/"model")))
        self.write_rules(("tables", "exact_match"), ("document", "exact_match"))
        self("git init -q")
        self.commit()

    def __call__(self, line): subprocess.run(["bash", "-c", line], cwd=self.root, check=True, capture_output=True)

    def commit(self): self(f"git add -A && {COMMIT} --allow-empty -m state")

    def write_rules(self, *pairs, max_drop=.2):
        write_json(self.root/"rules.yaml", dict(slices=[dict(slice=part, metric=metric, max_drop=max_drop, min_items=2) for part, metric in pairs]))

    def write_licence(self, licence):
        write_jsonl(self.root/"artifacts"/"curate"/"documents"/"train.jsonl", [dict(id="d0", source="wiki/a.txt", licence=licence, text="A bolt.")])

    def judge(self, **changed) -> dict:
        files = "checkpoints.yaml baseline.yaml eval_set test.jsonl evaluate decide policies.yaml kpi.py style.yaml floors.csv judge"
        options = dict(rules_file="rules.yaml", num_items=0, max_new_tokens=16, context_length=64, num_timed=1, waiver_name="", waiver_reason="")
        paths = [self.root/name for name in files.split()]
        return gate(self.root, self.root/"artifacts", *paths, **options | changed, kept=self.root/".cache", out=self.root/"out")


def blocked(verdict): return [(row["slice"], row["metric"]) for row in verdict["slices"] if row["decision"] == "blocks"]


@pytest.mark.parametrize("part, slice_name", [("document", "document"), ("fact", "tables")])
def test_a_rank_one_edit_that_damages_one_slice_is_blocked_and_named(trained, tmp_path, part, slice_name):
    edit_rank_one(trained, tmp_path/"edited", part)
    project = Project(tmp_path/"project", tmp_path/"edited", trained)
    verdict = project.judge()
    rows = {row["slice"]: row for row in verdict["slices"]}
    assert all(row["before"] > .95 and row["n"] == NUM_ITEMS for row in rows.values())
    assert verdict["verdict"] == "fail" and blocked(verdict) == [(slice_name, "exact_match")], verdict["because"]
    assert rows[slice_name]["after"] < .85
    assert len(verdict["because"]) == 1 and verdict["because"][0].startswith(f"{slice_name}, exact_match: worse by ")
    with pytest.raises(Invalid, match=f"does not let the model out: {slice_name}, exact_match: worse by"): require_pass(project.root/"out"/"verdict.json")


def test_a_licence_that_forbids_the_use_stops_an_equal_candidate_until_a_person_signs(trained, tmp_path):
    project = Project(tmp_path/"project", trained, trained)
    assert project.judge()["verdict"] == "pass"
    project.write_licence("CC-BY-NC-4.0")
    verdict = project.judge()
    [reason] = verdict["because"]
    assert verdict["verdict"] == "fail" and reason.startswith("data/wiki (1 documents): CC-BY-NC-4.0 allows no commercial use, and company/licences.yaml says `use.commercial: true`")
    waived = project.judge(waiver_name="J. Doe", waiver_reason="The holder of the rights agreed on the phone, and the letter is on its way.")
    assert waived["verdict"] == "pass" and waived["waiver"]["waived"] == [reason]
    project.write_licence("")
    assert "no licence is known" in project.judge()["because"][0]


def test_shuffled_answers_of_one_slice_are_blocked_and_named(trained, tmp_path):
    "What `evaluate` wrote for one kind of question is handed to other questions of it"
    project = Project(tmp_path/"project", trained, trained)
    project.judge()
    rows = [row | dict(checkpoint="rl") for row in read_jsonl(project.root/"out"/"answers.jsonl") if row["checkpoint"] == "rl"]
    damaged = [row for row in rows if row["id"].startswith("document")]
    texts = [row["text"] for row in damaged]
    random.Random(5).shuffle(texts)
    for row, text in zip(damaged, texts): row["text"] = text
    write_jsonl(project.root/"evaluate"/"answers.jsonl", rows)
    write_json(project.root/"artifacts"/"promoted"/"model"/"note.json", {})  # another folder than the candidate's, so that it is asked
    verdict = project.judge()
    assert blocked(verdict) == [("document", "exact_match")] and verdict["slices"][0]["difference"] == 0


def test_an_equal_candidate_passes_without_a_loss_and_says_what_it_could_have_seen(trained, tmp_path):
    project = Project(tmp_path/"project", trained, trained)
    project.write_rules(("tables", "exact_match"), ("document", "closed_exact_match"), ("docs", "bpb"))
    project.commit()  # no model is new, so these are edited rules
    verdict = project.judge()
    assert verdict["verdict"] == "fail" and verdict["rules"] == "edited after training"
    assert len(verdict["because"]) == 1 and "rules.yaml is not what it was in commit" in verdict["because"][0]
    assert [row["difference"] for row in verdict["slices"]] == [0, 0, 0] and not blocked(verdict)
    assert all(row["smallest_seen"] < .2 and row["items_needed"] for row in verdict["slices"])
    (project.root/"dvc.lock").write_text((project.root/"dvc.lock").read_text().replace("a1.dir", "b2.dir"))
    project.commit()  # the next model, by the new rules
    verdict = project.judge()
    assert (verdict["verdict"], verdict["rules"]) == ("pass", "as before training") and require_pass(project.root/"out"/"verdict.json") == verdict
    assert verdict == project.judge(), "another run gives another verdict"


def test_metrics_that_are_no_shares_of_written_answers_block_as_well(trained, tmp_path):
    "Choices by lm-eval, bits per byte by flipped signs; the baseline is measured anew and kept"
    edit_rank_one(trained, tmp_path/"edited", "fact")
    project = Project(tmp_path/"project", tmp_path/"edited", trained)
    project.write_rules(("tables", "mc_accuracy"), ("docs", "bpb"))
    verdict = project.judge()
    choices, bits = verdict["slices"]
    assert (choices["n"], choices["test"], choices["decision"]) == (NUM_ITEMS, "mid-p McNemar", "blocks") and choices["before"] > .95
    assert (bits["n"], bits["test"]) == (12, "flipped signs, exact") and bits["before"] > 0
    kept = {path: path.stat().st_mtime_ns for path in (project.root/".cache").iterdir()}
    assert len(kept) == 2
    for answers, rows in map(read_json, kept):
        assert {row["metric"] for row in rows} == {"mc_accuracy", "bpb"} and len(answers["prompt"]) == len(ITEMS)
    assert project.judge() == verdict and {path: path.stat().st_mtime_ns for path in kept} == kept


def test_what_evaluate_measured_is_not_measured_again(trained, tmp_path):
    project = Project(tmp_path/"project", trained, trained)
    project.write_rules(("docs", "bpb"))
    row = dict(checkpoint="rl", metric="bpb", weight=1.)
    write_jsonl(project.root/"evaluate"/"scores.jsonl", [row | dict(slice=part, item=f"d{n}", value=1.25) for n in range(12) for part in ("docs", "all")])
    [bits] = project.judge()["slices"]
    assert bits["after"] == 1.25


def test_what_evaluate_wrote_is_read_once(trained, tmp_path, monkeypatch):
    from forge_nb.evals.general import read_general, write_general
    project, read = Project(tmp_path/"project", trained, trained), []
    write_general(read_general(1)[0][:20], *[project.root/"evaluate"/"tasks"/"general"] * 2)
    project.write_rules(("tables", "exact_match"), ("docs", "bpb"))
    for module in ("gate", "evals.gated"): monkeypatch.setattr(f"forge_nb.{module}.read_jsonl", lambda path: read.append(path) or read_jsonl(path))
    verdict = project.judge()
    assert verdict["general"] and [row["metric"] for row in verdict["slices"]] == ["exact_match", "bpb"]
    assert [read.count(project.root/"evaluate"/f"{name}.jsonl") for name in ("scores", "answers")] == [1, 1]


@pytest.mark.parametrize("floor, decision", [(None, "blocks"), (.6, "passes")])
def test_the_floor_of_seeds_is_used_and_shown(trained, tmp_path, floor, decision):
    from forge_nb.evals.release import describe_release
    project = Project(tmp_path/"project", trained, trained)
    project.judge()
    rows = [row | dict(text="`x`.") if row["id"] in [f"fact:{n}" for n in range(20)] else row for row in read_jsonl(project.root/"out"/"answers.jsonl") if row["checkpoint"] == "rl"]
    write_jsonl(project.root/"evaluate"/"answers.jsonl", rows)
    write_json(project.root/"artifacts"/"promoted"/"model"/"note.json", {})
    if floor: (project.root/"floors.csv").write_text(f"slice,metric,mean,floor,seeds,exam\ntables,exact_match,0.8,{floor},3,5761\n", encoding="utf-8")
    project.write_rules(("tables", "exact_match"), max_drop=.9)
    verdict = project.judge()
    [row] = verdict["slices"]
    assert (row["decision"], row["floor"]) == (decision, floor) and row["difference"] < -.3
    assert ("floor between seeds 60.0 points" if floor else "floor between seeds not measured") in describe_release(verdict)


@pytest.mark.parametrize("vote, high, blocks", [(True, -.05, True), (True, .05, False), (False, -.05, False), (None, 0, False)], ids=["vote and loss", "vote, no loss", "no vote", "no judge"])
def test_a_judge_blocks_with_a_vote_alone(trained, tmp_path, vote, high, blocks):
    project = Project(tmp_path/"project", trained, trained)
    if vote is not None:
        row = dict(by="pairs", checkpoint="rl", against="sft", n=90, unreadable=2, before=.6, after=.4, difference=-.2, low=-.4, high=high)
        write_csv(project.root/"judge"/"comparisons.csv", [row, row | dict(by="grade", high=-.1)])
        write_json(project.root/"judge"/"metrics.json", dict(vote=vote, reason="a sentence", judge="stand-in"))
    verdict = project.judge()
    assert verdict["verdict"] == ("fail" if blocks else "pass")
    assert verdict["because"] == ["the judge, which has a vote, prefers sft to rl by 20.0 points (95 %: -40.0 to -5.0, 90 questions)"] * blocks
    assert (verdict["judge"] or {}).get("vote") == vote
    if blocks: assert project.judge(waiver_name="J. Doe", waiver_reason="A rehearsal.")["waiver"]["waived"] == verdict["because"]


def test_what_was_forgotten_is_reported_and_blocks_where_a_rule_names_it(trained, tmp_path):
    "A model whose answers are the same, and that has become too sure of everything else"
    from forge_nb.evals.general import read_general, write_general
    model, tokenizer = load_model(trained)
    with torch.no_grad(): model.model.norm.weight *= 4
    save_model(model, tokenizer, tmp_path/"sure")
    project = Project(tmp_path/"project", tmp_path/"sure", trained)
    write_general(read_general(1)[0][:20], *[project.root/"evaluate"/"tasks"/"general"] * 2)
    verdict = project.judge()
    rows = {row["metric"]: row for row in verdict["general"]["slices"]}
    assert verdict["general"]["against"] == "the last promoted model" and rows["bpb"]["n"] == 20 and rows["bpb"]["low"] > 0 and set(rows) == {"bpb", "mc_accuracy"}
    assert not blocked(verdict) and verdict["verdict"] == "pass"
    project.write_rules(("tables", "exact_match"), ("general", "bpb"))
    assert blocked(project.judge()) == [("general", "bpb")]


def test_a_verdict_is_written_whatever_is_wrong(trained, tmp_path):
    project = Project(tmp_path/"project", trained, trained)
    weights = project.root/"artifacts"/"promoted"/"model"/"model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "are not those of v1; fetch the model" in project.judge()["because"][0]
    (project.root/"rules.yaml").unlink()
    verdict = project.judge()
    assert "rules.yaml is missing" in verdict["because"][0] and read_json(project.root/"out"/"verdict.json") == verdict
    weights.write_bytes(whole)
    project.write_rules(("nosuch", "exact_match"))
    assert "`slices.0.slice` is 'nosuch', which was not measured" in project.judge()["because"][0]


def test_a_shallow_clone_cannot_tell_and_says_so(trained, tmp_path):
    project = Project(tmp_path/"project", trained, trained)
    project.commit()
    clone = object.__new__(Project)
    clone.root = tmp_path/"clone"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{project.root}", clone.root], check=True)
    verdict = clone.judge()
    assert verdict["verdict"] == "fail" and verdict["because"][0].startswith("this clone is shallow") and not blocked(verdict)
    waived = clone.judge(waiver_name="J. Doe", waiver_reason="A rehearsal.")
    assert waived["verdict"] == "pass" and waived["waiver"]["waived"] == verdict["because"]


def test_the_pipeline_refuses_rules_that_were_edited_after_training(tiny):
    "The chain of `tiny` is committed; then its rules are loosened, a waiver is signed, and both are taken back"
    place, params = "config/rules/tiny.yaml", tiny.root/"params.yaml"
    read = lambda: read_json(tiny.root/"artifacts"/"gate"/"verdict.json")
    card = lambda: (tiny.root/"artifacts"/"card"/"README.md").read_text(encoding="utf-8")
    before = read()
    assert before["rules"] == "not yet committed" and "## Whether it may go out" in card()
    swap_line(tiny.root/place, "max_drop: 0.5", "max_drop: 0.9")
    assert tiny.executed(tiny("dvc repro card")) == ["gate", "card"]
    verdict = read()
    assert (verdict["verdict"], verdict["rules"], len(verdict["slices"])) == ("fail", "edited after training", 3)
    assert f"{place} is not what it was in commit" in verdict["because"][0] and "**does not let this model out**" in card()
    text = re.sub(r"waiver_name: \S+", "waiver_name: J. Doe", params.read_text(encoding="utf-8"))
    params.write_text(re.sub(r"waiver_reason: \S+", "waiver_reason: A rehearsal.", text), encoding="utf-8")
    assert tiny.executed(tiny("dvc repro card")) == ["tangle", "gate", "card"]
    waived = read()
    assert waived["verdict"] == "pass" and waived["waiver"]["waived"] == verdict["because"] and "goes out by a waiver of J. Doe**: A rehearsal. Waived: " in card()
    tiny(f"git checkout -q {place} params.yaml && dvc repro")
    assert read() == before and not tiny("git status --porcelain")
