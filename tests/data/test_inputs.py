"Kinds of files that once lost a part without a word: boxes, forms, hyphens, columns, Office files of before 2007, anchors in headings"
import zipfile
from pathlib import Path

import pytest
from pypdf import PdfWriter
from pypdf.generic import ArrayObject, DecodedStreamObject, DictionaryObject, FloatObject, NameObject, TextStringObject
from test_formats import p, r, word_file
from test_readers import only, read, texts

from forge_nb.data.own_data import copy_data
from forge_nb.data.passages import split_document

BOX = "<w:txbxContent>{}</w:txbxContent>"
DRAWN = ('<w:drawing xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing" xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape">'
         '<wp:inline><a:graphic><a:graphicData uri="http://schemas.microsoft.com/office/word/2010/wordprocessingShape"><wps:wsp><wps:txbx>{}</wps:txbx></wps:wsp></a:graphicData></a:graphic></wp:inline></w:drawing>')


def page(drawing: str, field: str = "") -> PdfWriter:
    "A PDF of one page with what is drawn on it, and a form with one field"
    writer, name = PdfWriter(), NameObject
    sheet = writer.add_blank_page(595, 842)
    font = writer._add_object(DictionaryObject({name("/Type"): name("/Font"), name("/Subtype"): name("/Type1"), name("/BaseFont"): name("/Helvetica")}))
    sheet[name("/Resources")] = DictionaryObject({name("/Font"): DictionaryObject({name("/F"): font})})
    stream = DecodedStreamObject()
    stream.set_data(drawing.encode())
    sheet[name("/Contents")] = writer._add_object(stream)
    if field:
        box = writer._add_object(DictionaryObject({
            name("/Type"): name("/Annot"), name("/Subtype"): name("/Widget"), name("/FT"): name("/Tx"), name("/T"): TextStringObject("finding"), name("/V"): TextStringObject(field), name("/F"): FloatObject(4),
            name("/Rect"): ArrayObject(map(FloatObject, (200, 700, 400, 720))), name("/DA"): TextStringObject("/F 10 Tf 0 g")}))
        sheet[name("/Annots")] = ArrayObject([box])
        writer._root_object[name("/AcroForm")] = DictionaryObject({name("/Fields"): ArrayObject([box])})
    return writer


def drawn(*lines: tuple) -> str: return "\n".join(f"BT /F 10 Tf {x} {y} Td ({text}) Tj ET" for x, y, text in lines)


@pytest.mark.parametrize("form", [f'<w:pict><v:shape xmlns:v="urn:schemas-microsoft-com:vml"><v:textbox>{BOX}</v:textbox></v:shape></w:pict>', DRAWN.format(BOX)])
def test_a_text_box_is_read(tmp_path, form):
    "In the form of Word before 2010 and after"
    warning = p(r("The capacitor keeps its charge for ten minutes."))
    (tmp_path/"a.docx").write_bytes(word_file(p(r("Before the cover is opened:")) + f"<w:p><w:r>{form.format(warning)}</w:r></w:p>"))
    [document], rejects = read(tmp_path, "a.docx")
    assert "keeps its charge for ten minutes" in document["text"] and "Before the cover" in document["text"] and not rejects


def test_what_was_filled_into_a_form_is_read(tmp_path):
    page(drawn((60, 780, "Goods inward inspection, kept for ten years"), (60, 766, "Finding:")), "three pallets wet, refused").write(tmp_path/"a.pdf")
    [text] = texts(read(tmp_path, "a.pdf")[0])
    assert "Finding:" in text and "three pallets wet, refused" in text


def test_a_word_that_is_broken_at_the_end_of_a_line_is_joined(tmp_path):
    page(drawn((60, 780, "The plan of the conveyor is kept in the main-"), (60, 766, "tenance office, where everybody may read it."))).write(tmp_path/"a.pdf")
    assert "the maintenance office" in " ".join(texts(read(tmp_path, "a.pdf")[0])[0].split())


def test_columns_are_read_one_after_the_other(tmp_path):
    "They are drawn line by line across the page"
    left = "The left column speaks of pumps: a pump of|class A lifts forty cubic metres in an hour,|and its seal is changed once a year, before|the winter, by a fitter of the maker.".split("|")
    right = "The right column speaks of valves: a valve|of class B closes in two seconds, and holds|sixteen bar; its spring is tested each month|by the operator, who signs for it.".split("|")
    page(drawn(*((x, 780 - 14 * n, text) for n, pair in enumerate(zip(left, right)) for x, text in zip((60, 320), pair)))).write(tmp_path/"a.pdf")
    words = " ".join(texts(read(tmp_path, "a.pdf")[0])[0].split())
    assert " ".join(left) in words and " ".join(right) in words and words.index("pumps") < words.index("valves")


def test_office_files_of_before_2007_are_read():
    "A text and a spreadsheet in the binary formats"
    found, rejects = read(Path(__file__).parent, "old_office.zip")
    memo, *rows = texts(found)
    assert "Memo: spare parts for the spring overhaul" in memo and "6205" in memo and not rejects
    assert rows[0] == "stock_old\nArticle: Flange gasket DN80\nShelf: D-02\nPieces: 140\nCounted: 2014-11-28\n" and len(rows) == 3


def test_anchors_and_comments_in_code_are_no_titles():
    text = "# Gateway\n\nIt runs.\n\n```bash\n# update the package list first\napt update\n```\n\n## Removing {#removing}\n\nStop the service first.\n"
    titles = [title for _, title, _ in split_document(dict(kind="docs", source="a.md", text=text), 20)]
    assert any("Removing" in title for title in titles) and not any("{#" in title or "package list" in title for title in titles), titles


def test_settings_of_tools_stay_behind(tmp_path):
    "A .dvcignore among the data would stop every run"
    (tmp_path/"from").mkdir()
    for name in (".dvcignore", ".gitignore", "a.md"): (tmp_path/"from"/name).write_text("The gate is locked at ten by the porter.\n", encoding="utf-8")
    taken = copy_data(tmp_path/"from", tmp_path/"data", tmp_path/"sets")
    assert taken.copied == ["a.md"] and [*taken.left.values()] == [[".dvcignore", ".gitignore"]] and not (tmp_path/"data"/".dvcignore").exists()


@pytest.mark.parametrize("name, text, line", [("short_row.csv", "machine,pressure\nP-1,9 bar\nP-2\n", 3), ("wide_row.csv", "machine,pressure\nP-1,9 bar,x\n", 2)])
def test_a_row_of_another_length_is_named_by_its_line(tmp_path, name, text, line):
    (tmp_path/name).write_text(text, encoding="utf-8")
    only(tmp_path, name, "cells as in the header", line=line)


@pytest.mark.parametrize("name", ["stock.bin", "stock.txt", "stock"])
def test_an_old_spreadsheet_is_known_by_its_content(tmp_path, name):
    with zipfile.ZipFile(Path(__file__).with_name("old_office.zip")) as archive: (tmp_path/name).write_bytes(archive.read("stock_old.xls"))
    documents, rejects = read(tmp_path, name)
    assert [d["record"]["values"]["Shelf"] for d in documents][:2] == ["D-02", "D-05"] and not rejects


@pytest.mark.parametrize("name", ["memo.doc", "memo.pptx", "memo.docx", "memo.xls", "memo"])
def test_an_old_text_of_word_is_known_by_its_content(tmp_path, name):
    with zipfile.ZipFile(Path(__file__).with_name("old_office.zip")) as archive: (tmp_path/name).write_bytes(archive.read("memo.doc"))
    [document], rejects = read(tmp_path, name)
    assert "bearing" in document["text"] and not rejects


@pytest.mark.parametrize("name", ["a.msg", "a.bin"])
def test_a_mail_of_outlook_is_one_sentence(tmp_path, name):
    (tmp_path/name).write_bytes(b"\xd0\xcf\x11\xe0" + bytes(2000) + "__nameid_version1.0".encode("utf-16-le"))
    assert only(tmp_path, name, "save it as .eml") == []
