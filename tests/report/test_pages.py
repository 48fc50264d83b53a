"What people read: texts with figures, the model card, the reports as pages, and a new checkpoint by one entry"
import json, re

import nbformat
import pytest
import yaml

from forge_nb import card as card_page, evaluate as evaluate_page
from forge_nb.core.project import Invalid, ROOT, load_params, read_csv, read_stages, write_csv, write_json, write_jsonl
from forge_nb.evals.checkpoints import check_pipeline, load_checkpoints
from forge_nb.evals.suites import make_score_row
from forge_nb.report import html, pages
from forge_nb.report.cite import check_template, cite

TEMPLATES = sorted((ROOT/"docs"/"templates").glob("*.md"))
RENDERED = {"README.md": pages.render_readme, "docs/RESULTS.md": pages.render_results}
METRICS = dict(bpb=1.58, exact_match=.156, false_answer_rate=.034, kpi=.477, violation_rate=0., style_rate=.99, format_rate=1., eos_rate=1.)


# ---- texts with figures

@pytest.mark.parametrize("name", RENDERED)
def test_page_is_what_its_sources_say(name):
    assert RENDERED[name]() == (ROOT/name).read_text(encoding="utf-8"), "run `make report`"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_templates_type_no_figures(path):
    if path.name != "BENCH.md": check_template(path.read_text(encoding="utf-8"), path.name)  # its reasons name rows of the bench


def test_readme_follows_its_sources(monkeypatch):
    real = cite("results/bench.csv", "measured", ROOT, what="peak memory of a stage")
    assert f"{real} of memory" in pages.render_readme()
    rows = read_csv(ROOT/"results"/"answers.csv")
    for row in rows: assert row["question"] in pages.render_readme() and row["answer"] in pages.render_readme()


def test_readme_fits_a_screen_and_shows_at_most_eight_results():
    text = (ROOT/"README.md").read_text(encoding="utf-8")
    table = text.split("## What each step is worth")[1].split("## Your own data")[0]
    assert 1 <= len([line for line in table.splitlines() if line.startswith("| `")]) <= 8
    assert len(text.splitlines()) <= 90


def test_every_bench_bound_that_is_missed_has_a_reason():
    reasons = (ROOT/"docs"/"templates"/"BENCH.md").read_text(encoding="utf-8")
    number = lambda text: float(re.match(r"[\d.]+", text)[0])
    for row in read_csv(ROOT/"results"/"bench.csv"):
        if re.fullmatch(r"[\d.]+ s", row["bound"]) and number(row["measured"]) > number(row["bound"]):
            assert row["what"] in reasons, f"BENCH.md does not say why `{row['what']}` missed its bound"


# ---- checkpoints

def test_pipeline_lists_every_checkpoint():
    check_pipeline(load_checkpoints(ROOT/"config"/"checkpoints.yaml"), read_stages(ROOT)["evaluate"]["deps"])
    assert "config/checkpoints.yaml" in read_stages(ROOT)["evaluate"]["deps"]


def test_a_checkpoint_is_one_entry(tmp_path, monkeypatch):
    "A new entry is scored, compared, tabulated and told; nothing else is edited"
    entries = yaml.safe_load((ROOT/"config"/"checkpoints.yaml").read_text(encoding="utf-8"))
    entries["checkpoints"]["merged"] = dict(folder="merged/model", compared_with=dict(rl=["kpi", "bpb"]), aims=["kpi"])
    (tmp_path/"checkpoints.yaml").write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    items = [dict(id=f"q{n}", part="fact", kind="price", question="Price?", prompt="Price?", answer="3 EUR", in_sample=True) for n in range(20)]
    write_jsonl(tmp_path/"eval_set"/"items.jsonl", items)
    arms = [make_score_row(arm, m, "all", i["id"], .25) for arm in ("commonest_answer", "nearest_name", "table_lookup", "top_passage") for m in ("exact_match", "kpi", "false_answer_rate") for i in items]
    write_jsonl(tmp_path/"decide"/"scores.jsonl", arms)
    write_csv(tmp_path/"decide"/"predictions.csv", [dict(metric="exact_match", slice="all", decision="train", untrained_arm="nearest_name")])
    write_jsonl(tmp_path/"test.jsonl", [dict(id="d1", kind="docs", text="four")])
    write_jsonl(tmp_path/"ngram.jsonl", [dict(id="d1", bits=8.)])
    for name, entry in entries["checkpoints"].items():
        write_json(folder := tmp_path/"models"/entry["folder"]/"config.json", dict(architectures=["Qwen3ForCausalLM"]))
        folder.with_name("model.safetensors").write_bytes(name.encode())
    (tmp_path/"kpi.py").write_text("def kpi(question, answer, row): return float(row['answer'] in answer)\n", encoding="utf-8")
    (tmp_path/"policies.yaml").write_text("{}\n", encoding="utf-8")
    scored = []

    def score(name, entry, folder, *rest, **lengths):
        scored.append((name, folder.relative_to(tmp_path/"models").as_posix()))
        value = 1. if name == "merged" else .5
        rows = [make_score_row(name, m, "all", i["id"], value) for m in METRICS if m != "bpb" for i in items] + [
            make_score_row(name, "mc_accuracy", "all", i["id"], value) for i in items] + [make_score_row(name, "bpb", "all", "d1", value, 4)]
        return rows, [dict(checkpoint=name, prompt_field="prompt", text="`3 EUR`.", finished=True, id=i["id"]) for i in items], []
    monkeypatch.setattr(evaluate_page, "score_checkpoint", score)
    out = tmp_path/"evaluate"
    metrics = evaluate_page.evaluate(
        tmp_path/"models", tmp_path/"checkpoints.yaml", tmp_path/"ngram.jsonl", tmp_path/"test.jsonl", tmp_path/"eval_set",
        tmp_path/"decide", tmp_path/"policies.yaml", tmp_path/"kpi.py", ROOT/"company/style.yaml", ROOT/"company/poison.yaml", tmp_path/"own", tmp_path/"train.jsonl", base="scratch", context_length=8, max_new_tokens=4, document_stride=1,
        margin=.05, all_items=False, num_poisoned=0, num_general=1, out=out)
    assert scored[-1] == ("merged", "merged/model") and metrics["merged"]["kpi"]["all"] == 1
    assert {r["metric"] for r in read_csv(out/"effects.csv") if (r["stage"], r["against"]) == ("merged", "rl")} == {"kpi", "bpb"}
    assert {r["diff"] for r in read_csv(out/"effects.csv") if (r["stage"], r["against"]) == ("rl", "nearest_name")} == {"0.25"}
    assert [(r["before"], r["after"]) for r in read_csv(out/"confirmations.csv")] == [("0.25", "0.5")]
    from forge_nb.evals.gates import find_gains
    from forge_nb.report.findings import load_findings, tabulate_scores
    findings = load_findings(out, tmp_path/"checkpoints.yaml")
    assert find_gains(findings.checkpoints, findings.effects.to_dict("records"))["merged"] == ["kpi"] and "merged" in tabulate_scores(out/"intervals.csv").index
    assert html.describe_stage("merged", {}, findings).startswith("Better: ")
    assert "`merged`, against `rl`" in pages.summarize_effects(findings.effects, findings.checkpoints)


# ---- the card

VERDICT = dict(
    verdict="fail", because=["document, exact_match: worse by 8.8 points"], baseline="forge@v1.1.0, with the passages of today", rules="as before training", waiver=None,
    earlier_waivers=[], bounds=[], slices=[dict(slice="document", metric="exact_match", n=400, left_out=0, before=.545, after=.4575, difference=-.0875, low=-.141, high=-.033,
                                                decision="blocks", reason="worse by 8.8 points")])


@pytest.fixture
def measured(tmp_path):
    "What the stages of a run wrote, made"
    artifacts = tmp_path/"artifacts"
    splits = {split: dict(documents=10, bytes=1000) for split in ("train", "valid", "test")}
    made = dict(
        curate=dict(documents=40, dropped=10, masked=dict(email=2), **splits), tokenizer=dict(vocab_size=4096), pretrain=dict(parameters=5_311_232, tokens=595_968),
        synth=dict(facts=1673, held_out=250, pairs=1000, chance_accuracy=.26), sft=dict(rows=4663), dpo=dict(pairs=600), reward=dict(accuracy=.93), rlhf={}, rl=dict(answers=1408))
    for stage, metrics in made.items(): write_json(artifacts/stage/"metrics.json", metrics)
    write_jsonl(artifacts/"synth"/"eval_set"/"items.jsonl", [dict(question="Which \"level\" has E1?", prompt="checks: id `E1`. Source: 0f6f.\nWhich \"level\" has E1?")])
    trivial = dict(right=0., right_diff=.16, right_low=.12, right_high=.2, kpi=.4, kpi_diff=.08, kpi_low=.05, kpi_high=.11)
    write_json(artifacts/"evaluate"/"headline.json", {
        "folder": "rl/model", "architecture": "Qwen3ForCausalLM", "checkpoint": "rl", "questions": 320, "right": .156, "source": .97, "false": .034,
        "unknown": .81, "kpi": .477, "right_by_part": dict(fact=.24, phrasing=.07), "trivial": dict(always_unknown=trivial, commonest_answer=trivial)})
    write_json(artifacts/"gate"/"verdict.json", VERDICT)
    write_csv(artifacts/"evaluate"/"intervals.csv", [dict(checkpoint="rl", metric=m, slice="all", mean=v, low=v - .01, high=v + .01, n=320) for m, v in METRICS.items()])
    effect = dict(stage="rl", against="rlhf", slice="all", before=.37, after=.48, seeds=1, n=320)
    write_csv(artifacts/"evaluate"/"effects.csv", [effect | dict(metric="kpi", diff=.11, low=.06, high=.16), effect | dict(metric="exact_match", diff=-.17, low=-.2, high=-.1)])
    return artifacts


def render_card(artifacts, **changed):
    params = load_params(ROOT/"params.yaml")
    params["shared"] |= changed
    return card_page.card(artifacts, ROOT/"company"/"card.yaml", read_stages(ROOT), params, perimeter_file=ROOT/"company"/"perimeter.yaml", feedback=artifacts.parent/"data"/"feedback", max_rows=8, out=artifacts/"card")


def test_the_card_says_what_people_said_and_leaves_it_out_where_nobody_did(measured):
    assert "People judged" not in render_card(measured)
    (measured.parent/"data"/"feedback").mkdir(parents=True)
    told = dict(judgements=400, releases={"2fe9699ffd6a958a": 400}, rows=dict(kto=143, pairs=252, chat=252), left_out={"asked in the exam": 2, "cites a passage that was not shown": 3})
    write_json(measured.parent/"data"/"feedback"/".origin.json", told)
    text = render_card(measured)
    [said] = [line for line in text.splitlines() if line.startswith("People judged")]
    assert [int(n) for n in re.findall(r"(\d+)\[\^\d+\]", said)] == [400, 400, 252, 252, 143, 2, 3] and "`2fe9699ffd6a`" in said
    assert "data/feedback/.origin.json: left_out.asked in the exam" in text


def front_matter(text): return yaml.safe_load(text.split("---\n")[1])


def test_card_from_scratch(measured):
    text = render_card(measured)
    assert "trained from scratch, on 595,968[^" in text and "base_model" not in front_matter(text)
    assert "Of 320 held-out questions" in text and "`shared.base` | `'scratch'`" in text
    [model] = front_matter(text)["model-index"]
    assert {m["type"]: m["value"] for result in model["results"] for m in result["metrics"]} == METRICS
    assert read_json_number(measured) == len(re.findall(r"(?m)^\[\^\d+\]: ", text))


def read_json_number(artifacts): return json.loads((artifacts/"card"/"metrics.json").read_text(encoding="utf-8"))["citations"]


def test_card_with_a_base_names_it(measured):
    base = dict(base="smollm2", model="HuggingFaceTB/SmolLM2-135M-Instruct", licence="Apache-2.0", weights="7ef915c9" * 8)
    write_json(measured/"pretrain"/"metrics.json", dict(parameters=134_515_008, tokens=16_000, base=base))
    text = render_card(measured, base="smollm2")
    assert front_matter(text)["base_model"] == base["model"]
    for words in (base["model"], base["licence"], base["weights"]): assert words in text
    assert "from scratch" not in text and "from nothing" not in text, "a model with a base was not trained from scratch"


def test_card_has_eight_results_and_only_the_parameters_that_made_it(measured):
    text = render_card(measured)
    results = text.split("## How well it does")[1].split("All checkpoints")[0]
    assert len([line for line in results.splitlines() if line.startswith("| ")]) == 2 + 8
    sections = set(re.findall(r"(?m)^\| `(\w+)\.", text))
    assert {"curate", "pretrain", "sft", "rl", "shared"} <= sections and not sections & {"assess", "ngram", "distill", "evaluate", "card"}


def test_card_says_which_step_was_skipped(measured):
    write_json(measured/"dpo"/"metrics.json", dict(skipped="no pairs"))
    text = render_card(measured)
    assert "The step `dpo` passed the model on unchanged: no pairs." in text and "preference pairs (`dpo`)" not in text and "`dpo.beta`" not in text


def test_card_has_the_verdict_and_its_slices(measured):
    text = render_card(measured)
    part = text.split("## Whether it may go out")[1].split("## What it is for")[0]
    assert "The gate **does not let this model out**[^" in part and "compared with forge@v1.1.0" in part and "Because: document, exact_match: worse by 8.8 points." in part
    assert re.search(r"\| document \| right answers \| 400 \| 54.5 % → 45.8 % \| -8.8 \[-14.1, -3.3\] \| blocks\[\^\d+\] \|", part), part
    assert "artifacts/gate/verdict.json: slices.0" in text


def test_a_waiver_stands_in_its_card_and_in_every_later_one(measured):
    waiver = dict(name="J. Doe", reason="The old model leaks names.")
    write_json(measured/"gate"/"verdict.json", VERDICT | dict(verdict="pass", waiver=waiver | dict(waived=VERDICT["because"])))
    text = render_card(measured)
    assert "goes out by a waiver of J. Doe**: The old model leaks names. Waived: document, exact_match: worse by 8.8 points." in text
    later = VERDICT | dict(verdict="pass", because=[], earlier_waivers=[waiver | dict(version="forge@v1.2.0", waived=VERDICT["because"])])
    write_json(measured/"gate"/"verdict.json", later)
    assert "An earlier version, forge@v1.2.0, went out by a waiver of J. Doe: The old model leaks names." in render_card(measured)


def test_card_without_a_figure_is_not_written(measured):
    write_json(measured/"rl"/"metrics.json", {})
    with pytest.raises(Invalid, match="no single `answers`"): render_card(measured)


# ---- reports as pages

def make_report(name):
    code, words, shown = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell, nbformat.v4.new_output
    return nbformat.v4.new_notebook(cells=[
        words(f"# {name}\n\n> What it does"), words("Why it does it. See [sft](50_sft.ipynb) and [lora](train/80_lora.ipynb)."),
        code("secret_source = 1", outputs=[shown("stream", text="a toy value")]), words("## Run\n\nIt spends."),
        code("#| run\nrun_it()", outputs=[shown("stream", text="97 % right"), shown("display_data", {"text/html": "<table><tr><td>cell</td></tr></table>"})]),
        words("## What to check\n\n- The figure.")])


@pytest.fixture
def written(tmp_path, monkeypatch):
    "The pages of a made project with two reports and one that failed"
    monkeypatch.setattr(html, "ROOT", tmp_path)
    stages = dict(pretrain=dict(desc="a <model>", deps=[]), sft=dict(desc="answers", deps=[]))
    monkeypatch.setattr(html, "read_stages", lambda root: stages)
    (tmp_path/"reports").mkdir()
    for name in ("pretrain", "sft", "dpo.failed"): nbformat.write(make_report(name), tmp_path/"reports"/f"{name}.ipynb")
    paths = html.write_html_reports()
    return {p.relative_to(tmp_path/"reports"/"html").as_posix(): p.read_text(encoding="utf-8") for p in paths}


def test_page_shows_results_and_no_source(written):
    page = written["sft.html"]
    for words in ("Why it does it", "97 % right", "cell", "The figure."): assert words in page
    for words in ("secret_source", "run_it", "a toy value", "It spends"): assert words not in page
    assert 'href="full/sft.html"' in page and 'href="pretrain.html"' in page and ">lora<" not in page


def test_complete_copy_shows_everything(written):
    full = re.sub("<[^>]+>", "", written["full/sft.html"])
    for words in ("secret_source", "run_it", "a toy value", "97 % right"): assert words in full
    assert 'href="../sft.html"' in written["full/sft.html"]


def test_index_leads_through_the_pipeline(written):
    index = written["index.html"]
    assert index.index('href="pretrain.html"') < index.index('href="sft.html"') < index.index("Runs that failed") < index.index('href="dpo.failed.html"')
    assert "a &lt;model&gt;" in index and "Nothing was evaluated yet" in index


def test_pages_load_nothing_from_anywhere(written):
    for name, text in written.items():
        assert not re.search(r"<script|<link|@import|url\(|src=[\"'](?!data:)", text), name
