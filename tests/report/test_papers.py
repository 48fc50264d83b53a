"Papers of an audit: every figure with its source, no blank that only people can fill, the same bytes twice"
import re, shutil, subprocess

import pytest
import yaml

from forge_nb.core.project import Invalid, ROOT, read_json, write_json, write_jsonl
from forge_nb.core.settings import About
from forge_nb.data.documents import find_folder_licence
from forge_nb.ops import papers as page
from forge_nb.ops.paper_words import Oversight, PaperWords, Risk
from forge_nb.ops.papers import PAPER_NAMES, TEMPLATE_FOLDER, read_material, write_paper, write_papers
from forge_nb.report.cite import check_template

TEMPLATES = sorted((ROOT/TEMPLATE_FOLDER).glob("*.md"))
COPIED = ["company/card.yaml", "company/papers.yaml", "company/licences.yaml", "config/licences.yaml", "config/ai_act.yaml", "params.yaml", "dvc.yaml"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A made project whose run is over"
    for name in COPIED: (tmp_path/name).parent.mkdir(exist_ok=True), shutil.copy(ROOT/name, tmp_path/name)
    shutil.copytree(ROOT/TEMPLATE_FOLDER, tmp_path/TEMPLATE_FOLDER)
    write_jsonl(tmp_path/"artifacts/curate/documents/train.jsonl", [dict(id="1", source="docs/a.txt", licence="MIT", text="A bolt.")])
    splits = {split: dict(documents=11, bytes=1111) for split in ("train", "valid", "test")}
    made = dict(curate=dict(documents=47, dropped=13, masked=dict(email=3), **splits), synth=dict(facts=1673, rows=4663, held_out=257),
                pretrain=dict(parameters=5_311_232, tokens=595_968), rl=dict(skipped="switched off"))
    for stage, metrics in made.items(): write_json(tmp_path/"artifacts"/stage/"metrics.json", metrics)
    (tmp_path/"artifacts/curate/outcomes.csv").write_text("kind,outcome,documents,bytes\ndocs,too short,13,99\n", encoding="utf-8")
    (tmp_path/"artifacts/evaluate").mkdir()
    (tmp_path/"artifacts/evaluate/intervals.csv").write_text("checkpoint,metric,slice,n,mean,low,high\nrl,kpi,all,320,0.77,0.7,0.8\n", encoding="utf-8")
    write_json(tmp_path/"artifacts/evaluate/headline.json", dict(checkpoint="rl", folder="rl/model", architecture="Qwen3ForCausalLM", questions=320, right=.75, false=.078, unknown=.259, kpi=.77))
    write_json(tmp_path/"artifacts/gate/verdict.json", dict(verdict="fail", because=["document, exact_match: worse"], baseline="forge@v1.1.0", waiver=None))
    (tmp_path/"artifacts/card").mkdir()
    (tmp_path/"artifacts/card/README.md").write_text("---\nlicense: mit\n---\n# Card\n\nRight: 5[^1]\n\n[^1]: a.json: b\n", encoding="utf-8")
    monkeypatch.setattr(page, "write_bom", lambda root: type("Bom", (), dict(file="papers/bom.cdx.json")))
    find_folder_licence.cache_clear()
    run(tmp_path, "git init -q")
    commit(tmp_path)
    return tmp_path


def run(root, line): subprocess.run(["bash", "-c", line], cwd=root, check=True, capture_output=True)


def commit(root): run(root, "git add -A && git -c user.name=t -c user.email=t@localhost commit -q --allow-empty -m state")


def read_papers(project): return {path.name: path.read_text(encoding="utf-8") for path in sorted((project/"papers").iterdir())}


def edit(path, change):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


# ---- what stands in them

def test_papers_are_a_folder_and_a_page_and_the_same_twice(project):
    answer = write_papers(project)
    first = read_papers(project)
    assert set(answer.files) == {*first, "bom.cdx.json"} and answer.verdict == "fail"
    assert write_papers(project) == answer and read_papers(project) == first
    html = first["papers.html"]
    assert html.count("<section id=") == len(PAPER_NAMES) + 1 and "license: mit" not in html and "@media print" in html
    assert not re.search(r"<script|<link|@import|url\(|src=[\"'](?!data:)", html), "the page loads something"


@pytest.mark.parametrize("name", PAPER_NAMES)
def test_every_mark_has_its_source_and_every_source_a_mark(project, name):
    text, citations = write_paper(read_material(project), name)
    body, notes = re.sub(r"(?m)^\[\^\d+\]: .*\n", "", text), re.findall(r"(?m)^\[\^(\d+)\]: (.+)$", text)
    assert {number for number, _ in notes} == set(re.findall(r"\[\^(\d+)\]", body)) and len(notes) == citations
    for _, source in notes: assert (project/source.split(":")[0]).exists(), source


def test_annex_iv_has_nine_points_with_the_people_s_words(project):
    text, _ = write_paper(read_material(project), "technical-documentation")
    points = re.findall(r"(?m)^## Point (\w+): ", text)
    assert points == "one two three four five six seven eight nine".split()
    people = yaml.safe_load((project/"company/papers.yaml").read_text(encoding="utf-8"))
    for field in "provider contact interaction forms hardware interface instructions design compute affected_persons misuse input_data metrics_fit tested_by cybersecurity standards declaration monitoring".split():
        assert people[field] in text, field
    assert "no legal advice" in text and "5,311,232[^" in text and "| `rl` | " in text and "| switched off |" in text


def test_every_word_of_people_stands_in_a_paper(project):
    write_papers(project)
    everything = "\n".join(text for name, text in read_papers(project).items() if name.endswith(".md"))
    people = yaml.safe_load((project/"company/papers.yaml").read_text(encoding="utf-8"))
    for words in [*people.values(), *(words for part in ("risks", "oversight") for entry in people[part] for words in entry.values())]:
        if isinstance(words, str): assert words in everything, words


def test_dates_of_the_act_come_from_their_file(project):
    text = write_paper(read_material(project), "general-purpose")[0]
    assert "apply from 2 August 2025[^" in text and "no legal advice" in text and "OJ L, 2024/1689" in text
    edit(project/"config/ai_act.yaml", lambda act: act["general_purpose"].update(date="1 May 2031"))
    assert "apply from 1 May 2031[^" in write_paper(read_material(project), "general-purpose")[0]


def test_a_licence_that_stands_against_the_use_is_in_the_data_card(project):
    write_jsonl(project/"artifacts/curate/documents/train.jsonl", [dict(id="1", source="wiki/a.txt", licence="CC-BY-NC-4.0", text="A bolt.")])
    assert "**Stands against it**: data/wiki (1 documents): CC-BY-NC-4.0 allows no commercial use" in write_paper(read_material(project), "data-card")[0]


def test_changes_between_releases_come_from_git(project):
    assert "No release is tagged yet" in write_paper(read_material(project), "changes")[0]
    run(project, "git tag bolts@v1.0.0")
    edit(project/"params.yaml", lambda params: params["sft"].update(num_train_epochs=97))
    headline = read_json(project/"artifacts/evaluate/headline.json")
    write_json(project/"artifacts/evaluate/headline.json", headline | dict(right=.8125))
    (project/"data.dvc").write_text("outs:\n- md5: b2b2.dir\n", encoding="utf-8")
    (project/"forge_nb").mkdir()
    (project/"forge_nb"/"sft.py").write_text("x = 1\n", encoding="utf-8")
    commit(project)
    text = write_paper(read_material(project), "changes")[0]
    for words in ("From bolts@v1.0.0 to HEAD", "data: changed (`` → `b2b2.dir`)", "parameter `sft.num_train_epochs`: ", "→ `97`", "code: `forge_nb/sft.py`", "right: 0.750 → 0.812[^"):
        assert words in text, text
    assert "git: bolts@v1.0.0 and HEAD, artifacts/evaluate/headline.json: right" in text
    run(project, "git tag bolts@v1.1.0")
    assert "From bolts@v1.0.0 to bolts@v1.1.0" in (text := write_paper(read_material(project), "changes")[0]) and "bolts@v1.1.0 to HEAD" not in text
    assert write_papers(project).version == "bolts@v1.1.0"


# ---- what is missing

@pytest.mark.parametrize("field", PaperWords.model_fields)
def test_a_field_that_only_people_know_is_missed_by_name(project, field):
    edit(project/"company/papers.yaml", lambda words: words.pop(field))
    with pytest.raises(Invalid, match=f"papers.yaml: field `{field}` is missing; add it"): write_papers(project)
    assert not (project/"papers").exists()


@pytest.mark.parametrize("part, field", [("risks", field) for field in Risk.model_fields] + [("oversight", field) for field in Oversight.model_fields])
def test_a_field_of_an_entry_is_missed_by_name(project, part, field):
    edit(project/"company/papers.yaml", lambda words: words[part][-1].pop(field))
    with pytest.raises(Invalid, match=rf"papers.yaml: field `{part}\.1\.{field}` is missing; add it"): write_papers(project)


@pytest.mark.parametrize("field", About.model_fields)
def test_a_field_of_the_card_is_missed_by_name(project, field):
    edit(project/"company/card.yaml", lambda card: card["about"].pop(field))
    with pytest.raises(Invalid, match=f"card.yaml: field `about.{field}` is missing; add it"): write_papers(project)
    edit(project/"company/card.yaml", lambda card: card["about"].update({field: " "}))
    with pytest.raises(Invalid, match=f"company/card.yaml: `about.{field}` is empty"): write_papers(project)


@pytest.mark.parametrize("path, key", [("artifacts/curate/metrics.json", "dropped"), ("artifacts/synth/metrics.json", "held_out"), ("artifacts/evaluate/headline.json", "right")])
def test_a_figure_that_is_not_there_is_missed_by_name(project, path, key):
    content = read_json(project/path)
    del content[key]
    write_json(project/path, content)
    with pytest.raises(Invalid, match=f"{path}: no single `{key}`"): write_papers(project)


@pytest.mark.parametrize("path, stage", [("artifacts/gate/verdict.json", "gate"), ("artifacts/evaluate/headline.json", "evaluate"), ("artifacts/card/README.md", "card")])
def test_a_stage_that_did_not_run_is_named(project, path, stage):
    (project/path).unlink()
    with pytest.raises(Invalid, match=f"{path} is missing; `dvc repro {stage}` makes it"): write_papers(project)


# ---- templates

@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_of_papers_type_no_figures(path): check_template(path.read_text(encoding="utf-8"), path.name)


def test_there_is_a_template_for_each_paper(): assert {path.stem for path in TEMPLATES} == set(PAPER_NAMES)


@pytest.mark.parametrize("name", PAPER_NAMES)
def test_a_typed_figure_and_a_misspelt_name_stop(project, name):
    path = project/TEMPLATE_FOLDER/f"{name}.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\nThe model is right in 75 % of cases.\n", encoding="utf-8")
    with pytest.raises(Invalid, match=f"{name}.md, line {len(text.splitlines()) + 2}: the number '75' has no source"): write_papers(project)
    path.write_text(f"{text}\n{{{{ peple.provider }}}}\n", encoding="utf-8")
    with pytest.raises(Invalid, match=f"{name}.md: 'peple' is undefined; mend the template"): write_papers(project)
