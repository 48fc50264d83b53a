"The text of a small file of every format, frozen by its hash for a reader's version: an upgrade that reads otherwise is seen and named"
import io, json, sqlite3, zipfile

import pytest
from test_formats import p, r, sheet_file, word_file
from test_readers import PLAIN, a_pdf

from forge_nb.data.readers import read_source

OPEN_TEXT = """<?xml version="1.0"?><office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0" xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0" xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0">
<office:body><office:text><text:h text:outline-level="1">Handover</text:h><text:p>The press is greased every 40 hours.</text:p><table:table><table:table-row><table:table-cell><text:p>bolt</text:p></table:table-cell><table:table-cell><text:p>M3</text:p></table:table-cell></table:table-row></table:table></office:text></office:body></office:document-content>"""
PAGE = "<html><body><nav>Home</nav><h1>Press</h1><p>Greased every <b>40</b> hours, 10<sup>3</sup> strokes.</p><ul><li>arm</li><li>belt</li></ul><table><tr><th></th><th>A</th></tr><tr><td>size</td><td>M3</td></tr></table></body></html>"


def zipped(files: dict) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w") as z:
        for name, text in files.items(): z.writestr(name, text)
    return out.getvalue()


def open_document(kind: str) -> bytes:
    manifest = f'<?xml version="1.0"?><manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"><manifest:file-entry manifest:full-path="/" manifest:media-type="{kind}"/></manifest:manifest>'
    return zipped({"mimetype": kind, "META-INF/manifest.xml": manifest, "content.xml": OPEN_TEXT})


def book() -> bytes:
    return zipped({"mimetype": "application/epub+zip", "META-INF/container.xml": '<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="a.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
                   "a.opf": '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="i"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Guide</dc:title><dc:identifier id="i">x</dc:identifier><dc:language>en</dc:language></metadata><manifest><item id="c" href="c.xhtml" media-type="application/xhtml+xml"/></manifest><spine><itemref idref="c"/></spine></package>',
                   "c.xhtml": '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>c</title></head><body><h1>Chapter</h1><p>The valve is tested in May.</p></body></html>'})


def slides() -> bytes:
    main, rels = "http://schemas.openxmlformats.org/presentationml/2006/main", "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    draw, package, content = "http://schemas.openxmlformats.org/drawingml/2006/main", "http://schemas.openxmlformats.org/package/2006", "application/vnd.openxmlformats-officedocument.presentationml"
    related = lambda kind, target: f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{rels}/{kind}" Target="{target}"/></Relationships>'
    return zipped({"[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/ppt/presentation.xml" ContentType="{content}.presentation.main+xml"/><Override PartName="/ppt/slides/slide1.xml" ContentType="{content}.slide+xml"/></Types>',
                   "_rels/.rels": related("officeDocument", "ppt/presentation.xml"), "ppt/_rels/presentation.xml.rels": related("slide", "slides/slide1.xml"),
                   "ppt/presentation.xml": f'<p:presentation xmlns:p="{main}" xmlns:r="{rels}"><p:sldIdLst><p:sldId id="256" r:id="r1"/></p:sldIdLst></p:presentation>',
                   "ppt/slides/slide1.xml": f'<p:sld xmlns:p="{main}" xmlns:a="{draw}"><p:cSld><p:spTree><p:sp><p:nvSpPr><p:cNvPr id="2" name="t"/><p:cNvSpPr/><p:nvPr/></p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/><a:p><a:r><a:t>Kick-off in hall two</a:t></a:r></a:p></p:txBody></p:sp></p:spTree></p:cSld></p:sld>'})


def database(path):
    with sqlite3.connect(path) as c: c.executescript("create table bolts (id integer primary key, size text); insert into bolts values (1, 'M3')")


def columns(path):
    import pyarrow as pa
    from pyarrow import parquet
    parquet.write_table(pa.table(dict(name=["bolt", "nut"], price=[3., None])), path)


MAIL = b"From: kim@acme.org\r\nTo: desk@acme.org\r\nSubject: Seal\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>For <b>oil</b> take FKM.</p>\r\n"
FILES = {
    "a.docx": word_file(p(r("It holds 10"), r("6", '<w:vertAlign w:val="superscript"/>'), r(" ohm."))), "a.xlsx": sheet_file({"Stock": [["Article", "Pieces"], ["Bolt", 900], ["Nut", 1.5]]}), "a.pptx": slides(),
    "a.odt": open_document("application/vnd.oasis.opendocument.text"), "a.rtf": rb"{\rtf1\ansi The warranty runs for \b 36 months\b0 . {\super 2}\par Second line.}", "a.epub": book(),
    "a.pdf": a_pdf("Bolt M3 costs 3 EUR."), "a.html": PAGE.encode(), "a.eml": MAIL, "a.parquet": columns, "a.sqlite": database,
    "a.csv": b"name;price\nbolt;3,10\n", "a.jsonl": b'{"name": "bolt", "price": 3}\n', "a.ipynb": json.dumps(dict(cells=[dict(cell_type="markdown", source="# Drift")])).encode(), "a.txt": "Größe in Millimetern.\n".encode("cp1252")}
FROZEN = {  # what read it when it was frozen, and the ids of the documents, which are hashes of their texts
    "a.docx": ("office-oxide 0.1.15", "07447479ac56b8df"),
    "a.xlsx": ("python-calamine 0.9.1", "baaa2d3a2416d06d", "f3cc95529ab355c3"),
    "a.pptx": ("office-oxide 0.1.15", "20edfae9ecd1503e"),
    "a.odt": ("firecrawl-anydoc 0.2.4", "2e700727406618a6"),
    "a.rtf": ("firecrawl-anydoc 0.2.4", "434e7e474dcde851"),
    "a.epub": ("firecrawl-anydoc 0.2.4", "c7dc45a1d0cae6c1"),
    "a.pdf": ("pdf-oxide 0.3.78, pdf-inspector 1.25.2", "5dfab9585a50ef1b"),
    "a.html": ("html-to-markdown 3.21.2, lxml 6.1.3", "56b4e8a0e32fe088"),
    "a.eml": ("html-to-markdown 3.21.2, lxml 6.1.3", "355ec0fe9669ddd3"),
    "a.parquet": ("pyarrow 26.0.1", "46e660066fb4600c", "405dd8c81d9c587a"),
    "a.sqlite": ("forge_nb", "4bc8c7eafe3bb8e4"),
    "a.csv": ("forge_nb", "769a9082e7b94deb"),
    "a.jsonl": ("forge_nb", "765bf3a1212943d2"),
    "a.ipynb": ("forge_nb", "eda83100f4d40a80"),
    "a.txt": ("forge_nb", "d615116d7b8eb738")}


@pytest.mark.parametrize("name", FILES)
def test_a_reader_reads_what_it_read(tmp_path, name):
    if callable(content := FILES[name]): content(tmp_path/name)
    else: (tmp_path/name).write_bytes(content)
    found = list(read_source(tmp_path, name, **PLAIN))
    assert found and not [reject for _, reject in found if reject]
    [reader], ids = {d["reader"] for d, _ in found}, [d["id"] for d, _ in found]
    frozen_reader, *frozen = FROZEN[name]
    assert ids == frozen, f"{name} was frozen with {frozen_reader}; {reader} reads it as {[d['text'] for d, _ in found]}: if that is right, freeze {[reader, *ids]}"
    assert reader.split()[0] == frozen_reader.split()[0]


def test_an_upgrade_that_reads_otherwise_is_named(tmp_path, monkeypatch):
    "Documents bear the version that read them"
    from forge_nb.data import readers
    readers.describe_reader.cache_clear()
    monkeypatch.setattr(readers, "version", lambda name: "9.9")
    (tmp_path/"a.rtf").write_bytes(FILES["a.rtf"])
    [(document, _)] = read_source(tmp_path, "a.rtf", **PLAIN)
    readers.describe_reader.cache_clear()
    assert document["reader"] == "firecrawl-anydoc 9.9"
