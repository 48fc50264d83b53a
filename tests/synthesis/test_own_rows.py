"Own rows are used, or named with the reason and the parameter that would use them; a pair of two judged answers is both of them"
import json
from pathlib import Path

import pytest

from forge_nb.core.project import ROOT, read_jsonl, write_jsonl
from forge_nb.core.settings import Style, load_settings
from forge_nb.dpo import UNPAIRED, WITHOUT_VALUE, describe_left_out, fit_own_rows
from forge_nb.metrics.rewards import RewardFunction
from forge_nb.reward import read_reward_pairs
from forge_nb.rl import build_prompts, find_scorable_prompts, make_kpi_reward
from forge_nb.rlhf import read_fitting_prompts
from forge_nb.synthesis.own_rows import make_own_rows
from forge_nb.tokenizer import train_tokenizer

SAID = "the bolt costs `3 EUR`. Source: parts/list. Is valve open? Yes, it is. No."


def say(role: str, text: str) -> list: return [dict(role=role, content=text)]


def judged(n: int, question: str, text: str, label: bool) -> dict:
    return dict(id=f"k{n}", source=f"support/judged.jsonl#{n}", kind="kto", record=dict(prompt=say("user", question), completion=say("assistant", text), label=label))


@pytest.fixture
def rows(tmp_path) -> Path:
    "Folder with rows as synth writes them: two pairs, a long one, two judged answers, a long one, prompts"
    found = [judged(1, "Is valve 1 open?", "Yes.", True), judged(2, "Is valve 1 open?", "No.", False), judged(3, "Is valve 2 open?", "Yes.", True), judged(4, "Is valve 3 open?", "No.", False),
             judged(5, "Is valve 4 open?", "No " * 400, False), judged(6, "Is valve 5 open?", "Yes.", False), judged(7, "Is valve 5 open?", "Yes " * 400, True)]
    found += [dict(id=f"p{n}", source=f"asked.txt#{n}", kind="prompts", record=dict(prompt=say("user", text))) for n, text in enumerate(["Is valve 9 open?", "Is valve open? " * 300])]
    write_jsonl(tmp_path/"train.jsonl", found)
    for name, own in make_own_rows(tmp_path/"train.jsonl", 0).items(): write_jsonl(tmp_path/f"{name}.jsonl", own)
    for name in ("pairs", "policy_pairs", "prompts"): write_jsonl(tmp_path/f"{name}.jsonl", [])
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(): return train_tokenizer([SAID] * 9, 300)


@pytest.fixture
def base(tokenizer, tmp_path) -> Path:
    "A folder with the tokenizer and the length of a context, all that is read to measure rows"
    tokenizer.save_pretrained(tmp_path/"base")
    (tmp_path/"base"/"config.json").write_text(json.dumps(dict(model_type="qwen3", max_position_embeddings=128)), encoding="utf-8")
    return tmp_path/"base"


def test_both_rows_of_a_pair_are_its_parents(rows):
    "So that whereis and forget find it from either"
    parents = [row["parents"] for row in read_jsonl(rows/"own_pairs.jsonl")]
    assert parents == [["support/judged.jsonl#1", "support/judged.jsonl#2"], ["support/judged.jsonl#7", "support/judged.jsonl#6"]]


@pytest.mark.parametrize("method, reasons", [
    ("dpo", {"3": UNPAIRED, "4": UNPAIRED, "5": "longer than 100 tokens", "7": "longer than 100 tokens"}), ("kto", {"5": "longer than 100 tokens", "7": "longer than 100 tokens"}),
    ("online", {"1": WITHOUT_VALUE, "3": UNPAIRED, "4": UNPAIRED, "5": "longer than 100 tokens", "7": "longer than 100 tokens"})])
def test_dpo_names_each_row_that_it_leaves_out(rows, tokenizer, method, reasons):
    used, left_out = fit_own_rows(read_jsonl(rows/"own_pairs.jsonl"), rows/"pairs.jsonl", tokenizer, method, 100)
    assert {row["parents"][0].rpartition("#")[2]: row["reason"] for row in left_out} == reasons
    assert all({*row} == {"id", "parents", "reason"} for row in left_out)
    named = {parent for row in [*used, *left_out] for parent in row["parents"]}
    assert len(named) == 7 and all(f"{n}" in describe_left_out(left_out) for n in {[*reasons.values()].count(reason) for reason in reasons.values()})


def test_reward_and_rlhf_name_what_is_too_long(rows, base):
    pairs, left_out = read_reward_pairs(rows, base, 512)
    assert [row["parents"][0] for row in left_out] == ["support/judged.jsonl#7"] and len(pairs) == 1 and "128 tokens" in left_out[0]["reason"]
    prompts, left_out = read_fitting_prompts(rows/"prompts.jsonl", base, 32)
    assert [row["parents"] for row in left_out] == [["asked.txt#1"]] and len(prompts) == 1 and "96 tokens" in left_out[0]["reason"]


FUNCTIONS = dict(short=("float(len(answer) < 9)", True), polite=("float('please' in answer)", True), asked=("float(question[:3] in answer)", True),
                 right=("float(row['answer'] in answer)", False), source=("float(any(s in answer for s in row['sources']))", False), late=("0. if '`' not in answer else float(row['answer'] in answer)", False))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_own_prompts_reach_rl_where_its_reward_can_score_them(rows, tmp_path, name):
    source, can_score = FUNCTIONS[name]
    (tmp_path/"kpi.py").write_text(f"def kpi(question, answer, row): return {source}\n", encoding="utf-8")
    own, reward = read_jsonl(rows/"own_prompts.jsonl")[:1], RewardFunction(tmp_path/"kpi.py")
    found = find_scorable_prompts(reward, own, load_settings(ROOT/"company"/"style.yaml", Style))
    assert found == (own if can_score else [])
    fact = dict(question="What is X?", prompt="What is X?", adversarial_prompt="What is X!", answer="5", sources=["a"], wrong="6", reference="`5`")
    prompts = build_prompts([*found, fact], 2)
    assert prompts[0]["prompt"] == (own[0]["prompt"] if can_score else say("user", "What is X?"))
    pay = make_kpi_reward(reward, 0)  # as trl calls it: a column that a row lacks is None
    columns = {key: [prompt.get(key) for prompt in prompts] for key in fact if key != "prompt"}
    assert len(pay([], [say("assistant", "`5`")] * 2, [[0]] * 2, **columns)) == 2


def test_the_default_company_pays_for_facts_alone(rows):
    own = read_jsonl(rows/"own_prompts.jsonl")
    assert find_scorable_prompts(RewardFunction(ROOT/"company"/"kpi.py"), own, load_settings(ROOT/"company"/"style.yaml", Style)) == []
