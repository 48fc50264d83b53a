"Personal data planted in every place where a value may stand: none of it comes out of curate, assess, the passages or a search"
import base64, json, sqlite3, sys, zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_curate import PARAMS, SHARED, corpus, run

from forge_nb.assess import assess
from forge_nb.core.project import Invalid, read_csv, read_json, read_jsonl
from forge_nb.core.settings import QuestionKind
from forge_nb.data.masking import Masked, is_private, mask_document
from forge_nb.data.passages import make_document_passages, read_masked_table, read_table_passages
from forge_nb.evals.arms import read_tables
from forge_nb.ops.receipt import extract_texts
from forge_nb.ops.search import index_bare_folder
from forge_nb.synthesis.columns import make_column_questions
from forge_nb.synthesis.facts import read_kind_rows, select_facts

PAD = "The spare parts are on the second shelf, next to the lamp that stays lit overnight. "


def plant(data: Path) -> list:
    "Write files with personal data in many places; the values, in the form in which a search without signs of no width finds them"
    corpus(data, 0)
    def write(name, text): (data/name).parent.mkdir(parents=True, exist_ok=True); (data/name).write_text(text, encoding="utf-8")
    write("a/signs.md", f"Pay with 4539\u200b1488\u200b03436467 today. {PAD} Call +49\u00ad 30 90\u00ad182044, or (２１２) ５５５-０１４２. {PAD}")
    write("a/code.py", "owner = 'ann\u200ba.meier@acme-tools.io'\n" + "".join(f"y{i} = x * {i}\n" for i in range(30)))
    write("a/Maria Meier CV.md", "The worker has done things. " + PAD * 3)
    write("a/4111111111111111.txt", "About a card. " + PAD * 3)
    write("jane.doe@example.com.txt", "About a mail. " + PAD * 3)
    write("b/jane.roe@acme-tools.io.csv", "name,price\n" + "".join(f"bolt {i},{i}\n" for i in range(9)))
    write("joe.fold@acme-tools.io/page.md", "In the folder of a person. " + PAD * 3)
    write("c/keys.jsonl", "\n".join(json.dumps({"text": f"Keyed text {i}. {PAD * 2}{i}", "author": f"kim{i}@keyed-by.io", f"lee{i}@key-name.io": 3, "deep": {f"sam{i}@deep-key.io": [f"pat{i}@deep-value.io"]}}) for i in range(4)))
    write("c/rows.json", json.dumps([{f"bob{i}@row-key.io": i, "other": f"z\u200bed{i}@row-cell.io", "n": i} for i in range(3)]))
    call = lambda i: dict(type="function", function=dict(name="mail", arguments=json.dumps({f"t{i}@tool-key.io": f"t{i}@tool-value.io"})))
    tool = lambda i: dict(type="function", function=dict(name="mail", description=f"by d{i}@tool-text.io", parameters={f"p{i}@tool-parameter.io": {}}))
    turns = lambda i: [dict(role="user", content=f"Ask {i}: mail u{i}@chat-user.io?"), dict(role="assistant", content="", tool_calls=[call(i)]), dict(role="tool", name=f"v{i}@tool-name.io", content="ok"), dict(role="assistant", content=f"Done {i}.")]
    write("c/chat.jsonl", "\n".join(json.dumps(dict(messages=turns(i), tools=[tool(i)])) for i in range(9)))
    with sqlite3.connect(data/"shop.sqlite") as connection:
        connection.execute("create table customers(mail text primary key, cvv text, national_id text, note text)")
        connection.executemany("insert into customers values(?,?,?,?)", [(f"cust{i}@sql-key.io", f"98{i}7", f"078-05-11{i}x", f"likes bolts {i}") for i in range(5)])
    with zipfile.ZipFile(data/"old.zip", "w") as archive: archive.writestr("zip.member@acme-tools.io.md", "A member. " + PAD * 3)
    body = base64.b64encode(f"Write to enc@mail-body.io. {PAD * 2}".encode()).decode()
    write("mail/x.eml", f"From: Ann <ann.lee@mail-from.io>\nTo: bob@mail-to.io\nSubject: hello\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n{body}\n")
    names = "keyed-by key-name deep-key deep-value row-key row-cell tool-key tool-value tool-text tool-parameter chat-user tool-name sql-key mail-from mail-to mail-body"
    return ["03436467", "90182044", "555-0142", "５５５-０１４２", ".meier@acme", "Maria Meier", "4111111111111111", "jane.doe@", "jane.roe@", "joe.fold@", "zip.member@", "9817", "078-05-11", *(f"@{name}.io" for name in names.split())]


def find_values(folder: Path, values: list) -> list:
    "(file, value) of each value that stands in a file"
    texts = ((p, "\n".join(extract_texts(p) or ())) for p in sorted(folder.rglob("*")) if p.is_file())
    return [(p.name, value) for p, text in texts for value in values if value in text.replace("\u200b", "").replace("\u00ad", "")]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    "A folder with planted values, ingested and curated; the values and the metrics"
    here = tmp_path_factory.mktemp("planted")
    return here, plant(here/"data"), run(here/"data", here/"out", pii_patterns=["machine_id=Machine 1[0-9]\\b"])


def test_no_value_comes_out_of_curate(planted):
    here, values, metrics = planted
    assert {value for _, value in find_values(here/"out"/"ingest", values)} >= set(values) - {"03436467", "90182044", "555-0142"}, "a value that is not there shows nothing"
    assert find_values(here/"out"/"curate", values) == []
    assert metrics["masked"]["machine_id"] == 10 and metrics["masked"]["name"] == 1 and metrics["masked"]["cvv"] == 5


def test_no_value_stands_in_passages_or_in_what_assess_shows(planted):
    here, values, _ = planted
    documents = [d for split in ("train", "valid", "test") for d in read_jsonl(here/"out"/"curate"/"documents"/f"{split}.jsonl")]
    passages = json.dumps(make_document_passages(documents, {}, "en", 1200), ensure_ascii=False)
    assert not [value for value in values if value in passages] and "[email]~" in passages
    metrics = assess(here/"out"/"ingest", here/"data"/"facts", **PARAMS["assess"] | SHARED | dict(stop_when_skipped=False, pii_patterns=["machine_id=Machine 1[0-9]\\b"]), out=here/"assess")
    assert find_values(here/"assess", values) == []
    assert metrics["private_columns"] == ["shop.sqlite!/customers: cvv", "shop.sqlite!/customers: national_id"]
    found = {r["kind"]: r for r in read_csv(here/"assess"/"findings.csv")}
    assert int(found["machine_id"]["count"]) >= 10 and "Machine" not in found["machine_id"]["samples"] and "(name of a file)" in found["name"]["samples"]


def test_a_bare_folder_is_searched_without_them(planted, tmp_path):
    here, values, _ = planted
    index, _ = index_bare_folder(here/"data", tmp_path/"index", PARAMS["shared"]["pii"], 1200)
    assert not [value for value in values if value in json.dumps(index.passages, ensure_ascii=False)]


def test_both_cards_say_what_is_looked_for(planted):
    card = (planted[0]/"out"/"curate"/"dataset"/"README.md").read_text(encoding="utf-8")
    looked_for, not_looked_for = card.partition("## Personal data")[2].split("Not looked for:")
    assert "payment cards" in looked_for and "`machine_id`, a pattern" in looked_for
    assert all(words in not_looked_for for words in ("birth dates", "number plates", "national identity"))


@pytest.mark.parametrize("pattern, words", [("[0-9]*", "name=regular expression"), ("id=[0-9]*", "the empty text"), ("id=(a+)+$", "more than 1 s"), ("id=(", "no regular expression"), ("card=x", "is known"), ("id=[a-z]+", "finds the tag")])
def test_a_bad_pattern_is_one_sentence_before_anything_is_read(planted, tmp_path, pattern, words):
    with pytest.raises(Invalid, match=words): run(planted[0]/"data", tmp_path/"out", pii_patterns=[pattern])
    assert not (tmp_path/"out"/"curate"/"documents").exists()


def test_without_kinds_nothing_is_touched(planted, tmp_path):
    run(planted[0]/"data", tmp_path, pii=[])
    names = {d["source"] for split in ("train", "valid", "test") for d in read_jsonl(tmp_path/"curate"/"documents"/f"{split}.jsonl")} | {d["source"] for d in read_jsonl(tmp_path/"curate"/"dropped.jsonl")}
    assert "a/Maria Meier CV.md" in names and read_json(tmp_path/"curate"/"metrics.json")["masked"] == {}


PRIVATE = ["Date of Birth", "dateOfBirth", "Birth date", "DATE-OF-BIRTH", "Social Security Number", "National ID", "API key", "apiKey", "APIKey", "Passport No", "passport_number", "Steuer-ID", "Steuernummer",
           "userPassword", "password_hash", "Login Password", "PASSWORD2", "customer.ssn", "CVV2", "accessToken", "kfzKennzeichen", "licence plate", "Fecha de nacimiento", "contrasen\u0303a", "Geburtsdatum"]
HARMLESS = ["price", "spin", "keyboard", "password_policy", "passwordless", "birthplace", "token_count", "api_keys_url", "secretary", "passport_required", "Tag", "dobby", "platelets", "number", "no"]


@pytest.mark.parametrize("column", PRIVATE)
def test_a_private_column_is_known_in_every_spelling(column):
    assert is_private(column, "Q7 or 12") and not is_private(column, "")


@pytest.mark.parametrize("column", HARMLESS)
def test_a_harmless_column_stays(column): assert not is_private(column, "4711")


@pytest.mark.parametrize("column, private, harmless", [("pin", "4711", ["1", "12", "GND", "A7"]), ("door_pin", "081523", ["3"]), ("Token", "f3Kd91mQz7Lp04VbT2xW", ["the", "##ing", "12"]), ("Kennzeichen", "B-MW 1234", ["-K1", "=A1+B2", "Motor"])])
def test_a_name_of_two_meanings_is_told_by_its_cell(column, private, harmless):
    "A pin of a card and of a plug, a token of a session and of a tokenizer, the mark of a car and of a motor"
    assert is_private(column, private) and not any(is_private(column, value) for value in harmless)
    row = dict(source="a.csv#1", kind="rows", text=f"a\n{column}: {private}\n", record=dict(table="a", values={column: private}))
    assert private not in repr(mask_document(row, ["email"]))


FACTS = [dict(name=f"pump {n}", hall=f"{n}", mail=f"kim{n}@firma-nord.de", phone=f"+49 30 9018204{n}", card="4539 1488 0343 6467", dateOfBirth=f"1990-01-0{n}", note=f"ask lee{n}@firma-nord.de" if n == 3 else "oil it") for n in range(1, 8)]
FACTS += [dict(FACTS[0], name="the one of max.muster@firma-nord.de", hall="9")]


@pytest.fixture
def facts(tmp_path):
    from forge_nb.core.project import write_csv
    write_csv(tmp_path/"facts"/"pumps.csv", FACTS)
    (tmp_path/"facts"/"rooms.jsonl").write_text(json.dumps({"room": "A1", "Date of Birth": "2 May", "key of ann@firma-nord.de": "3"}) + "\n", encoding="utf-8")
    return tmp_path/"facts"


def test_facts_are_masked_wherever_they_are_read(facts):
    "In passages, in questions about columns and kinds, and in the tables that are looked up without a model"
    kinds = list(PARAMS["shared"]["pii"])
    kind = lambda answer: QuestionKind(table="pumps.csv", key=["name"], answer=answer, ask=["a {name}"], ask_held_out=["b {name}"], state="{answer}")
    phrasings = ["What is the {column} of {key}?"]
    asked = make_column_questions(facts, {}, phrasings, excluded_rows=set(), num_questions=999, pii_kinds=kinds)
    read = [read_table_passages(facts, {}, {}, "en", kinds), asked, read_tables(facts, {}, kinds), read_kind_rows(facts, "a", kind("hall"), facts, [], kinds)]
    for part in read:
        assert not [value for value in ("firma-nord", "9018204", "4539", "1990", "2 May") if value in repr(part)]
    assert {(cell["table"], cell["column"]) for cell in asked} == {("pumps.csv", "hall"), ("pumps.csv", "note"), ("rooms.jsonl", "key of [email]")}
    assert not [cell for cell in asked if "[" in cell["answer"] + cell["key"]], "no question teaches a tag"
    usable, reasons = select_facts("mail", kind("mail"), read[3], 40)
    assert not usable and reasons == {"personal data in the key or the answer": 8}
    usable, reasons = select_facts("hall", kind("hall"), read[3], 40)
    assert len(usable) == 7 and reasons == {"personal data in the key or the answer": 1}


def test_facts_without_kinds_are_as_they_were(facts):
    assert read_masked_table(facts/"pumps.csv", []) == FACTS
    assert not any(isinstance(text, Masked) for row in read_masked_table(facts/"pumps.csv", ["iban"]) for name, text in row.items() if name != "dateOfBirth")


def test_names_in_two_unicode_forms_are_one(facts):
    "A header is read in the form in which company/ is; two that look alike are one sentence"
    (facts/"a.csv").write_text("name,gro\u0308\u00dfe\na,3\n", encoding="utf-8")
    assert [*read_masked_table(facts/"a.csv", [])[0]] == ["name", "gr\u00f6\u00dfe"]
    (facts/"a.csv").write_text("name,gro\u0308\u00dfe,gr\u00f6\u00dfe\na,3,4\n", encoding="utf-8")
    with pytest.raises(Invalid, match="look alike"): read_masked_table(facts/"a.csv", [])
