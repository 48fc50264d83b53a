"`forge draft`: three tables of other trades give questions that pass the check, find their rows and need no edit; what is left out is said"
import hashlib, json, shutil, sqlite3

import pytest
from copies import ROOT, ask, refuse, sibling
from jsonschema import validate
from sheets import sheet_file

from forge_nb.core.project import Invalid, load_params, read_jsonl, write_csv, write_jsonl
from forge_nb.core.settings import QuestionKinds, Style, load_settings
from forge_nb.data.fact_tables import read_fact_table
from forge_nb.data.passages import build_index, read_table_passages, save_index, search
from forge_nb.ops import cli
from forge_nb.ops.check import check_company
from forge_nb.ops.draft import DraftAnswer, draft, format_draft
from forge_nb.retrieval import make_questions, rank_answers, tabulate_recall
from forge_nb.synth import synth
from forge_nb.synthesis.facts import load_facts

LIMIT = load_params(ROOT/"params.yaml")["synth"]["max_answer_characters"]
PLACES = ["Halle Nord", "Kesselhaus", "Hof 2", "Keller West", "Turm"]


def make_pumps(path):
    "Pumps of a plant, as a German spreadsheet exports them: semicolons, a code page, decimal commas"
    lines = ["Pumpe;Standort;Druck_bar;Förderstrom m3/h;Baujahr;Werkstoff;Bemerkung"]
    for n in range(40):
        note = "" if n % 3 else f"Dichtung {n} im Frühjahr tauschen, danach eine Stunde im Leerlauf prüfen"
        lines.append(f"P-{101 + n};{PLACES[n * 7 % 5]};{4 + n % 13},{n % 10};{12 + n * 3};{1990 + n * 5 % 31};{['Guss', 'Edelstahl', 'Bronze'][n % 3]};{note}")
    path.write_bytes("\r\n".join(lines).encode("cp1252"))


def make_prices(path):
    "A price list of a maker of fittings, as an Excel file: a header with dots, two names for each thing"
    rows = [["Art.-No.", "Product", "Unit Price", "Pack size", "Colour", "Currency"]]
    for n in range(48):
        size, colour = 10 + n // 6 * 5, ["chrome", "white", "black", "brass", "matt grey", "copper"][n % 6]
        rows.append([f"F{size}-{'CWBSGK'[n % 6]}", f"Elbow {size} mm {colour}", round(2.35 + n * .45, 2), [1, 5, 10, 25][n % 4], colour, "EUR"])
    path.write_bytes(sheet_file({"Prices": rows}))


def make_devices(path, number: int = 36):
    "The inventory of a hospital, as an SQLite database: a surrogate key, a private column, dates"
    rows = [(n, f"INV-{2000 + n * 7}", ["infusion pump", "ventilator", "monitor", "defibrillator"][n % 4], f"SN{90000 + n * 113}", ["ward 1A", "ward 2B", "surgery", "ICU"][n * 3 % 4],
             f"20{20 + n % 5}-{1 + n % 12:02}-15", [6, 12, 24][n % 3], f"{4000 + n}") for n in range(1, number + 1)]
    with sqlite3.connect(path) as db:
        db.execute("create table devices (id integer primary key, inventory_no text, device text, serial text, ward text, last_service text, interval_months int, pin text)")
        db.executemany("insert into devices values (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    db.close()


def hash_files(folder) -> dict:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def project(tmp_path):
    "A project of another company: the files of company/ as they come, but for its questions, and no table yet"
    shutil.copytree(ROOT/"company", tmp_path/"company")
    (tmp_path/"company"/"questions.yaml").unlink()
    shutil.copy(ROOT/"params.yaml", tmp_path)
    (tmp_path/"data"/"facts").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def plant(project):
    "Two tables in data/facts, and a database beside them"
    make_pumps(project/"data"/"facts"/"pumpen.csv")
    make_prices(project/"data"/"facts"/"prices.xlsx")
    make_devices(project/"data"/"hospital.sqlite")
    return project


def test_keys_and_values_are_chosen(plant):
    answer = draft(plant, copy=True)
    assert answer.file == "company/questions.yaml" and answer.state == "written" and answer.copied == ["data/facts/devices.csv"]
    assert {kind.table: kind.key for kind in answer.kinds} == {"devices.csv": ["inventory_no"], "prices.xlsx": ["Art.-No."], "pumpen.csv": ["Pumpe"]}
    asked = {(kind.table, kind.answer) for kind in answer.kinds}
    assert asked == {("devices.csv", column) for column in ("device", "serial", "ward", "last_service", "interval_months")} | {
        ("prices.xlsx", column) for column in ("Product", "Unit Price", "Pack size", "Colour")} | {
        ("pumpen.csv", column) for column in ("Standort", "Druck_bar", "Förderstrom m3/h", "Baujahr", "Werkstoff")}
    left_out = {(left.table, left.column): left.reason for left in answer.left_out}
    assert "answer longer than 40" in left_out["data/facts/pumpen.csv", "Bemerkung"] and "one value, `EUR`" in left_out["data/facts/prices.xlsx", "Currency"]
    assert "counts the rows" in left_out["data/facts/devices.csv", "id"]
    examples = {kind.answer: kind.example for kind in answer.kinds}
    assert examples["Druck_bar"].startswith("What is the Druck (bar) of P-1") and examples["Unit Price"].startswith("What is the Unit Price of F")
    assert answer.phrasings >= 30 and answer.phrasings_held_out >= 5
    said = format_draft(answer)
    for words in ("pumpen.csv: Druck_bar by Pumpe, 40 facts", "ingest.exclude", "hospital.sqlite", "14 in all", "language of company/columns.yaml"): assert words in said, words


def measure(project) -> list:
    "How often the drafted questions find their row, by kind and in all; the draft passes the check before"
    company, facts = project/"company", project/"data"/"facts"
    assert check_company(company, facts, LIMIT).problems == []
    kinds, style = load_settings(company/"questions.yaml", QuestionKinds), load_settings(company/"style.yaml", Style)
    known = load_facts(company/"questions.yaml", kinds, facts, [], style, max_answer_characters=LIMIT, limit=0)
    questions = make_questions(known, kinds, 8)
    make_distractors(facts)
    passages = read_table_passages(facts, {kind.table: kind.key for kind in kinds.values()}, {}, "en")
    found = search(build_index(passages), [question["question"] for question in questions], 3, [])
    recall = tabulate_recall(rank_answers(questions, found))
    for row in recall: print(f"{row['kind']:26} {row['questions']:5} questions, the row comes first {row['source@1']:6} %, among three {row['source@3']:6} %")
    assert len(passages) > 4000 and len(questions) == len(kinds) * 8 * 38
    return recall


def test_the_draft_passes_the_check_and_finds_its_rows(plant):
    "Of the drafted questions, in every phrasing, at least nine in ten find their row, among distractors of the same make and of another company"
    draft(plant, copy=True)
    assert all(row["source@1"] >= 90 and row["source@3"] >= 90 for row in measure(plant))


def test_rows_are_found_by_names_of_many_words_by_numbers_and_by_two_columns(project):
    "Not by every name: of a row whose name is May, a word that search passes over, no word is left but the region"
    facts = project/"data"/"facts"
    write_csv(facts/"elbows.csv", [{"Product": f"Elbow {10 + n // 6 * 5} mm {'chrome white black brass grey copper'.split()[n % 6]}", "Unit Price": f"{n},45", "Pack size": [1, 5, 10, 25][n % 4]} for n in range(48)])
    write_csv(facts/"tickets.csv", [dict(ticket_no=4000 + n, state=["open", "closed", "waiting"][n % 3], room=f"{n % 9 + 1}A") for n in range(60)])
    write_csv(facts/"sales.csv", [dict(month=month, region=region, revenue_EUR=n * 1000 + i * 37) for n, month in enumerate(["January", "February", "March", "April", "May"]) for i, region in enumerate(["North", "South", "East Anglia", "Centre"])])
    answer = draft(project)
    assert {kind.table: kind.key for kind in answer.kinds} == {"elbows.csv": ["Product"], "tickets.csv": ["ticket_no"], "sales.csv": ["region", "month"]}
    examples = {kind.answer: kind.example for kind in answer.kinds}
    assert "of ticket no 40" in examples["room"] and "(region " in examples["revenue_EUR"]
    *recall, total = measure(project)
    assert total["source@1"] >= 90 and all(row["source@1"] >= 90 for row in recall if not row["kind"].startswith("sales"))


def make_distractors(facts):
    "Other rows: valves and devices whose columns and names look alike, and the tables of the default company"
    valves = [{"Ventil": f"V-{101 + n}", "Standort": PLACES[n % 5], "Druck_bar": f"{n},5", "Baujahr": 1990 + n % 31, "Werkstoff": "Guss"} for n in range(200)]
    write_csv(facts/"ventile.csv", valves)
    write_csv(facts/"old_devices.csv", [dict(inventory_no=f"INV-{5000 + n}", device="monitor", ward="surgery", interval_months=n % 24) for n in range(200)])
    write_csv(facts/"screws.csv", [{"Art.-No.": f"S{n}-C", "Product": f"Screw {n} mm chrome", "Unit Price": n, "Pack size": 25, "Colour": "chrome"} for n in range(200)])
    for path in (ROOT/"data"/"facts").glob("*.csv"): shutil.copy(path, facts)


def test_synth_uses_the_draft_without_an_edit(plant, tmp_path, monkeypatch):
    "The company's weights and paraphrases still name the default company's kinds, and stop nothing"
    monkeypatch.setenv("FORGE_CKPT", str(tmp_path/"checkpoint"))
    draft(plant, copy=True)
    facts = plant/"data"/"facts"
    kinds = load_settings(plant/"company"/"questions.yaml", QuestionKinds)
    write_jsonl(tmp_path/"train.jsonl", [])
    passages = read_table_passages(facts, {kind.table: kind.key for kind in kinds.values()}, {}, "en")
    for name in ("train", "live"): save_index(build_index(passages), tmp_path/"indices"/name)
    params = load_params(ROOT/"params.yaml")["synth"] | dict(num_pairs=60, num_prompts=60, num_eval_items=60, num_column_rows=200, pii=[], pii_patterns=[])
    metrics = synth(plant/"company", facts, tmp_path/"train.jsonl", tmp_path/"own.jsonl", tmp_path/"indices", seed=0, **params, out=tmp_path/"out")
    rows, rejected = read_jsonl(tmp_path/"out"/"rows"/"sft.jsonl"), read_jsonl(tmp_path/"out"/"rejected.jsonl")
    asked = {row["kind"] for row in rows if row["generator"] == "company/questions.yaml"}
    assert asked == set(kinds), "a kind has no row"
    ours = [row for row in rejected if row["generator"] == "company/questions.yaml" and row["verdict"] != "true"]
    share = len(ours) / (len(ours) + sum(row["generator"] == "company/questions.yaml" for row in rows))
    print(f"{len(rows)} rows; of those in drafted phrasings {share:.1%} rejected")
    assert share < .05
    held_out = {item["kind"] for item in read_jsonl(tmp_path/"out"/"eval_set"/"items.jsonl") if item["part"] == "phrasing"}
    assert held_out == set(kinds) and metrics["eval_set_hash"]


def test_a_key_with_two_values_is_listed_and_not_asked(project):
    "Twice in one table, in two tables, and outside data/facts: both values and both places, and no question names the key"
    facts = project/"data"/"facts"
    rows = [dict(pump=f"P-{n}", pressure_bar=n % 7 + 3, hall=f"hall {n % 4}") for n in range(30)]
    write_csv(facts/"pumps.csv", [*rows, dict(pump="P-3", pressure_bar=99, hall="hall 3")])
    write_csv(facts/"spare.csv", [dict(Name=f"S-{n}", hall=f"hall {n % 3}") for n in range(9)] + [dict(Name="P-7", hall="yard")])
    (project/"data"/"old.csv").write_text("pump;Pressure [bar];hall\n" + "".join(f"P-{n};{n % 7 + 3 + (n == 12)};hall {n % 4}\n" for n in range(30)), encoding="utf-8")
    answer = draft(project)
    assert [(c.key, c.column, c.values, c.places) for c in answer.conflicts] == [
        ("P-12", "pressure (bar)", ["8", "9"], ["data/facts/pumps.csv:14", "data/old.csv:14"]), ("P-3", "pressure (bar)", ["6", "99"], ["data/facts/pumps.csv:5", "data/facts/pumps.csv:32"]),
        ("P-7", "hall", ["hall 3", "yard"], ["data/facts/pumps.csv:9", "data/facts/spare.csv:11"])]
    kinds = load_settings(project/"company"/"questions.yaml", QuestionKinds)
    assert {tuple(kind.where_not[kind.key[-1]]) for kind in kinds.values() if kind.table == "pumps.csv"} == {("P-12", "P-3", "P-7")}
    assert kinds["spare_hall"].where_not == {"Name": ["P-7"]} and check_company(project/"company", facts, LIMIT).problems == []
    style = load_settings(project/"company"/"style.yaml", Style)
    known = load_facts(project/"company"/"questions.yaml", kinds, facts, [], style, max_answer_characters=LIMIT, limit=0)
    assert not {"P-3", "P-7", "P-12"} & {fact["fill"][kinds[fact["kind"]].key[-1]] for fact in known} and len(known) == 27 + 27 + 9
    assert "P-12, pressure (bar): `8` (data/facts/pumps.csv:14), `9` (data/old.csv:14)" in format_draft(answer)


def test_private_columns_are_no_key_no_answer_and_no_copy(project):
    "By their names and by what stands in them"
    rows = [dict(badge=f"B-{n}", mail=f"kim{n}@firma-nord.de", password=f"secret{n}", room=f"{n % 5}A") for n in range(20)]
    write_csv(project/"data"/"rooms.csv", rows)
    answer = draft(project, copy=True)
    assert [(kind.key, kind.answer) for kind in answer.kinds] == [(["badge"], "room")]
    copied = read_fact_table(project/"data"/"facts"/"rooms.csv")
    assert copied[0] == dict(badge="B-0", room="0A", document="rooms.csv") and len(copied) == 20
    assert "kim" not in (project/"data"/"facts"/"rooms.csv").read_text(encoding="utf-8")
    shutil.copy(project/"data"/"rooms.csv", project/"data"/"facts"/"staff.csv")
    (project/"company"/"questions.yaml").unlink()
    reasons = {left.column: left.reason for left in draft(project).left_out if left.table == "data/facts/staff.csv"}
    assert reasons["password"] == "is private by its name" and reasons["mail"] == "holds personal data (email 20×)"
    text = (project/"company"/"questions.yaml").read_text(encoding="utf-8")
    assert "secret" not in text and "firma-nord" not in text and "password" not in text


def test_nothing_is_overwritten(plant):
    "A file of the user's stays as it is, to the byte; the draft goes beside it, and never over another draft"
    company, own = plant/"company", b"price: {}  # mine\r\n"
    (company/"questions.yaml").write_bytes(own)
    before = hash_files(plant/"company") | hash_files(plant/"data")
    first = draft(plant)
    assert (first.file, first.state) == ("company/questions.draft.yaml", "written") and "save it as company/questions.yaml" in format_draft(first)
    drafted = (company/"questions.draft.yaml").read_bytes()
    assert draft(plant).state == "unchanged"
    assert {**hash_files(plant/"company"), **hash_files(plant/"data")} == before | {"questions.draft.yaml": hashlib.sha256(drafted).hexdigest()}
    (company/"questions.draft.yaml").write_bytes(drafted + b"# edited\n")
    with pytest.raises(Invalid, match="questions.draft.yaml is there and differs.*rename or delete it"): draft(plant)
    assert (company/"questions.yaml").read_bytes() == own and (company/"questions.draft.yaml").read_bytes() == drafted + b"# edited\n"


def test_the_same_tables_give_the_same_bytes(plant, tmp_path):
    first = draft(plant, copy=True)
    before = hash_files(plant)
    again = draft(plant, copy=True)
    assert (first.state, again.state, again.copied) == ("written", "unchanged", []) and hash_files(plant) == before
    (plant/"company"/"questions.yaml").unlink()
    assert draft(plant).kinds == first.kinds and hash_files(plant) == before


def test_tables_elsewhere_are_named_with_the_remedy(plant):
    "Without --copy data/ stays as it is; a table whose copy would hide another is left out"
    before = hash_files(plant/"data")
    left = {left.table: left.reason for left in draft(plant).left_out}
    assert "lies outside data/facts" in left["data/hospital.sqlite!/devices"] and "--copy` copies its 36 rows, of which 5 columns" in left["data/hospital.sqlite!/devices"]
    assert hash_files(plant/"data") == before
    write_csv(plant/"data"/"facts"/"devices.csv", [dict(name=f"a{n}", size=n % 3) for n in range(9)])
    (plant/"company"/"questions.yaml").unlink()
    answer = draft(plant, copy=True)
    assert answer.copied == [] and "which is there and differs" in {left.table: left.reason for left in answer.left_out}["data/hospital.sqlite!/devices"]


@pytest.mark.parametrize("rows, reason", [
    ([dict(price=f"{n % 4},50", year=2000 + n % 3, colour="red green blue".split()[n % 3]) for n in range(30)], "has no key: no column and no two columns"),
    ([dict(name=f"bolt {n}", price=n) for n in range(4)], "has 4 rows"),
    ([dict(name=f"bolt {n}", verified="yes", price=n % 3) for n in range(9)], "its column `verified` must say"),
    ([dict(name=f"bolt {n}", unit="piece") for n in range(9)], "no column of it can be asked about")])
def test_a_table_that_gives_nothing_is_one_sentence(project, rows, reason):
    write_csv(project/"data"/"facts"/"a.csv", rows)
    answer = draft(project)
    assert (answer.state, answer.file, answer.kinds) == ("nothing", "", []) and not (project/"company"/"questions.yaml").exists()
    assert reason in answer.left_out[-1].reason and answer.left_out[-1].table == "data/facts/a.csv" and "there is nothing to draft" in format_draft(answer)


def test_rows_without_a_key_and_files_that_cannot_be_read_are_said(project):
    facts = project/"data"/"facts"
    write_csv(facts/"a.csv", [dict(name=f"bolt {n}" * (n != 5), price=n % 3 + 1) for n in range(30)])
    (facts/"torn.csv").write_text("name,price\nbolt\n", encoding="utf-8")
    (project/"data"/"torn.tsv").write_text("name\tprice\nbolt\n", encoding="utf-8")
    answer = draft(project)
    assert load_settings(project/"company"/"questions.yaml", QuestionKinds)["a_price"].where_not == {"name": [""]} and answer.kinds[0].facts == 29
    left = {left.table: left.reason for left in answer.left_out}
    assert "torn.csv, line 2: expected 2 cells" in left["data/facts/torn.csv"] and "line 2: expected 2 cells" in left["data/torn.tsv#1"]


def forge(capsys, *words: str) -> tuple:
    "Exit code, standard output and standard error of `forge`"
    with pytest.raises(SystemExit) as end: cli.main([*words])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_the_verb_says_what_its_schema_says(project, monkeypatch, capsys):
    "No table at all is bad input, tables without a question are nothing to do"
    monkeypatch.setattr(cli, "ROOT", project)
    code, out, err = forge(capsys, "draft", "--json")
    assert code == 2 and "data/: there is no table" in json.loads(out)["error"] and "put one below data/facts/" in err
    write_csv(project/"data"/"facts"/"a.csv", [dict(name="bolt", price=3)])
    assert forge(capsys, "draft")[0] == 3
    make_pumps(project/"data"/"facts"/"pumpen.csv")
    code, out, err = forge(capsys, "draft", "--json")
    answer = json.loads(out)
    validate(answer, cli.answer_schema("draft"))
    assert (code, err) == (0, "") and DraftAnswer(**answer).state == "written" and len(answer["kinds"]) == 5


def test_copies_are_recorded(bare, tmp_path):
    "What --copy adds to data/ is in data.dvc and in SHA256SUMS, and the tables of facts as they were"
    copy = sibling(bare, tmp_path/"project")
    make_devices(copy.root/"data"/"hospital.sqlite")
    refuse(copy, "draft --copy", 2, "data/")
    copy("python -m forge_nb.core.runner adopt && dvc add -q data")
    before = hash_files(copy.root/"data"/"facts")
    answer = ask(copy, "draft --copy")
    assert answer["copied"] == ["data/facts/devices.csv"] and answer["file"] == "company/questions.draft.yaml"
    assert "facts/devices.csv" in (copy.root/"data"/"SHA256SUMS").read_text(encoding="utf-8") and "up to date" in copy("dvc status data.dvc")
    after = hash_files(copy.root/"data"/"facts")
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"devices.csv"}


@pytest.mark.parametrize("pattern, column", [("badge=Z-[0-9]{4}", "badge"), ("machine=M[0-9]{3}X", "machine")])
def test_patterns_of_the_company_are_private_too(project, pattern, column):
    "What `shared.pii_patterns` finds is no key, no answer and in no copy"
    params = load_params(ROOT/"params.yaml")
    params["shared"]["pii_patterns"] = [pattern]
    (project/"params.yaml").write_text(json.dumps(params), encoding="utf-8")
    write_csv(project/"data"/"rooms.csv", [dict(name=f"room {n}", badge=f"Z-{4000 + n}", machine=f"M{100 + n}X", floor=f"{n % 5}A") for n in range(20)])
    draft(project, copy=True)
    assert column not in read_fact_table(project/"data"/"facts"/"rooms.csv")[0] and "floor" in read_fact_table(project/"data"/"facts"/"rooms.csv")[0]
    assert not [kind for kind in load_settings(project/"company"/"questions.yaml", QuestionKinds).values() if column in (kind.answer, *kind.key)]
