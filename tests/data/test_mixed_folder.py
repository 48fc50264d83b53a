"A company's folder of three hundred files of every kind, junk and personal data among them, from `make data` to the model that ships"
import email.message, io, json, random, sqlite3
from collections import Counter
from pathlib import Path

import pyarrow, pyarrow.parquet
import pytest
from copies import FORGE, Copy, ask
from sheets import open_document, sheet_file, zipped
from test_formats import p, r, word_file
from test_readers import a_pdf, encrypted

from forge_nb.core.project import read_csv, read_jsonl
from forge_nb.data.masking import mask_source
from forge_nb.data.passages import load_index, search
from forge_nb.data.pii import DEFAULT_PII_KINDS

WORDS = "pump valve filter pressure gauge seal bearing shaft motor coupling flange gasket housing rotor sensor cable relay fuse panel switch".split()
VERBS = "check replace clean tighten measure oil inspect adjust remove fit test record".split()


def slides(*paragraphs: str) -> bytes:
    "A PowerPoint file of one slide"
    a, p_, r_ = (f"http://schemas.openxmlformats.org/{name}" for name in ("drawingml/2006/main", "presentationml/2006/main", "officeDocument/2006/relationships"))
    types = "application/vnd.openxmlformats-officedocument.presentationml."
    package = "http://schemas.openxmlformats.org/package/2006"
    lines = "".join(f"<a:p><a:r><a:t>{text}</a:t></a:r></a:p>" for text in paragraphs)
    return zipped({
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/ppt/presentation.xml" ContentType="{types}presentation.main+xml"/><Override PartName="/ppt/slides/slide1.xml" ContentType="{types}slide+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{r_}/officeDocument" Target="ppt/presentation.xml"/></Relationships>',
        "ppt/presentation.xml": f'<p:presentation xmlns:p="{p_}" xmlns:r="{r_}"><p:sldIdLst><p:sldId id="256" r:id="r1"/></p:sldIdLst></p:presentation>',
        "ppt/_rels/presentation.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{r_}/slide" Target="slides/slide1.xml"/></Relationships>',
        "ppt/slides/slide1.xml": f'<p:sld xmlns:p="{p_}" xmlns:a="{a}"><p:cSld><p:spTree><p:sp><p:txBody>{lines}</p:txBody></p:sp></p:spTree></p:cSld></p:sld>'})


def book(*paragraphs: str) -> bytes:
    "An EPUB of one chapter"
    chapter = "<html xmlns='http://www.w3.org/1999/xhtml'><head><title>Guide</title></head><body>" + "".join(f"<p>{text}</p>" for text in paragraphs) + "</body></html>"
    return zipped({
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="a.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        "a.opf": '<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="u"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Guide</dc:title><dc:language>en</dc:language><dc:identifier id="u">g</dc:identifier></metadata><manifest><item id="c" href="c.xhtml" media-type="application/xhtml+xml"/></manifest><spine><itemref idref="c"/></spine></package>',
        "c.xhtml": chapter})


def mail(sender: str, body: str) -> bytes:
    "A mail"
    message = email.message.EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, "desk@pumps-and-valves.eu", "Visit"
    message.set_content(body)
    return message.as_bytes()


def notebook(text: str) -> bytes:
    "A Jupyter notebook of a text and a cell of code"
    cells = [dict(cell_type="markdown", metadata={}, source=[text]), dict(cell_type="code", metadata={}, source=["rows = 90"], outputs=[], execution_count=None)]
    return json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)).encode()


def database(folder: Path, rows: list) -> bytes:
    "A SQLite file of one table"
    path = folder/"made.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table machines (id integer primary key, machine text, note text)")
        connection.executemany("insert into machines (machine, note) values (?, ?)", rows)
    connection.close()
    raw = path.read_bytes()
    path.unlink()
    return raw


def columns(rows: list) -> bytes:
    "A Parquet file"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out := io.BytesIO())
    return out.getvalue()


def lines(rows: list) -> bytes:
    "JSON, a row a line"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


class Mixed:
    "What a folder of mixed files holds, for the tests to compare with"

    def __init__(self, folder: Path):
        self.folder, self.rng, self.count = folder, random.Random(5), 0
        self.marker, self.items, self.private, self.junk = {}, {}, {}, []
        folder.mkdir()
        self.make_documents(), self.make_tables(), self.make_rows(), self.make_junk()

    def word(self) -> str:
        "A word that stands in one document alone"
        self.count += 1
        return "".join(self.rng.choice(("bra", "dol", "fen", "gur", "kel", "mos", "nar", "pil", "rud", "tav")) for _ in range(4)) + "xyz"[self.count % 3] + "aeiou"[self.count % 5]

    def text(self, marker: str, num_sentences: int = 24) -> str:
        "Sentences of a manual, one of them with the marker"
        pick = self.rng.choice
        made = [f"To {pick(VERBS)} the {pick(WORDS)} of the {pick(WORDS)}, the {pick(WORDS)} must be at {self.rng.randrange(5, 95)} percent, and the {pick(WORDS)} is set by {pick(WORDS)} {self.rng.randrange(100)}." for _ in range(num_sentences)]
        made.insert(2, f"The {marker} is what a fitter calls the {pick(WORDS)} with the small {pick(WORDS)}.")
        return "\n".join(made)

    def address(self, place: str) -> str:
        "A mail address that is planted in a place"
        address = f"fitter{len(self.private)}.{self.word()}@pumps-and-valves.eu"
        self.private[place] = address.partition("@")[0]  # what is looked for
        return address

    def phone(self, place: str) -> str:
        "A telephone number that is planted in a place"
        self.private[place] = number = f"+49 30 9018{2000 + len(self.private)}"
        return number

    def card(self, place: str) -> str:
        "A number of a payment card that is planted in a place"
        digits = f"453914880343{len(self.private):03}"
        total = sum(sum(divmod(int(c) * (2 - n % 2), 10)) for n, c in enumerate(digits))
        self.private[place] = number = f"{digits}{-total % 10}"
        return number

    def secret(self, place: str) -> str:
        "A word that only the name of its column makes private"
        self.private[place] = word = f"{self.word()}sesame"
        return word

    def add(self, name: str, raw: bytes, marker: str = "", num_items: int = 1):
        "Write a file, and note what it holds"
        path = self.folder/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        self.items[name] = num_items
        if marker: self.marker[name] = marker

    def make_documents(self):
        "Documents in every format"
        wiki = lambda text: f"<html><body><nav>Home Spaces People</nav><main>{text}</main><footer>Powered by a wiki</footer></body></html>".encode()
        paragraphs = lambda text: text.split("\n")
        formats = {
            "manuals/{}.md": (58, lambda text: f"# Manual\n\n{text}\n".encode()), "notes/{}.txt": (16, str.encode), "notes/west {}.txt": (2, lambda text: f"Prüfung – {text}".encode("cp1252")),
            "notes/wide {}.txt": (2, lambda text: text.encode("utf-16")), "manuals/{}.rst": (10, lambda text: f"Manual\n======\n\n{text}\n".encode()),
            "wiki/{}.html": (30, lambda text: wiki("".join(f"<p>{line}</p>" for line in paragraphs(text)))), "office/{}.docx": (20, lambda text: word_file("".join(p(r(line)) for line in paragraphs(text)))),
            "office/{}.pptx": (8, lambda text: slides(*paragraphs(text))), "office/{}.odt": (8, lambda text: open_document("text", "".join(f"<text:p>{line}</text:p>" for line in paragraphs(text)))),
            "office/{}.rtf": (5, lambda text: (r"{\rtf1\ansi " + text.replace("\n", r"\par ") + "}").encode()), "office/{}.epub": (4, lambda text: book(*paragraphs(text))),
            "pdf/{}.pdf": (16, lambda text: a_pdf(text.replace("\n", " "))), "mail/{}.eml": (18, lambda text: mail("desk@pumps-and-valves.eu", text)), "analysis/{}.ipynb": (8, notebook),
            "src/{}.py": (18, lambda text: "".join(f"def step_{n}(x):\n    # {line}\n    return x + {n}\n\n" for n, line in enumerate(paragraphs(text))).encode())}
        for pattern, (count, write) in formats.items():
            for n in range(count): self.add(pattern.format(n), write(self.text(marker := self.word())), marker)
        def text(place): return (f"{self.text(self.word())}\nWrite to {self.address(place)} before you open it, or call {self.phone(f'phone in {place}')}.\n"
                                 f"Pay with {self.card(f'card in {place}')} at the gate.\n")
        self.add("private/text.md", text("text").encode())
        self.add("private/page.html", wiki(f"<p>{text('page')}</p>"))
        self.add("private/word.docx", word_file(p(r(text("word")))))
        self.add("private/slide.pptx", slides(*text("slide").split("\n")))
        self.add("private/paper.pdf", a_pdf(text("paper").replace("\n", " ")))
        self.add("private/body.eml", mail(self.address("header"), text("body")))
        self.add("private/hidden.md", text("hidden").replace("@", "@\u200b").encode())
        self.add(f"private/{self.address('name')}.md", self.text(self.word()).encode())
        marker = self.word()
        self.add("archive/old.zip", zipped({"old/a.md": self.text(marker), "old/b.md": self.text(self.word())}), marker, 2)

    def make_tables(self):
        "Tables in every format, each of five rows"
        head = ["machine", "note", "pressure"]
        def rows(marker, contact=""):
            made = [[f"{self.rng.choice(WORDS)} {self.word()}", f"{self.rng.choice(VERBS)} the {self.rng.choice(WORDS)} every {self.rng.randrange(90)} days", str(self.rng.randrange(900))] for _ in range(5)]
            made[2][1] += f", says {marker} {contact}".rstrip()
            return [head, *made]
        text = lambda table, sign: "".join(sign.join(row) + "\n" for row in table)
        records = lambda table: [dict(zip(head, row)) for row in table[1:]]
        cells = lambda row: "<table:table-row>" + "".join(f'<table:table-cell office:value-type="string"><text:p>{cell}</text:p></table:table-cell>' for cell in row) + "</table:table-row>"
        formats = {
            "tables/{}.csv": (8, lambda table: text(table, ",").replace(", says", " says").encode()), "tables/semicolon {}.csv": (3, lambda table: text(table, ";").encode("cp1252")), "tables/{}.tsv": (3, lambda table: text(table, "\t").encode()),
            "tables/{}.xlsx": (10, lambda table: sheet_file(dict(Machines=table))), "tables/{}.ods": (4, lambda table: open_document("spreadsheet", f'<table:table table:name="Machines">{"".join(map(cells, table))}</table:table>')),
            "tables/{}.parquet": (3, lambda table: columns(records(table))), "tables/{}.jsonl": (4, lambda table: lines(records(table))), "tables/{}.json": (4, lambda table: json.dumps(records(table)).encode()),
            "tables/{}.sqlite": (2, lambda table: database(self.folder, [row[:2] for row in table[1:]]))}
        for pattern, (count, write) in formats.items():
            for n in range(count): self.add(pattern.format(n), write(rows(marker := self.word())), marker, 5)
        self.add("private/cells.csv", text(rows(self.word(), self.address("cell")), ";").encode(), num_items=5)
        logins = [["machine", "userPassword", "Date of Birth"], *([f"{self.rng.choice(WORDS)} {self.word()}", self.secret(f"column {n}"), self.secret(f"birth {n}")] for n in range(5))]
        self.add("private/logins.csv", text(logins, ";").encode(), num_items=5)
        self.add("private/people.sqlite", self.people(), num_items=5)
        crew = [["name", "hall", "mail", "phone", "card", "passwordHash", "note"]]
        for n in range(9): crew.append([f"{self.rng.choice(WORDS)} {self.word()}", f"{n + 3}", self.address(f"fact {n}"), self.phone(f"fact phone {n}"), self.card(f"fact card {n}"), self.secret(f"fact column {n}"), f"{self.rng.choice(VERBS)} it, ask {self.address(f'fact note {n}')}" if n == 4 else f"{self.rng.choice(VERBS)} it"])
        crew.append([self.address("fact key"), "21", "", "", "", "", "oil it"])
        path = self.folder/"facts"/"crew.csv"
        path.parent.mkdir()
        path.write_text(text(crew, ";"), encoding="utf-8")
        self.add("private/keys.jsonl", lines([{**row, self.address("key"): "yes"} if n == 1 else {**row, "other": "no"} for n, row in enumerate(records(rows(self.word())))]), num_items=5)

    def people(self) -> bytes:
        "A SQLite file of a table whose key is a mail address"
        path = self.folder/"people.sqlite"
        with sqlite3.connect(path) as connection:
            connection.execute("create table people (mail text primary key, hall text, phone text)")
            connection.executemany("insert into people values (?, ?, ?)", [(self.address(f"database key {n}"), f"hall {n} of the {self.word()}", self.phone(f"database cell {n}")) for n in range(5)])
        connection.close()
        raw = path.read_bytes()
        path.unlink()
        return raw

    def make_rows(self):
        "Conversations, pairs and prompts"
        def turns(n, contact=""): return [dict(role="user", content=f"Who may {self.rng.choice(VERBS)} the {self.rng.choice(WORDS)} number {n} of hall {self.rng.randrange(99)}?"), dict(role="assistant", content=f"Only the team of hall {n % 7} may, {contact or 'after a call'}.")]
        chats = [dict(messages=turns(n)) for n in range(60)]
        chats[7] = dict(messages=turns(7, self.address("chat")))
        self.add("support/chats.jsonl", lines(chats), num_items=60)
        self.rejected = self.word()
        pairs = [dict(prompt=f"How do I {self.rng.choice(VERBS)} part {n}?", chosen=f"Stop the {self.rng.choice(WORDS)} first, part {n} last.", rejected=f"Just pull part {n}, {self.rejected}.") for n in range(40)]
        pairs[3]["chosen"] += f" Ask {self.address('pair')}."
        self.add("support/pairs.jsonl", lines(pairs), num_items=40)
        self.add("support/judged.jsonl", lines([dict(prompt=f"Is part {n} in stock?", completion=f"Yes, on shelf {n}." if n % 2 else f"No idea, {self.rejected}.", label=bool(n % 2)) for n in range(20)]), num_items=20)
        self.add("support/faq.csv", ("question,answer\n" + "".join(f"Where is the {word}?,In hall {n}.\n" for n, word in enumerate(WORDS))).encode(), num_items=len(WORDS))

    def make_junk(self):
        "What cannot be read, or is no document"
        junk = {"empty.md": b"", "noise.txt": bytes(range(256)) * 8, "torn.docx": b"PK\3\4 torn", "torn.xlsx": b"\xd0\xcf\x11\xe0" + bytes(900), "broken.json": b'{"a": [1, 2', "pointer.csv": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
                "photo.png": b"\x89PNG\r\n\x1a\n" + bytes(900), "locked.pdf": encrypted(a_pdf("locked"), "secret"), "torn.parquet": b"PAR1 torn", "torn.sqlite": b"SQLite format 3\0" + bytes(900), "torn.zip": b"PK\3\4 torn", "stub.md": b"TODO\n", "no head.eml": b"no head at all",
                "package-lock.json": b'{"lockfileVersion": 3}', "poetry.lock": b"x = 1\n", ".DS_Store": bytes(40), "Thumbs.db": bytes(40), "~$report.docx": bytes(40), "tsconfig.json": b"{}", "marks.txt": b"=-=-=-= " * 90,
                "node_modules/a/index.js": b"x\n" * 9, "__pycache__/a.pyc": bytes(90), ".git/HEAD": b"ref: refs/heads/main\n", ".venv/a.py": b"x = 1\n", "generated.py": b"# Generated by make_tables, do not edit\n" + b"x = 1\n" * 30, "min.js": b"var a=1;" * 900,
                "copy.md": (self.folder/"manuals/0.md").read_bytes(), "copy of copy.md": (self.folder/"manuals/0.md").read_bytes().replace(b"\n", b"\r\n"), "binary.bin": bytes(range(256)) * 9, "torn.ipynb": b"{"}
        for name, raw in junk.items():
            self.add(f"junk/{name}", raw)
            self.junk.append(f"junk/{name}")


class Company:
    "A project that was given the folder, and what its first stages made of it"

    def __init__(self, here: Path):
        self.mixed, self.copy = Mixed(here/"company"), Copy(here/"project")
        (self.copy.root/"company"/"questions.yaml").unlink()  # those of the default company
        self.given = self.copy(f"python -m forge_nb.data.own_data {self.mixed.folder} && python -m forge_nb.data.versions && python -m forge_nb.ops.check data")
        self.copy("python -m forge_nb.core.runner profile tiny && sed -i 's/^  limit: [1-9][0-9]*/  limit: 0/' params.yaml")
        self.drafted, self.checked = self.copy(f"{FORGE} draft --copy"), ask(self.copy, "check")
        self.copy("dvc repro synth")

    def read(self, name: str) -> list:
        "Rows of a JSONL file of artifacts/"
        return read_jsonl(self.copy.root/"artifacts"/name)

    def read_json(self, name: str) -> dict:
        "Values of a JSON file of artifacts/"
        return json.loads((self.copy.root/"artifacts"/name).read_text(encoding="utf-8"))

    def kept(self, *folders: str) -> list:
        "Documents, or rows to train on, that curate kept"
        return [row for folder in folders for path in sorted((self.copy.root/"artifacts"/"curate"/folder).glob("*.jsonl")) for row in read_jsonl(path)]


@pytest.fixture(scope="module")
def company(tmp_path_factory): return Company(tmp_path_factory.mktemp("mixed"))


def count_by_file(names, rows: list) -> Counter:
    "Documents and rows of each file, whose name may be masked"
    counts, known = Counter(), {mask_source(name, DEFAULT_PII_KINDS)[0]: name for name in names} | {name: name for name in names}
    for row in rows:
        counts[next(known[name] for name in (row["source"], row["source"].rpartition("#")[0], row["source"].partition("!/")[0]) if name in known)] += 1
    return counts


def test_what_comes_in_goes_out_or_is_named_with_a_reason(company):
    "Rows in are rows out and rows dropped; a file that is no document is named when it is left out"
    items, dropped, rejected = company.mixed.items, company.read("curate/dropped.jsonl"), company.read("ingest/rejects.jsonl")
    assert all(row["reason"] for row in [*dropped, *rejected])
    found = count_by_file(items, [*company.kept("documents", "rows"), *dropped, *rejected])
    given = company.given.partition("masked for the name of their column")[0]
    left_out = {name for name in items if name.rpartition("/")[2] in given or name.split("/")[1] in given}
    assert {name: (found[name], count) for name, count in items.items() if found[name] != count and name not in left_out} == {}
    assert left_out <= set(company.mixed.junk)
    assert {row["source"] for row in rejected} <= set(company.mixed.junk)
    lost = {row["source"] for row in dropped} - set(company.mixed.junk)
    assert lost <= {"manuals/0.md"} and len(company.mixed.items) >= 300


def test_the_text_of_every_format_is_found(company):
    "A word that stands in one document alone leads to it"
    markers = company.mixed.marker
    index = load_index(company.copy.root/"artifacts"/"retrieval"/"live")
    found = search(index, [*markers.values()], 1, [])
    missed = [name for (name, word), passages in zip(markers.items(), found) if not passages or word not in passages[0]["text"]]
    assert not missed, missed
    for name in ("office/3.docx", "mail/2.eml"):
        assert ask(company.copy, f"search {markers[name]}")["passages"][0]["source"] == name


def read_everything(root: Path, *folders: str):
    "Yield every file below these folders as text, Parquet and arrays of numbers included"
    for path in (path for folder in folders for path in sorted((root/folder).rglob("*")) if path.is_file()):
        if path.suffix == ".parquet": yield path, repr(pyarrow.parquet.read_table(path).to_pylist())
        else: yield path, path.read_bytes().decode("utf-8", "replace")


def test_no_planted_value_comes_downstream(company):
    "What was planted in text, cells, keys, names, headers, rows and tables of facts stands in nothing that curate, retrieval and synth wrote, and in no report"
    names = company.mixed.private
    seen = [(place, path) for path, text in read_everything(company.copy.root, "artifacts/curate", "artifacts/retrieval", "artifacts/synth", "artifacts/assess", "reports") for place, name in names.items() if name in text]
    assert seen == [] and len(names) >= 80


def test_rows_of_facts_are_asked_about_and_found_without_what_is_private(company):
    "The hall of a fitter is a question; no column, key or cell with a tag for an answer is"
    rows = company.read("synth/rows/sft.jsonl")
    asked = {parent for row in rows for parent in row["parents"] if parent.startswith("crew.csv:")}
    assert asked and "crew.csv:11" not in asked, "the row whose name is masked"
    assert not [row["messages"][-1]["content"] for row in rows if row["generator"] == "company/columns.yaml" and any(f"`[{tag}]" in row["messages"][-1]["content"] for tag in ("email", "phone", "card", "passwordhash"))]
    rejects = {row["file"] for row in read_csv(company.copy.root/"artifacts"/"assess"/"rejects.csv")}
    assert rejects == {row["source"] for row in company.read("ingest/rejects.jsonl")}


def test_rows_to_train_on_are_no_documents(company):
    "No answer that people rejected, and no conversation, stands in what a tokenizer and a model read"
    kinds = Counter(row["kind"] for row in company.kept("rows"))
    assert kinds == dict(chat=60 + len(WORDS), pairs=40, kto=20)
    text = "".join(text for _, text in read_everything(company.copy.root, "artifacts/curate/documents", "artifacts/curate/dataset", "artifacts/retrieval"))
    assert company.mixed.rejected not in text and "Only the team of hall" not in text


def test_check_tells_before_anything_is_spent_what_is_trained_from_what(company):
    "The closing table counts what lies in the folder"
    table = {row["material"]: row for row in company.checked["material"]}
    assert table["conversations"]["items"] == 60 + len(WORDS) and table["preference pairs"]["items"] == 40 and table["judged answers"]["items"] == 20
    assert table["rows of tables"]["files"] == 45 and table["documents"]["files"] >= 200 and "sft" in table["conversations"]["used_by"]
    private = {"facts/crew.csv: passwordHash", "private/logins.csv: userPassword", "private/logins.csv: Date of Birth"}
    assert {*company.checked["private_columns"]} == private and {*company.read_json("assess/metrics.json")["private_columns"]} == private
    assert {line.partition(":")[0].partition(",")[0] for line in company.checked["unreadable"]} <= set(company.mixed.junk)


@pytest.mark.slow
def test_the_whole_chain_makes_a_model_of_it(company):
    "`dvc repro` of the profile `tiny` ends with a model that ships, measured on rows that were held back, and nothing planted in anything"
    company.copy("dvc repro")
    artifacts = company.copy.root/"artifacts"
    metrics = {row["metric"] for row in company.read("evaluate/scores.jsonl")}
    assert {"own_bpb", "own_margin"} <= metrics
    names = company.mixed.private
    folders = [f"artifacts/{folder.name}" for folder in artifacts.iterdir() if folder.name != "ingest"]
    assert [(place, path) for path, text in read_everything(company.copy.root, *folders, "reports", "receipts") for place, name in names.items() if name in text] == []
    from safetensors.torch import load_file
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(artifacts/"tokenizer"/"tokenizer")
    said = "".join(tokenizer.decode(tokens.tolist()) for tokens in load_file(artifacts/"tokenizer"/"tokens"/"train.safetensors").values())
    assert company.mixed.rejected not in said and "fitter calls" in said
    answer = ask(company.copy, "ask 'Who may check the pump of hall 3?'")
    assert answer["answer"]
