"The exam as `synth` makes it: the company's own questions, a review that outlives regeneration, and rows that no verdict changes"
import csv, shutil

import pytest

from forge_nb.core.project import ROOT, Invalid, load_params, read_jsonl, write_jsonl
from forge_nb.data.passages import build_index, read_table_passages, save_index
from forge_nb.evals.suites import list_slices, score_answers
from forge_nb.core.settings import Style, load_settings
from forge_nb.metrics.rewards import RewardFunction
from forge_nb.synth import synth
from forge_nb.synthesis.eval_set import hash_item
from forge_nb.synthesis.review import append_review, read_review


class Shop:
    "A company that sells bolts, with a small exam of its own"
    def __init__(self, root):
        self.root, self.company = root, root/"company"
        shutil.copytree(ROOT/"company", self.company)
        shutil.rmtree(self.company/"eval_sets")
        (self.company/"questions.yaml").write_text('price: {table: parts.csv, key: [name], answer: price, ask: ["What does {name} cost?"], '
                                                   'ask_held_out: ["How much is {name} at the moment?"], state: "{name} costs {answer}."}\n', encoding="utf-8")
        (self.company/"paraphrases.yaml").write_text('everywhere: {question: ["I wonder: {lowered}"]}\n', encoding="utf-8")
        write_jsonl(self.company/"eval_sets"/"shop.jsonl", [dict(question="Price of the bolt M7, please?", answers=["7 EUR", "7 euros"]), dict(question="Is there a bolt of gold?", rubric="says no")])
        write_jsonl(self.company/"eval_sets"/"out_of_domain"/"world.jsonl", [dict(question="Which is the capital of Portugal?", answer="Lisbon")])
        write_jsonl(root/"train.jsonl", [dict(kind="docs", source="docs/a.txt", text="Going live\n==========\n")])
        self.review, self.changed = self.company/"eval_review.csv", {}

    def run(self, raised=0):
        table = self.root/"facts"/"parts.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("name,price\n" + "".join(f"bolt M{n},{n + raised} EUR\n" for n in range(1, 60)), encoding="utf-8")
        passages = read_table_passages(self.root/"facts", {"parts.csv": ["name"]}, {}, "en")
        for name in ("train", "live"): save_index(build_index(passages), self.root/"indices"/name)
        params = load_params(ROOT/"params.yaml")["synth"] | dict(paraphrase_weights=[], num_pairs=60, num_eval_items=20, pii=[], pii_patterns=[]) | self.changed
        self.metrics = synth(self.company, self.root/"facts", self.root/"train.jsonl", self.root/"own.jsonl", self.root/"indices", seed=0, **params, out=self.root/"out")
        self.items = {item["id"]: item for item in read_jsonl(self.root/"out"/"eval_set"/"items.jsonl")}
        self.left_out = read_jsonl(self.root/"out"/"eval_set"/"left_out.jsonl")
        return {path.name: path.read_bytes() for path in sorted((self.root/"out"/"rows").iterdir())}

    def judge(self, **verdicts):
        rows = read_review(self.review)
        for row in rows: row.update(verdicts.get(row["id"], {}))
        with open(self.review, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_CKPT", str(tmp_path/"checkpoint"))
    return Shop(tmp_path)


def test_own_questions_are_asked_beside_the_others(shop):
    shop.run()
    own = {item["question"]: item for item in shop.items.values() if item["part"] == "own_exam"}
    price, gold, capital = (own[question] for question in ("Price of the bolt M7, please?", "Is there a bolt of gold?", "Which is the capital of Portugal?"))
    assert all(item["in_sample"] and item["prompt"].endswith(item["question"]) and item["adversarial_prompt"] for item in own.values())
    assert any("M7" in passage["text"] for passage in price["passages"]) and price["sources"] and price["sources"][0] == price["passage"][:4]
    assert (capital["answers"], capital["sources"], gold["ungraded"]) == (["not known"], ["none"], True)
    assert [list_slices(item)[0] for item in (price, capital)] == ["own_exam", "out_of_domain"] and list_slices(gold) == []
    style, reward = load_settings(shop.company/"style.yaml", Style), RewardFunction(shop.company/"kpi.py")
    answers = [("`7 Euros`. Source: 1a2b.", True), ("`Lisbon`. Source: none.", True), ("`not known`. Source: none.", True)]
    rows = score_answers("rl", [price, capital, capital | dict(id="again")], answers, reward, style)
    assert {(row["item"], row["value"]) for row in rows if (row["metric"], row["slice"]) in (("exact_match", "own_exam"), ("exact_match", "out_of_domain"))} == {(price["id"], 1), (capital["id"], 0), ("again", 1)}
    assert not [row for row in rows if row["metric"] == "exact_match" and row["slice"] == "all"]


def test_the_sample_holds_so_many_of_them_and_the_others_stay(shop):
    shop.run()
    sampled = {name for name, item in shop.items.items() if item["in_sample"] and item["part"] != "own_exam"}
    shop.changed = dict(num_own_sampled=1)
    shop.run()
    assert sum(item["in_sample"] for item in shop.items.values() if item["part"] == "own_exam") == 1
    assert sampled == {name for name, item in shop.items.items() if item["in_sample"] and item["part"] != "own_exam"}


def test_a_question_that_is_trained_is_left_out_and_named(shop):
    shop.run()
    trained = read_jsonl(shop.root/"out"/"rows"/"sft.jsonl")[0]["question"]
    write_jsonl(shop.company/"eval_sets"/"shop.jsonl", [dict(question=trained, answer="7 EUR"), dict(question="Is there a bolt M60?", answer="no")])
    shop.run()
    assert [(item["question"], item["reason"]) for item in shop.left_out] == [(trained, "asked in training")]
    assert shop.metrics["eval_left_out"] == {"asked in training": 1}


def test_a_review_outlives_regeneration_and_changes_no_row(shop):
    rows = shop.run()
    before = shop.items
    added = append_review(shop.review, list(before.values()), 500)
    assert {row["id"] for row in added} == set(before)
    made = [name for name, item in before.items() if item["part"] == "fact"][:3]
    own = next(name for name, item in before.items() if item["question"].startswith("Price of"))
    shop.judge(**{made[0]: dict(verdict="reject", note="nobody asks"), made[1]: dict(verdict="mend", question="What is to be paid for it?", answer="five"),
                  made[2]: dict(verdict="accept"), own: dict(verdict="mend", answer="7.00 EUR")})
    written = shop.review.read_bytes()
    for _ in range(2):
        assert shop.run() == rows and shop.review.read_bytes() == written
        assert made[0] not in shop.items and [(item["id"], item["reason"], item["note"]) for item in shop.left_out] == [(made[0], "rejected in review", "nobody asks")]
        mended = shop.items[made[1]]
        assert (mended["question"], mended["answer"], mended["choices"][mended["gold"]]) == ("What is to be paid for it?", "five", "five")
        assert mended["prompt"].endswith("What is to be paid for it?") and mended["item_sha256"] == hash_item(mended) != before[made[1]]["item_sha256"]
        assert shop.items[own]["answers"] == ["7.00 EUR"] and shop.items[made[2]] == before[made[2]]
    assert append_review(shop.review, list(shop.items.values()), 9) == [] and shop.review.read_bytes() == written
    untouched = set(before) - {made[0], made[1], own}
    assert all(shop.items[name] == before[name] for name in untouched)


def test_a_verdict_is_not_carried_over_to_what_nobody_looked_at(shop, capsys):
    shop.run()
    append_review(shop.review, list(shop.items.values()), 500)
    name = next(name for name, item in shop.items.items() if item["part"] == "fact")
    shop.judge(**{name: dict(verdict="reject")})
    with open(shop.review, "a", encoding="utf-8") as file: file.write("fact:gone,1f,reject,a,b,\n")
    shop.run(raised=1)  # all prices are others
    said = capsys.readouterr().out
    assert name in shop.items and not shop.left_out
    assert f"company/eval_review.csv: {name} was made anew with other words since somebody said reject" in said and "fact:gone is no longer made" in said


@pytest.mark.parametrize("line, words", [("fact:1,1f,rejected,a,b,", "row 2: `verdict` is 'rejected'"), ("fact:1;1f;reject;a;b;", "row 2: the columns should be"), ("fact:1,1f,mend,,b,", "row 2: `mend` without a question")])
def test_a_slip_in_the_review_is_one_sentence(shop, line, words):
    shop.review.write_text("id,item_sha256,verdict,question,answer,note\n" + line + "\n", encoding="utf-8")
    with pytest.raises(Invalid) as error: shop.run()
    assert words in str(error.value) and "eval_review.csv" in str(error.value) and "\n" not in str(error.value)
