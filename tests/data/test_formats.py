"What must stand in the text of every format, and what must not: boxes, notes, forms, exponents, spans, menus, attachments"
import email.message, io, json, zipfile

import pytest
from sheets import open_document, sheet_file
from test_readers import only, read, texts

from forge_nb.data.readers import list_sources

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def word_file(body: str, **parts) -> bytes:
    "A Word file with this body; notes in further parts"
    types = "".join(f'<Override PartName="/word/{name}.xml" ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.{name}+xml"/>' for name in parts)
    relations = "".join(f'<Relationship Id="r{n}" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/{name}" Target="{name}.xml"/>' for n, name in enumerate(parts))
    files = {"[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
             f'<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/>{types}</Types>',
             "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>',
             "word/_rels/document.xml.rels": f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{relations}</Relationships>',
             "word/document.xml": f'<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>'} | {f"word/{name}.xml": text for name, text in parts.items()}
    with zipfile.ZipFile(out := io.BytesIO(), "w") as z:
        for name, text in files.items(): z.writestr(name, text)
    return out.getvalue()


def p(*runs: str) -> str: return f"<w:p>{''.join(runs)}</w:p>"
def r(text: str, style: str = "") -> str: return f'<w:r><w:rPr>{style}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


@pytest.mark.parametrize("body, there, gone", [
    (p(r("It holds 10"), r("6", '<w:vertAlign w:val="superscript"/>'), r(" ohm")), "10^6 ohm", "106"),
    (p(r("The price is "), r("9 EUR", "<w:strike/>"), r(" 12 EUR")), "12 EUR", "9 EUR"),
    (p(r("Use "), f'<w:ins w:id="1" w:author="a">{r("seal B")}</w:ins>', '<w:del w:id="2" w:author="a"><w:r><w:delText>seal A</w:delText></w:r></w:del>'), "seal B", "seal A"),
    (f'<w:sdt><w:sdtContent>{p(r("Accepted with two defects."))}</w:sdtContent></w:sdt>', "Accepted with two defects.", "sdt")])
def test_word_keeps_what_its_author_meant(tmp_path, body, there, gone):
    "Exponents and form contents stay, struck-out and deleted text goes"
    (tmp_path/"a.docx").write_bytes(word_file(body))
    [document], rejects = read(tmp_path, "a.docx")
    assert there in document["text"] and gone not in document["text"] and not rejects


def test_a_superscript_stands_behind_its_sign(tmp_path):
    "In rich text and OpenDocument; a subscript stays as it is"
    styles = "".join(f'<style:style style:name="{name}" style:family="text"><style:text-properties style:text-position="{place} 58%"/></style:style>' for name, place in dict(T1="super", T2="sub").items())
    body = '<text:p>Resist 10<text:span text:style-name="T1">6</text:span> ohm in H<text:span text:style-name="T2">2</text:span>O</text:p>'
    (tmp_path/"a.odt").write_bytes(open_document("text", body, f"<office:automatic-styles>{styles}</office:automatic-styles>"))
    (tmp_path/"b.rtf").write_bytes(rb"{\rtf1\ansi Resist 10{\super\fs16 6} ohm in H{\sub 2}O}")
    for name in ("a.odt", "b.rtf"): assert texts(read(tmp_path, name)[0]) == ["Resist 10^6 ohm in H2O\n"]


def test_a_footnote_stands_below_its_paragraph(tmp_path):
    note = f'<w:footnotes xmlns:w="{W}"><w:footnote w:id="2">{p(r("250 kg when the arm is out."))}</w:footnote></w:footnotes>'
    (tmp_path/"a.docx").write_bytes(word_file(p(r("At most 500 kg"), '<w:r><w:footnoteReference w:id="2"/></w:r>', r(" in any position.")), footnotes=note))
    [document], _ = read(tmp_path, "a.docx")
    assert "At most 500 kg[2] in any position." in document["text"] and "[2] 250 kg when the arm is out." in document["text"]


def test_sheets_are_tables_below_their_header(tmp_path):
    "A title above the header is no row, whole numbers have no decimals, a hidden sheet is named and left out"
    (tmp_path/"stock.xlsx").write_bytes(sheet_file({"Stock": [["Stock of the north"], [], ["Article", "Pieces", "Price"], ["Bolt", 900, .12], ["Nut", 120, 3]], "Margins": [["Article", "Margin"], ["Bolt", .4]]}, ("Margins",)))
    documents, [rejected] = read(tmp_path, "stock.xlsx")
    assert [d["record"]["values"] for d in documents] == [dict(Article="Bolt", Pieces="900", Price="0.12"), dict(Article="Nut", Pieces="120", Price="3")]
    assert documents[0]["record"]["table"] == "stock" and rejected["source"].endswith("Margins") and "hidden" in rejected["reason"]


@pytest.mark.parametrize("above", [[["Stock list", 2026]], [["Stock list", "", "North"]], [["Acme", "Stock"], [], ["Printed", "in January"]], []])
@pytest.mark.parametrize("form", ["xlsx", "csv"])
def test_no_column_is_lost_below_a_title(tmp_path, above, form):
    "Titles of one cell or more; columns without a name; notes beside the table"
    rows = [*above, ["Article", "Shelf", "", "Price"], ["Bolt", "B-14", "checked", .5], ["Nut", "B-15", "", 3], ["Pin", "", "", 1]]
    rows = [row + [""] * (4 - len(row)) for row in rows]
    if form == "xlsx": (tmp_path/"a.xlsx").write_bytes(sheet_file({"Stock": rows}))
    else: (tmp_path/"a.csv").write_text("".join(";".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    documents, rejects = read(tmp_path, f"a.{form}")
    assert not rejects and documents[0]["record"]["values"] == {"Article": "Bolt", "Shelf": "B-14", "column 3": "checked", "Price": "0.5"} and len(documents) == 3


def test_a_cell_beyond_the_header_is_kept(tmp_path):
    (tmp_path/"a.xlsx").write_bytes(sheet_file({"Stock": [["Article", "Price"], ["Bolt", .5, "", "ask Kim"], ["Nut", 3], ["Pin", 1]]}))
    documents, _ = read(tmp_path, "a.xlsx")
    assert documents[0]["record"]["values"] == {"Article": "Bolt", "Price": "0.5", "column 3": "ask Kim"}


def test_formulas_that_nobody_computed_are_one_sentence(tmp_path):
    raw = sheet_file({"Stock": [["Article", "Price", "Sum"], ["Bolt", 2, 7], ["Nut", 3, 8]]})
    with zipfile.ZipFile(io.BytesIO(raw)) as z: files = {name: z.read(name) for name in z.namelist()}
    for change, number in ((b'<c r="C2"><f>B2*2</f></c>', 1), (b'<c r="C2"><f>B2*2</f><v></v></c>', 1), (b'<c r="C2"><f>B2*2</f><v>4</v></c>', 0), (b'<c r="C2" t="str"><f>A2</f><v></v></c>', 0)):
        with zipfile.ZipFile(tmp_path/"a.xlsx", "w") as z:
            for name, text in files.items(): z.writestr(name, text.replace(b"<c><v>7</v></c>", change))
        documents, rejects = read(tmp_path, "a.xlsx")
        assert len(documents) == 2 and [r["reason"].count("the first in C2") for r in rejects] == [1] * number, change


def test_frequent_questions_in_a_sheet_are_conversations(tmp_path):
    (tmp_path/"faq.xlsx").write_bytes(sheet_file({"Faq": [["Question", "Answer"], ["Is it open?", "From nine to five."]]}))
    [document], _ = read(tmp_path, "faq.xlsx")
    assert document["kind"] == "chat" and document["record"]["messages"][1]["content"] == "From nine to five."


@pytest.mark.parametrize("name, raw, words", [
    ("a.docx", b"PK\3\4 torn", "save it again"), ("a.xlsx", b"\xd0\xcf\x11\xe0" + bytes(2000), "save it again"), ("a.pptx", bytes(500), "save it as"),
    ("a.odt", b"PK\3\4 torn", "save it again"), ("a.doc", b"\xd0\xcf\x11\xe0" + bytes(2000), "save it as .docx"), ("a.eml", b"no head at all", "From, To or Subject"),
    ("a.ipynb", b"{", "which is JSON"), ("stock.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull")])
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, raw, words):
    (tmp_path/name).write_bytes(raw)
    assert only(tmp_path, name, words) == []


def test_a_page_is_its_main_part(tmp_path):
    "Menus, what is hidden, footers and struck-out text go; a footnote in an aside, fields, choices and pictures' words stay"
    page = """<html><body><nav>Home Spaces</nav><aside>Changed lately</aside><main><h1>Press</h1><p>Greased every <del>50</del> 40 hours, 10<sup>3</sup> strokes.</p>
      <aside role="doc-footnote">In summer 30.</aside><select><option>low<option selected>high</select><input value="valve leaks"><img alt="Sketch of the valve" src="a.png"></main>
      <div style="display: none">tracking</div><footer>Powered by a wiki</footer></body></html>"""
    (tmp_path/"a.html").write_text(page, encoding="utf-8")
    text = read(tmp_path, "a.html")[0][0]["text"]
    for words in ("# Press", "every 40 hours", "10^3 strokes", "In summer 30.", "high", "valve leaks", "Sketch of the valve"): assert words in text, words
    for words in ("Home", "Changed lately", "50", "low", "tracking", "Powered"): assert words not in text, words


def test_cells_keep_their_columns(tmp_path):
    table = "<table><tr><th></th><th>Basic</th><th>Pro</th></tr><tr><td rowspan=2>Press</td><td>early</td><td>north</td></tr><tr><td>late</td><td>south</td></tr><tr><td colspan=2>Sum</td><td>4</td></tr></table>"
    (tmp_path/"a.html").write_text(f"<html><body>{table}</body></html>", encoding="utf-8")
    rows = [line for line in read(tmp_path, "a.html")[0][0]["text"].split("\n") if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["", "Basic", "Pro"] and cells[2:] == [["Press", "early", "north"], ["Press", "late", "south"], ["Sum", "", "4"]]


@pytest.mark.parametrize("page, there", [
    ('<form id="aspnetForm"><input type="hidden" name="__VIEWSTATE" value="dDwt"><div><h1>Press</h1><p>Grease it.</p></div></form>', ("# Press", "Grease it.")),
    ('<form method="post"><table><tr><td>Hours</td><td>40</td></tr></table><label>Note <input value="valve leaks"></label></form>', ("| Hours | 40 |", "valve leaks")),
    ("<header><h1>Press</h1></header><p>Grease it.</p>", ("# Press", "Grease it.")), ("<div><header><h2>Press</h2></header><p>Grease it.</p></div>", ("## Press", "Grease it.")),
    ("<form><header><h1>Press</h1></header><section><p>Grease it.</p></section></form>", ("# Press", "Grease it.")),
    ("<article><header><h1>Press</h1><p>By Kim</p></header><p>Grease it.</p></article>", ("# Press", "By Kim", "Grease it."))])
def test_what_a_form_or_a_header_holds_is_the_page(tmp_path, page, there):
    (tmp_path/"a.html").write_text(f"<html><body>{page}</body></html>", encoding="utf-8")
    [document], rejects = read(tmp_path, "a.html")
    assert all(words in document["text"] for words in there) and "dDwt" not in document["text"] and not rejects


@pytest.mark.parametrize("page", ['<header><a href="/">Acme</a> Log in</header>', '<form role="search">Search all<input></form>', '<form action="/find"><input type="search"><button>Go</button></form>'])
def test_what_every_page_of_a_site_has_is_left_out(tmp_path, page):
    (tmp_path/"a.html").write_text(f"<html><body>{page}<p>Grease it.</p></body></html>", encoding="utf-8")
    assert texts(read(tmp_path, "a.html")[0]) == ["Grease it.\n"]


@pytest.mark.parametrize("page", ["<html><body><div id=root></div><script>start()</script></body></html>", "<html></html>", "<p> </p>", "<nav>Home</nav>", "<!-- nothing -->"])
def test_a_page_without_words_is_a_reject(tmp_path, page):
    (tmp_path/"a.html").write_text(page, encoding="utf-8")
    assert only(tmp_path, "a.html", "expected text in a web page") == []


@pytest.mark.parametrize("table", [
    '<table><tr><td class="linenos"><pre>1\n2</pre></td><td class="code"><pre>def a():\n    return 1</pre></td></tr></table>',
    "<table><tr><td><pre>1\n2\n</pre></td><td><div><pre>def a():\n    return 1\n</pre></div></td></tr></table>", "<table><tr><td><pre>def a():\n    return 1</pre></td></tr></table>",
    '<table><tr><td data-line-number="1"></td><td class="blob-code js-line">def a():</td></tr><tr><td>2</td><td class="blob-code">    return 1</td></tr></table>'])
def test_code_that_is_laid_out_as_a_table_is_code(tmp_path, table):
    (tmp_path/"a.html").write_text(f"<html><body><p>Call it:</p>{table}<p>That is all.</p></body></html>", encoding="utf-8")
    assert texts(read(tmp_path, "a.html")[0]) == ["Call it:\n\n```\ndef a():\n    return 1\n```\n\nThat is all.\n"]


def test_mails_are_decoded_and_their_attachments_read(tmp_path):
    mail = email.message.EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "kim@acme.org", "desk@acme.org", "Rückfrage zur Dichtung"
    mail.set_content("Die Prüfung erfolgt alle zwölf Monate, für Öl gilt FKM.")
    mail.add_attachment(b"name,price\nbolt,3\n", maintype="text", subtype="csv", filename="list.csv")
    mail.add_attachment(b"\x89PNG\0\0", maintype="image", subtype="png", filename="photo.png")
    (tmp_path/"a.eml").write_bytes(mail.as_bytes())
    documents, rejects = read(tmp_path, "a.eml")
    assert [d["source"] for d in documents] == ["a.eml", "a.eml!/list.csv#1"] and not rejects
    assert "Subject: Rückfrage zur Dichtung" in documents[0]["text"] and "für Öl gilt FKM" in documents[0]["text"] and "base64" not in documents[0]["text"]
    box = b"".join(b"From x Fri Jan  2 10:00:00 2026\n" + mail.as_bytes() + b"\n" for _ in range(2))
    (tmp_path/"b.mbox").write_bytes(box)
    assert [d["source"] for d in read(tmp_path, "b.mbox")[0]] == [f"b.mbox#{n}{part}" for n in (1, 2) for part in ("", "!/list.csv#1")]


def test_a_notebook_is_its_prose_and_code(tmp_path):
    cells = [dict(cell_type="markdown", source=["# Drift\n", "Over ninety days."]), dict(cell_type="code", source=["rows = 90\n"], outputs=[dict(text=["90 printed"])])]
    (tmp_path/"a.ipynb").write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(language="python")))), encoding="utf-8")
    assert texts(read(tmp_path, "a.ipynb")[0]) == ["# Drift\nOver ninety days.\n\n```python\nrows = 90\n```\n"]


def test_what_programs_leave_behind_is_no_document(tmp_path):
    for name in ("~$report.docx", "Thumbs.db", "desktop.ini", "tsconfig.json", "tsconfig.build.json", "package-lock.json", "poetry.lock", ".DS_Store", "notes.md",
                 "Podfile.lock", "pubspec.lock", "bun.lockb", "mix.lock", "Package.resolved", "~WRL0001.tmp", "~WRD0003.doc", "~report.tmp", "gradle.lockfile", "go.work.sum", "ehthumbs.db"):
        (tmp_path/name).write_text("x", encoding="utf-8")
    assert list_sources(tmp_path) == ["notes.md"]


def test_signs_that_nobody_sees_are_taken_out(tmp_path):
    (tmp_path/"a.md").write_text("War\u00adtung unter 040\u200b 7946\u200d 0958, \ufb01nden.\nمی\u200cخواهم\n", encoding="utf-8")
    assert texts(read(tmp_path, "a.md")[0]) == ["Wartung unter 040 7946 0958, finden.\nمی\u200cخواهم\n"]


@pytest.mark.parametrize("name, text, values", [
    ("sep.csv", "sep=;\nArticle;Price\nBolt;12,00\n", dict(Article="Bolt", Price="12,00")),
    ("title.csv", "Stock of the north;;\nPrinted in January;;\nArticle;Shelf;Count\nBolt;B-14;900\n", dict(Article="Bolt", Shelf="B-14", Count="900")),
    ("comma.csv", "Article;Price (net, EUR, per 100);Stock (pieces, sum)\nBolt;12,00;900\n", {"Article": "Bolt", "Price (net, EUR, per 100)": "12,00", "Stock (pieces, sum)": "900"}),
    ("inch.tsv", 'id\tname\tsize\n1\t"Heavy" bolt\t3/4" thread\n', dict(id="1", name='"Heavy" bolt', size='3/4" thread')),
    ("end.csv", "name,price\nbolt,3,\n", dict(name="bolt", price="3"))])
def test_tables_as_they_are_exported(tmp_path, name, text, values):
    (tmp_path/name).write_text(text, encoding="utf-8")
    [document], rejects = read(tmp_path, name)
    assert document["record"]["values"] == values and not rejects


@pytest.mark.parametrize("rows, value", [
    ([["1001", "Bolt", "12.00"], ["1002", "Nut", "3.50"]], "1001"), ([["Hex bolt M6", "1001", "12.00"], ["Nut", "1002", "3.50"]], "1001"), ([["Bolt", "zinc", "12,5 %"], ["Nut", "none", "3 %"]], "12,5 %"),
    ([["Bolt", "2024-01-05", "12.00"], ["Nut", "2024-01-06", ""]], "12.00"), ([["Hex bolt", "12.00"]], "12.00")])
@pytest.mark.parametrize("form", ["xlsx", "csv"])
def test_rows_without_a_header_are_one_sentence(tmp_path, rows, value, form):
    if form == "xlsx": (tmp_path/"a.xlsx").write_bytes(sheet_file({"Stock": rows}))
    else: (tmp_path/"a.csv").write_text("".join(";".join(row) + "\n" for row in rows), encoding="utf-8")
    assert only(tmp_path, f"a.{form}", f"found the number {value}", line=1) == []


@pytest.mark.parametrize("header", ["Region;2023;2024", "Length;2;3.5;4", "Name;Price", "Part;M3;M4", "Region;2019;2020;2021"])
def test_years_and_sizes_may_be_names_of_columns(tmp_path, header):
    names = header.split(";")
    (tmp_path/"a.csv").write_text(f"{header}\n" + "".join(";".join(["North", *map(str, range(n, n + len(names) - 1))]) + "\n" for n in (5, 9)), encoding="utf-8")
    documents, rejects = read(tmp_path, "a.csv")
    assert not rejects and [*documents[0]["record"]["values"]] == names and len(documents) == 2


@pytest.mark.parametrize("wrap", [
    lambda rows: dict(data=rows, meta=dict(page=1, total=2)), lambda rows: dict(items=rows, links=dict(next="/2"), _links={}), lambda rows: dict(response=dict(items=rows, total=2), status="ok"),
    lambda rows: {"@context": dict(a="b"), "value": rows}, lambda rows: dict(data=dict(results=dict(rows=rows))), lambda rows: dict(data=rows, included=[dict(id=1)], errors=[]),
    lambda rows: dict(d=dict(results=rows)), lambda rows: dict(took=3, timed_out=False, hits=dict(total=2, hits=rows))])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_wrapped_rows_are_rows(tmp_path, wrap, name):
    import gzip
    rows = [dict(name="bolt", maker=dict(city="Ulm")), dict(name="nut", maker=dict(city="Bonn"))]
    raw = json.dumps(wrap(rows), indent=1).encode()
    (tmp_path/name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    documents, rejects = read(tmp_path, name)
    assert not rejects and [d["record"]["values"] for d in documents] == rows


@pytest.mark.parametrize("whole", [dict(name="pump", maker=dict(city="Ulm"), parts=[dict(name="bolt")]), dict(order=dict(number=7, lines=[dict(name="bolt")])), dict(a=[dict(n=1)], b=[dict(n=2)]), dict(meta=dict(n=1))])
def test_one_thing_with_parts_is_one_row(tmp_path, whole):
    (tmp_path/"a.json").write_text(json.dumps(whole), encoding="utf-8")
    [document], rejects = read(tmp_path, "a.json")
    assert document["record"]["values"] == whole and not rejects


def test_lines_of_json_are_read_whatever_the_file_is_called(tmp_path):
    lines = ['{"name": "bolt", "price": 3}', "", '{"name": "nut", "price": }', '{"name": "pin", "price": 1}', '{"name": "cap", "price": 2}']
    (tmp_path/"a.json").write_text("\n".join(lines), encoding="utf-8")
    documents = only(tmp_path, "a.json", "mistake at column", line=3)
    assert [d["record"]["values"]["name"] for d in documents] == ["bolt", "pin", "cap"]


def test_a_full_text_index_is_no_table(tmp_path):
    import sqlite3
    with sqlite3.connect(tmp_path/"a.sqlite") as c:
        c.execute("create virtual table notes using fts5(title, body)")
        c.execute("insert into notes values ('Oil', 'Change it in May.')")
        c.execute("create table app_data (id integer primary key, text)")
        c.execute("insert into app_data values (1, 'kept')")
    assert [d["source"] for d in read(tmp_path, "a.sqlite")[0]] == ["a.sqlite!/app_data#1", "a.sqlite!/notes#1"]


@pytest.mark.parametrize("module, columns, row", [("fts3", "title, body", "('Oil', 'Change it in May.')"), ("fts4", "title, body", "('Oil', 'Change it in May.')"), ("fts5", "title, body", "('Oil', 'Change it in May.')"),
                                                  ("fts5", "title, body, columnsize=0", "('Oil', 'Change it in May.')"), ("rtree", "id, x0, x1", "(1, 2, 3)")])
def test_tables_of_an_index_are_no_tables(tmp_path, module, columns, row):
    import sqlite3
    with sqlite3.connect(tmp_path/"a.sqlite") as c:
        c.execute(f"create virtual table found using {module}({columns})")
        c.execute(f"insert into found values {row}")
        for name in ("found_parents", "raw_data", "tree_node"): c.execute(f"create table {name} (id integer primary key, text)"); c.execute(f"insert into {name} values (1, 'kept')")
    assert sorted(d["source"] for d in read(tmp_path, "a.sqlite")[0]) == ["a.sqlite!/found#1", *(f"a.sqlite!/{name}#1" for name in ("found_parents", "raw_data", "tree_node"))]


def test_headings_of_a_pdf_are_headings(tmp_path):
    "Of one line and of two; what they stand above is the same"
    from test_readers import a_pdf_of
    said = [(10, "The pump is greased every forty hours by whoever is on shift."), (10, "Use grease of class two, and wipe off what is left over.")]
    (tmp_path/"a.pdf").write_bytes(a_pdf_of([(22, "Pump manual"), *said, (16, "Greasing"), *said, (16, "Storage in winter and in other"), (16, "cold places"), *said, *said]))
    [document], _ = read(tmp_path, "a.pdf")
    lines = document["text"].split("\n")
    assert [line for line in lines if line.startswith("#")] == ["# Pump manual", "## Greasing", "## Storage in winter and in other cold places"]
    assert [line for line in lines if line and line[0] != "#"] == [text for _, text in said * 4]


def test_a_key_that_says_who_somebody_is_names_no_row(tmp_path):
    import sqlite3
    with sqlite3.connect(tmp_path/"a.sqlite") as c:
        c.execute("create table users (mail text primary key, role text)")
        c.execute("insert into users values ('kim@acme-pumps.eu', 'fitter')")
    [document], _ = read(tmp_path, "a.sqlite")
    assert document["source"] == "a.sqlite!/users#1"
