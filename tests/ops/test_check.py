"`forge check`: every problem of company/ and data/ at once, and what will be trained from what"
import json, shutil

import pytest

from forge_nb.core.project import ROOT, Invalid
from forge_nb.core.project import load_params
from forge_nb.ops.check import check, check_company, format_check, require_company


@pytest.fixture
def project(tmp_path):
    "A project's company/, params.yaml and a small data/, which are in order"
    shutil.copytree(ROOT/"company", tmp_path/"company")
    shutil.copytree(ROOT/"data"/"facts", tmp_path/"data"/"facts")
    shutil.copy(ROOT/"params.yaml", tmp_path)
    (tmp_path/"data"/"docs").mkdir()
    (tmp_path/"data"/"docs"/"a.md").write_text("# Bolts\n\nThey hold what is screwed together.\n", encoding="utf-8")
    return tmp_path


def replace(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_default_company_is_in_order(project):
    answer = check(project)
    assert not answer.problems and not answer.unreadable and not answer.private_columns
    assert {m.material: m.files for m in answer.material} == {"documents": 1, "facts in tables": 6, "items of evaluation sets": 1}


def test_every_problem_is_named_at_once(project):
    company, facts = project/"company", project/"data"/"facts"
    replace(company/"style.yaml", "\nhouse:", "\nhause:")
    replace(company/"questions.yaml", "answer: default", "answer: defualt")
    replace(company/"policies.yaml", "\n  verifier:", "\n  verifyer:")
    (company/"kpi.py").write_text("def kpi(question, answer, row) return 1\n", encoding="utf-8")
    (company/"groups.yaml").write_text("docs/*: hr\n", encoding="utf-8")
    with open(facts/"checks.csv", "a", encoding="utf-8") as file: file.write("one cell\n")
    problems = check_company(company, facts, 40).problems
    named = {problem.file for problem in problems}
    assert named == {"company/style.yaml", "company/questions.yaml", "company/policies.yaml", "company/kpi.py", "company/groups.yaml", "data/facts/checks.csv"}
    text = " ".join(problem.problem for problem in problems)
    for words in ("hause", "defualt", "verifyer", "checks.csv, line"): assert words in text, words


def test_material_of_every_kind_is_counted(project):
    data = project/"data"
    said = [dict(role="user", content="Is it open?"), dict(role="assistant", content="From nine.")]
    (data/"chats.jsonl").write_text(json.dumps(dict(messages=said)) + "\n", encoding="utf-8")
    (data/"pairs.jsonl").write_text(json.dumps(dict(prompt="a", chosen="b", rejected="c")) + "\n" + json.dumps(dict(prompt="a", chosen="b")) + "\n", encoding="utf-8")
    (data/"staff.csv").write_text("name,password\nKim,hunter2\n", encoding="utf-8")
    answer = check(project)
    counted = {m.material: (m.items, m.used_by) for m in answer.material}
    assert counted["conversations"] == (1, "sft") and counted["preference pairs"][0] == 1 and counted["rows of tables"][0] == 1
    assert answer.private_columns == ["staff.csv: password"] and len(answer.unreadable) == 1 and "pairs.jsonl#2, line 2" in answer.unreadable[0]
    assert "masked for the name of their column" in format_check(answer)


def test_files_of_another_company_are_left_out_and_stop_nothing(project):
    shutil.rmtree(project/"data"/"facts")
    (project/"data"/"facts").mkdir()
    (project/"data"/"facts"/"machines.csv").write_text("machine,pressure\nPress 3,5 bar\n", encoding="utf-8")
    require_company(project)
    answer = check(project)
    text = "\n".join(answer.left_out)
    assert not answer.problems and "no row of settings.csv is in data/facts" in text
    assert "machines.csv: nothing in company/questions.yaml asks about it" in text
    replace(project/"company"/"questions.yaml", "table: settings.csv", "table: machine.csv")  # a slip, not another company
    with pytest.raises(Invalid, match="did you mean machines.csv"): require_company(project)


def test_a_run_names_every_problem_before_it_spends_anything(project, capsys):
    replace(project/"company"/"style.yaml", "\nhouse:", "\nhause:")
    with pytest.raises(Invalid, match="did you mean `house`"): require_company(project)  # one problem is one sentence
    replace(project/"company"/"policies.yaml", "\n  verifier:", "\n  verifyer:")
    with pytest.raises(Invalid, match="2 problems, named above"): require_company(project)
    named = capsys.readouterr().err
    assert "hause" in named and "verifyer" in named and named.count("\n") == 2


def test_stages_that_will_have_nothing_to_do_are_named(project):
    shutil.rmtree(project/"data")
    (project/"data"/"facts").mkdir(parents=True)
    (project/"data"/"pairs.jsonl").write_text(json.dumps(dict(prompt="a", chosen="b", rejected="c")) + "\n", encoding="utf-8")
    (project/"data"/"~$lock.docx").write_bytes(b"x")
    text = "\n".join(check(project).left_out)
    for words in ("pretrain: no document", "sft: no conversation", "rlhf, rl: no prompt", "what programs leave behind"): assert words in text, words
    assert "dpo" not in text


def test_an_exam_that_nobody_can_judge_is_named_before_anything_is_spent(project):
    (project/"company"/"eval_sets"/"quiz.jsonl").write_text('{"question": "Which oil does it take?"}\n', encoding="utf-8")
    (project/"company"/"eval_sets"/"faq.md").write_text("Which oil does it take? Oil 46.\n", encoding="utf-8")
    (project/"company"/"eval_review.csv").write_text("id,item_sha256,verdict,question,answer,note\na,1f,maybe,b,c,\n", encoding="utf-8")
    problems = {problem.file: problem.problem for problem in check_company(project/"company", project/"data"/"facts", 40).problems}
    assert set(problems) == {"company/eval_sets/quiz.jsonl", "company/eval_sets/faq.md", "company/eval_review.csv"}
    assert "quiz.jsonl#1: 'Which oil does it take?' has no right answer" in problems["company/eval_sets/quiz.jsonl"] and "row 2: `verdict` is 'maybe'" in problems["company/eval_review.csv"]


def test_every_company_file_is_read_however_many_are_wrong(project):
    "The grammar of paraphrases and the card are no exception, and neither hides the other"
    company = project/"company"
    replace(company/"style.yaml", "\nhouse:", "\nhause:")
    replace(company/"card.yaml", "  licence: ", "  license: ")
    (company/"paraphrases.yaml").write_text("everywhere:\n  question: [1, 2]\n", encoding="utf-8")
    named = {problem.file for problem in check_company(company, project/"data"/"facts", 40).problems}
    assert named == {"company/style.yaml", "company/card.yaml", "company/paraphrases.yaml"}
    (company/"questions.yaml").write_text("a: [", encoding="utf-8")
    named = {problem.file for problem in check_company(company, project/"data"/"facts", 40).problems}
    assert named == {"company/style.yaml", "company/card.yaml", "company/paraphrases.yaml", "company/questions.yaml"}
    for name in ("case.yaml", "rules.yaml", "poison.yaml", "columns.yaml", "extracts.yaml", "templates.yaml", "policies.yaml"):
        (company/name).write_text("nosuch: [", encoding="utf-8")
    assert len(check_company(company, project/"data"/"facts", 40).problems) == 11


TORN = {"torn.jsonl": '{"question": "Who drives?", "answer": "Kim"}\n{"question": ', "torn.csv": "question,answer\nWho?,Kim,Lee,Max\n", "torn.json": '[{"question": "Who"', "torn.parquet": "PAR1 torn"}


@pytest.mark.parametrize("name", TORN)
def test_a_torn_evaluation_set_is_a_problem_with_its_remedy(project, name):
    (project/"company"/"eval_sets"/name).write_text(TORN[name], encoding="utf-8")
    [problem] = check(project).problems
    assert problem.file == f"company/eval_sets/{name}" and "mend or delete it" in problem.problem
    with pytest.raises(Invalid, match="cannot be kept out of training"): require_company(project)


@pytest.mark.parametrize("name", ["list.json", "list.csv.gz", "notes.txt", "old/parts.csv", "scan.pdf"])
def test_a_file_among_the_facts_that_nobody_reads_is_named(project, name):
    path = project/"data"/"facts"/name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"SQLite format 3\0")
    assert [line for line in check(project).left_out if line.startswith(f"data/facts/{name}: nobody reads it")]


@pytest.mark.parametrize("name", ["stock.sqlite", "stock.db"])
def test_a_broken_database_among_the_facts_is_one_problem(project, name):
    (project/"data"/"facts"/name).write_bytes(b"SQLite format 3\0 and nothing else")
    assert [problem.file for problem in check(project).problems] == [f"data/facts/{name}"]


def test_what_is_private_in_tables_of_facts_is_listed(project):
    facts = project/"data"/"facts"
    (facts/"staff.csv").write_text("name,userPassword,Date of Birth,pin\nKim,hunter2,2 May,GND\n", encoding="utf-8")
    answer = check(project)
    assert answer.private_columns == ["facts/staff.csv: Date of Birth", "facts/staff.csv: userPassword"]
    (facts/"mail of kim@acme-tools.org.csv").write_text("name,size\na,1\n", encoding="utf-8")
    (facts/"Gro\u0308\u00dfe.csv").write_text("name,size\na,1\n", encoding="utf-8")
    told = {problem.file: problem.problem for problem in check(project).problems}
    assert "holds personal data" in told["data/facts/mail of kim@acme-tools.org.csv"] and "NFD" in told["data/facts/Gro\u0308\u00dfe.csv"]


def test_a_table_is_found_however_its_name_is_typed_in_company(project):
    "questions.yaml with accents apart names the same table and the same column as one without"
    import unicodedata
    (project/"data"/"facts"/"Gr\u00f6\u00dfe.csv").write_text("name,H\u00f6he\n" + "".join(f"bolt {n},{n} mm\n" for n in range(9)), encoding="utf-8")
    text = "size:\n  table: Gr\u00f6\u00dfe.csv\n  key: [name]\n  answer: H\u00f6he\n  ask: ['How high is {name}?']\n  ask_held_out: ['{name}: H\u00f6he?']\n  state: '{name} is {answer} high.'\n"
    (project/"company"/"paraphrases.yaml").write_text("{}\n", encoding="utf-8")
    for form in ("NFC", "NFD"):
        (project/"company"/"questions.yaml").write_text(unicodedata.normalize(form, text), encoding="utf-8")
        found = check_company(project/"company", project/"data"/"facts", 40)
        assert "size" in found.columns, (form, found.problems)


def test_words_of_the_default_company_are_told_where_the_data_are_others(project):
    assert not check(project).notes
    shutil.rmtree(project/"data"/"facts")
    (project/"data"/"facts").mkdir()
    (project/"data"/"facts"/"machines.csv").write_text("machine,pressure\nPress 3,5 bar\n", encoding="utf-8")
    [note] = check(project).notes
    assert note.startswith("company/card.yaml: `name`, `data` still speak of the default company") and note in format_check(check(project))
    (project/"company"/"card.yaml").write_text("about: {name: bolts, licence: mit, language: en, purpose: a, data: b, intended_use: c, limits: d}\n", encoding="utf-8")
    assert not check(project).notes


@pytest.mark.parametrize("changed, used, noted", [({}, "nothing: `rlhf.enabled` and `rl.enabled` false", True), (dict(rl=True), "rl", False), (dict(rlhf=True), "rlhf", False), (dict(rlhf=True, rl=True), "rlhf, rl", False)])
def test_prompts_that_no_stage_uses_are_told(project, changed, used, noted):
    (project/"data"/"asked.jsonl").write_text("".join(json.dumps(dict(prompt=f"Write a note about pump {n}.")) + "\n" for n in range(9)), encoding="utf-8")
    params = load_params(project/"params.yaml")
    for name, value in changed.items(): params[name]["enabled"] = value
    (project/"params.yaml").write_text(json.dumps(params), encoding="utf-8")
    answer = check(project)
    [row] = [m for m in answer.material if m.material == "prompts"]
    assert row.used_by == used and noted == any(note.startswith("prompts: 9 rows") for note in answer.notes)


@pytest.mark.parametrize("method, noted", [("dpo", True), ("online", True), ("kto", False)])
def test_judged_answers_without_a_counterpart_are_counted(project, method, noted):
    rows = [dict(prompt=f"Is valve {n} open?", completion="Yes.", label=True) for n in range(7)] + [dict(prompt="Is valve 3 open?", completion="No.", label=False)]
    (project/"data"/"judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    params = load_params(project/"params.yaml")
    params["dpo"]["method"] = method
    (project/"params.yaml").write_text(json.dumps(params), encoding="utf-8")
    notes = [note for note in check(project).notes if "judged answers: 6 have no counterpart" in note]
    assert bool(notes) == noted and all("`dpo.method: kto`" in note for note in notes)
