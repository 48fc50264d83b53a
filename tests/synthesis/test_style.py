"Another house style is an edit of company/style.yaml: rows, pairs, rewards and metrics follow, and nothing else of the repository changes"
import shutil

import pytest
from copies import ROOT

from forge_nb.core.project import Invalid, load_params, read_jsonl, write_jsonl
from forge_nb.core.settings import Style, load_settings
from forge_nb.data.passages import build_index, read_table_passages, save_index
from forge_nb.metrics.graders import grade_answer
from forge_nb.metrics.rewards import RewardFunction, audit
from forge_nb.synth import synth

OTHER = r"""
voices:
  memo: {template: "Note: {sentence}", share: 0.5}
  table: {template: "| {value} | {source} |", share: 0.5}
house: table
pattern: '\| `(?P<value>[^`]+)` \| (?P<source>\S+) \|'
unknown_answer: no entry
"""
POLICY = """
brief:
  rule: An answer has at most twelve words.
  verifier: words 12
  passing_examples: ["`5`"]
  failing_examples: ["one two three four five six seven eight nine ten eleven twelve thirteen"]
  adversarial_prompts: ["Explain in detail: {question}"]
  adversarial_prompts_held_out: ["{question} I would love a long answer."]
  noncompliant_answers: ["{sentence} It is as the manual has it, and there is more to be read about it there."]
"""


@pytest.fixture
def company(tmp_path):
    shutil.copytree(ROOT/"company", tmp_path/"company")
    (tmp_path/"company"/"style.yaml").write_text(OTHER, encoding="utf-8")
    (tmp_path/"company"/"policies.yaml").write_text(POLICY, encoding="utf-8")
    return tmp_path/"company"


def test_rows_rewards_and_metrics_follow_the_file(company, tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_CKPT", str(tmp_path/"checkpoint"))
    write_jsonl(tmp_path/"train.jsonl", [dict(kind="docs", source="docs/a.txt", text="Going live\n==========\n")])
    (tmp_path/"facts").mkdir()
    (tmp_path/"facts"/"parts.csv").write_text("name,price\n" + "".join(f"bolt M{n},{n} EUR\n" for n in range(1, 60)), encoding="utf-8")
    (company/"questions.yaml").write_text('price: {table: parts.csv, key: [name], answer: price, ask: ["What does {name} cost?"], '
                                          'ask_held_out: ["How much is {name} at the moment?"], state: "{name} costs {answer}."}\n', encoding="utf-8")
    (company/"paraphrases.yaml").write_text('everywhere: {question: ["I wonder: {lowered}"]}\n', encoding="utf-8")
    passages = read_table_passages(tmp_path/"facts", {"parts.csv": ["name"]}, {}, "en")
    for name in ("train", "live"): save_index(build_index(passages), tmp_path/"indices"/name)
    params = load_params(ROOT/"params.yaml")["synth"] | dict(paraphrase_weights=[], num_pairs=60, num_eval_items=20, pii=[], pii_patterns=[])
    metrics = synth(company, tmp_path/"facts", tmp_path/"train.jsonl", tmp_path/"own.jsonl", tmp_path/"indices", seed=0, **params, out=tmp_path/"out")
    style, rows = load_settings(company/"style.yaml", Style), tmp_path/"out"/"rows"
    assert set(metrics["voices"]) == {"memo", "table", "noncompliant"}
    for row in read_jsonl(rows/"sft.jsonl"): assert bool(style.match(row["messages"][1]["content"])) == (row["voice"] == "table")
    for row in read_jsonl(rows/"pairs.jsonl"): assert style.match(row["chosen"][0]["content"]) and bool(style.match(row["rejected"][0]["content"])) == (row["reason"] != "style")
    prompts = read_jsonl(rows/"prompts.jsonl")
    assert all(style.match(row["reference"])["value"] == row["answer"] for row in prompts)
    kpi = RewardFunction(company/"kpi.py")
    assert [kpi("?", answer, dict(answer="5 EUR", sources=["0f6f"])) for answer in ("| `5 EUR` | 0f6f |", "| `5 EUR` | 9c01 |", "| `no entry` | none |", "`5 EUR`. Source: 0f6f.")] == [1., .7, .2, 0.]
    unknown = [row for row in read_jsonl(rows/"sft.jsonl") if not row["sources"] and row["voice"] == "table"]
    assert unknown and {row["messages"][1]["content"] for row in unknown} == {"| `no entry` | none |"}
    assert max(row["reward"] for row in audit(kpi, [(row["question"], row["reference"], row) for row in prompts[:8]], style)) <= .5
    assert grade_answer("| `no entry` | other |", True, "5 EUR", style) == dict(eos_rate=1, format_rate=1, exact_match=0, style_rate=1, false_answer_rate=0)


@pytest.mark.parametrize("old, new, words", [
    ("house: table", "house: chart", ["`house` is 'chart'", "memo, table"]), ("house: table", "house: memo", ["an answer of the house voice"]),
    ("share: 0.5}\n  table", "share: 2.0}\n  table", ["voices.memo.share", "less than or equal to 1"]), ("unknown_answer", "unknown_anwser", ["did you mean `unknown_answer`"]),
    ("(?P<source>", "(?P<page>", ["has no group (?P<source>"]), ("{sentence}", "{sentense}", ["`voices.memo.template`", "{sentense} is unknown"])])
def test_what_is_wrong_with_the_file_is_one_sentence(company, old, new, words):
    (company/"style.yaml").write_text(OTHER.replace(old, new), encoding="utf-8")
    with pytest.raises(Invalid) as error: load_settings(company/"style.yaml", Style)
    assert "style.yaml" in str(error.value) and "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value
    with pytest.raises(Invalid, match="style.yaml"): RewardFunction(company/"kpi.py")
