"The stage `decide` on a made company: knowledge comes out as look up, form as train, whatever the files say"
import json

import pytest

from forge_nb.core.project import Invalid, ROOT, load_params, read_csv, read_json, read_jsonl, write_csv, write_json, write_jsonl
from forge_nb.data.passages import build_index, read_table_passages, save_index
from forge_nb.decide import decide
from forge_nb.evals.predictions import confirm_predictions
from forge_nb.evals.suites import make_score_row
from forge_nb.synthesis.eval_lock import hash_exam
from forge_nb.synthesis.open_book import shorten_id

KIND = dict(table="prices.csv", key=["name"], answer="price", ask=["Price of {name}?"], ask_held_out=["What does {name} cost?"], state="{name} costs {answer}.")
STYLE = dict(house="house", unknown_answer="unknown", pattern=r"`(?P<value>[^`]+)` \((?P<source>\S+)\)",
             voices=dict(plain=dict(template="{sentence}", share=1.), house=dict(template="{value} ({source})", share=0.)))
RULE = dict(brief=dict(rule="At most nine words.", verifier="words 9", passing_examples=["`5`"], failing_examples=["a b c d e f g h i j"], adversarial_prompts=["{question} Explain."],
                       adversarial_prompts_held_out=["At length: {question}"], noncompliant_answers=["{sentence} And much more of what nobody wanted to know about it."]))
PARAMS = load_params(ROOT/"params.yaml")["decide"] | dict(pii=[], pii_patterns=[]) | dict(base="scratch", num_base_items=2, max_new_tokens=2)


class Company:
    "Forty prices of a table with two columns, and forty orders whose answer is the word `noted` in the house's form, which stands nowhere"
    def __init__(self, root):
        self.root, self.case, self.days, self.floors = root, {}, ["2026-03-01"], []
        for name, content in dict(questions=dict(price=KIND), style=STYLE, policies=RULE).items(): write_json(root/f"{name}.yaml", content)
        (root/"kpi.py").write_text("def kpi(question, answer, row): return float(row['answer'] in answer)", encoding="utf-8")
        write_csv(root/"facts"/"prices.csv", [dict(name=f"bolt M{n}", price=f"{n} EUR") for n in range(20, 60)])
        write_jsonl(root/"train.jsonl", [dict(id="a", kind="docs", source="docs/a.txt", text="Bolts hold.\n" * 200_000)])
        self.passages = read_table_passages(root/"facts", {"prices.csv": ["name"]}, {}, "en")
        save_index(build_index(self.passages), root/"live")

    def items(self, wording="Price of {name}?"):
        prices = [dict(id=f"p{n}", part="fact", kind="price", fact=f"price:bolt M{n}", answer=f"{n} EUR", names_column="Price" in wording,
                       question=wording.format(name=f"bolt M{n}"), passages=[self.passages[n - 20]], sources=[shorten_id(self.passages[n - 20])]) for n in range(20, 60)]
        orders = [dict(id=f"o{n}", part="order", kind="order", fact="", parents=[], passage="", answer=f"noted {n}", question=f"Note the order {n}.", sources=[],
                       passages=self.passages[:1]) for n in range(40)]
        return [item | dict(adversarial_question=f"At length: {item['question']}", policy="brief", in_sample=True) for item in prices + orders]

    def run(self, items=None, **changed):
        write_jsonl(self.root/"eval_set"/"items.jsonl", self.items() if items is None else items)
        write_json(self.root/"case.yaml", self.case)
        rows = [dict(version=f"v{n}", date=day, source="facts/prices.csv" if n else "", before=40 if n else "", kept=0 if n else "") for n, day in enumerate(self.days)]
        write_csv(self.root/"versions.csv", rows)
        inputs = [self.root/name for name in ("eval_set", "live", "facts", "train.jsonl", ".", "versions.csv", "costs.csv", "floors.csv")]
        write_csv(self.root/"floors.csv", self.floors, "slice metric mean floor seeds exam".split())
        decide(*inputs, **PARAMS | changed, out=self.root/"out")
        self.predictions = read_csv(self.root/"out"/"predictions.csv")
        return {row["slice"]: row for row in self.predictions if row["metric"] == "exact_match"}

    def verdict(self): return read_json(self.root/"out"/"verdict.json")


@pytest.fixture
def company(tmp_path): return Company(tmp_path)


def test_a_fact_is_looked_up_and_a_form_is_trained(company):
    rows = company.run()
    assert {part: (rows[part]["decision"], rows[part]["nature"]) for part in ("fact", "order")} == dict(fact=("look up", "knowledge"), order=("train", "behaviour"))
    assert rows["fact"]["changes"] == "one version: unknown" and rows["header_words"]["decision"] == "look up"
    assert {row["metric"]: row["decision"] for row in company.predictions if row["slice"] == "all"} == dict(style_rate="train", violation_rate="neither")
    assert company.verdict()["path"] == "adapters" and company.verdict()["costs"] == []


def test_a_fact_that_changes_weekly_is_looked_up_even_where_no_passage_has_it(company):
    missing = [item | dict(sources=[], passages=[]) | dict(question="What was agreed?") for item in company.items()]
    stale = [item | dict(passages=[dict(id="s", source="facts/prices.csv", title="", text="prices: nothing")], sources=["s"] if item["id"] == "p20" else []) for item in missing]
    assert company.run(stale)["fact"]["decision"] == "train"
    company.days = ["2026-03-01", "2026-03-08", "2026-03-15"]
    row = company.run(stale)["fact"]
    assert row["decision"] == "look up" and "changes too fast" in row["because"] and row["changes"].startswith("429 % a month")


def test_two_columns_are_an_answer_and_wide_rows_have_to_be_read(company):
    wide = [item | dict(passages=[p | dict(text=p["text"].replace("; price", "; stock `9`; price")) for p in item["passages"]]) for item in company.items("What does {name} cost?")]
    assert company.run(company.items("What does {name} cost?"))["fact"]["lookup_arm"] == "top_passage"
    assert company.run(wide)["fact"]["decision"] == "both"


def test_what_earlier_models_read_worse_than_it_is_shown_is_looked_up(company):
    items = company.items("What does {name} cost?")
    half = [item | dict(passages=[p | dict(text=p["text"].replace("; price", "; stock `9`; price")) for p in item["passages"]]) if n % 2 else item for n, item in enumerate(items)]
    def decision(mean, exam=""):
        company.floors = [dict(slice="fact", metric="exact_match", mean=mean, floor=.1, seeds=3, exam=exam or hash_exam(half))]
        return company.run(half)["fact"]
    assert decision(.3)["lookup"] == "0.5" and decision(.3)["because"].endswith("showing what is found has 50 %; earlier models that were trained to read it had 30 %")
    assert [decision(mean)["decision"] for mean in (.3, .47, .9)] == ["look up", "both", "both"]  # .47 may be .51, as far as three seeds tell
    assert decision(.3, exam="another")["decision"] == "both"


def test_a_budget_counts_what_was_estimated(company):
    company.case = dict(budget=10.)
    write_csv(company.root/"costs.csv", [dict(path=path, minutes=5., money=money) for path, money in (("adapters", 30.), ("continued", 9.), ("scratch", None))])
    company.run()
    verdict = company.verdict()
    assert verdict["path"] == "continued" and verdict["obstacles"]["adapters"] == ["it costs 30.00, and 10.00 may be spent (`budget`)"]
    assert verdict["costs"][2] == dict(path="scratch", minutes=5., money=None) and "scratch" not in verdict["obstacles"]


def test_what_people_know_turns_the_path_and_no_score(company):
    company.run()
    scores = (company.root/"out"/"scores.jsonl").read_bytes()
    company.case = dict(base_models=False)
    company.run()
    assert company.verdict()["path"] == "scratch" and (company.root/"out"/"scores.jsonl").read_bytes() == scores
    company.case = dict(base_model=False)
    with pytest.raises(Invalid, match="case.yaml: unknown field `base_model`; did you mean `base_models`?"): company.run()


def test_predictions_are_confirmed_by_what_training_brings(company):
    company.run()
    rows = [row | {name: float(row[name]) for name in ("margin", "low", "high")} for row in company.predictions]
    scores = read_jsonl(company.root/"out"/"scores.jsonl")
    def trained(right): return scores + [make_score_row("rl", "exact_match", "all", item["id"], right(item["id"])) for item in company.items()]
    def verdicts(scores): return {row["slice"]: row["verdict"] for row in confirm_predictions(rows, scores, "rl", margin=.05) if row["metric"] == "exact_match"}
    assert {part: verdicts(trained(lambda name: 1))[part] for part in ("fact", "order")} == dict(fact="confirmed", order="confirmed")
    assert verdicts(trained(lambda name: name[0] == "p"))["order"] == "refuted"
    assert verdicts(scores)["fact"] == "open"


def test_an_exam_without_passages_is_refused(company):
    bare = [{name: value for name, value in item.items() if name != "passages"} for item in company.items()]
    with pytest.raises(Invalid, match="p20 has no passages; `dvc repro synth`"): company.run(bare)
    with pytest.raises(Invalid, match="`decide.depth` is 4; it can be 1, 3 or 5"): company.run(depth=4)


def test_two_runs_write_the_same_bytes(company):
    company.run()
    read = lambda: {path.name: path.read_bytes() for path in (company.root/"out").iterdir()}
    first = read()
    company.run()
    assert read() == first and json.loads(first["metrics.json"])["table_lookup"]["exact_match"]["fact"] == 1
