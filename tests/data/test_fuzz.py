"Files with some bytes changed: whatever is in them, reading goes on, and what cannot be read is said in a sentence"
import email.message, io, json, random, sqlite3

import pytest
from sheets import open_document, sheet_file
from test_formats import p, r, word_file
from test_readers import a_pdf

from forge_nb.data import readers

PLAIN = dict(templates={}, strict=False)
WHOLE = "docx odt rtf html eml ipynb pdf md py".split()  # one file, one document: at most one reject


def a_mail() -> bytes:
    mail = email.message.EmailMessage()
    mail["From"], mail["To"], mail["Subject"], mail["Date"] = '"Kim, K." <kim@acme.org>', "desk@acme.org", "Rückfrage zur Dichtung", "Fri, 02 Jan 2026 10:00:00 +0100"
    mail.set_content("Die Prüfung erfolgt alle zwölf Monate.")
    mail.add_alternative("<p>Die <b>Prüfung</b> erfolgt alle zwölf Monate.</p>", subtype="html")
    mail.add_attachment(b"name,price\nbolt,3\n", maintype="text", subtype="csv", filename="list.csv")
    return mail.as_bytes()


def a_database(path) -> bytes:
    with sqlite3.connect(path) as c:
        c.execute("create table parts (id integer primary key, name text, price real)")
        c.executemany("insert into parts (name, price) values (?, ?)", [(f"bolt {n}", n / 4) for n in range(40)])
    return path.read_bytes()


def a_parquet() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet
    parquet.write_table(pa.Table.from_pylist([dict(name=f"bolt {n}", price=n / 4, tags=["a", "b"]) for n in range(40)]), out := io.BytesIO())
    return out.getvalue()


def make_files(folder) -> dict:
    "A small file of every format, by its ending"
    cells = [dict(cell_type="markdown", source=["# Drift\n", "Over ninety days."]), dict(cell_type="code", source="rows = 90\n", outputs=[])]
    turns = [dict(role="user", content="Is it open?"), dict(role="assistant", content="From nine.")]
    return dict(
        docx=word_file(p(r("The pump is greased every forty hours."))), odt=open_document("text", "<text:p>The pump is greased every forty hours.</text:p>", ""),
        rtf=rb"{\rtf1\ansi The pump is {\b greased} every 10{\super 2} hours.}", xlsx=sheet_file({"Stock": [["Article", "Price"], ["Bolt", .12], ["Nut", 3]]}),
        html=b"<html><body><form><h1>Press</h1><table><tr><td rowspan=2>a</td><td>b</td></tr></table><p>Greased every 10<sup>2</sup> hours.</p></form></body></html>",
        eml=a_mail(), mbox=b"".join(b"From x Fri Jan  2 10:00:00 2026\n" + a_mail() + b"\n" for _ in range(3)), ipynb=json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(language="python")))).encode(),
        pdf=a_pdf("The pump is greased every forty hours."), csv=b"name;price\n" + b"".join(b"bolt %d;%d,50\n" % (n, n) for n in range(20)), json=json.dumps(dict(data=[dict(name="bolt", price=n) for n in range(9)])).encode(),
        jsonl=b"".join(json.dumps(dict(messages=turns, label=n % 2 == 0)).encode() + b"\n" for n in range(9)), parquet=a_parquet(), sqlite=a_database(folder/"made.db"),
        md="# Größe\n\nDie Pumpe wird alle vierzig Stunden geschmiert.\n".encode(), py=b"def grease(hours):\n    return hours >= 40\n")


def mutate(raw: bytes, draw: random.Random) -> bytes:
    "Change, cut, repeat or insert some bytes"
    out = bytearray(raw)
    for _ in range(draw.choice((1, 3, 20))):
        at, act = draw.randrange(len(out) or 1), draw.randrange(5)
        if act < 2 and out: out[at] = draw.randrange(256)
        elif act == 2: del out[at:at + draw.choice((1, 9, 99))]
        elif act == 3: out[at:at] = draw.choice((b'"', b"\0", b"\xff", b"{", b"]", b"<", b"null", b"\n", b'\\u', b"=?utf-8?b?"))
        else: out[at:at] = out[at:at + 30]
    return bytes(out[:draw.randrange(len(out))] if draw.random() < .1 else out)


@pytest.mark.parametrize("ending", "docx odt rtf xlsx html eml mbox ipynb pdf csv json jsonl parquet sqlite md py".split())
def test_changed_bytes_end_no_run(tmp_path, ending):
    "No error gets out, what is read can be written as JSON, and a file that is one document costs at most one reject"
    raw, draw, refused = make_files(tmp_path)[ending], random.Random(f"bytes of {ending}"), 0
    for _ in range(12 if ending in readers.READERS and readers.READERS.get(f".{ending}") in readers.GUARDED else 60):
        (tmp_path/f"a.{ending}").write_bytes(mutate(raw, draw))
        found = list(readers.read_source(tmp_path, f"a.{ending}", **PLAIN))
        rejects = [reject for _, reject in found if reject]
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
        assert all("expected" in reject["reason"] and ";" in reject["reason"] for reject in rejects), rejects
        assert ending not in WHOLE or ending == "eml" or len(rejects) <= 1, rejects
        assert found or ending in ("csv", "json", "jsonl", "mbox", "parquet", "sqlite", "xlsx"), "a file without document and reject"
        refused += bool(rejects)
    assert refused or ending in ("md", "py", "rtf", "html"), "the changes do harm"


@pytest.mark.parametrize("head", ['To: "', "To: <", "From: =?utf-8?q?", 'Cc: "a" <b@', "Date: Fri, 99", "To: a@b@c, (", "Content-Type: text/plain; charset=none", "Content-Transfer-Encoding: base64\nTo: ,;:"])
def test_a_header_that_no_parser_takes_costs_no_mail(tmp_path, head):
    (tmp_path/"a.eml").write_bytes(f"Subject: Oil\n{head}\n\nChange it in May.\n".encode())
    [(document, _)] = readers.read_source(tmp_path, "a.eml", **PLAIN)
    assert "Subject: Oil" in document["text"] and ("base64" in head or "Change it in May." in document["text"])


@pytest.mark.parametrize("change", [dict(metadata=dict(kernelspec=None)), dict(metadata=None), dict(metadata=[]), dict(metadata=dict(kernelspec=dict(language=3))), *(
    dict(cells=[cell, dict(cell_type="markdown", source="Over ninety days.")]) for cell in (3, None, [], dict(source=None), dict(source=dict(a=1)), dict(source=[1, None]), dict(cell_type=[])))])
def test_a_notebook_of_any_shape_is_read(tmp_path, change):
    notebook = dict(cells=[dict(cell_type="markdown", source="Over ninety days.")], metadata={}) | change
    (tmp_path/"a.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    [(document, _)] = readers.read_source(tmp_path, "a.ipynb", **PLAIN)
    assert document["text"] == "Over ninety days.\n"


@pytest.mark.parametrize("reader", ["read_text_file", "read_html_file", "read_csv_file", "read_json_file", "read_notebook_file", "read_mail_file"])
@pytest.mark.parametrize("error", [AttributeError("no such thing"), TypeError("of another kind"), IndexError("too far"), RecursionError("too deep"), AssertionError("never")])
def test_whatever_a_reader_fails_with_is_one_reject(tmp_path, monkeypatch, reader, error):
    def fail(file, source, context):
        raise error
        yield
    ending = dict(read_text_file="", read_html_file=".html", read_csv_file=".csv", read_json_file=".json", read_notebook_file=".ipynb", read_mail_file=".eml")[reader]
    fail.__name__ = reader
    if ending: monkeypatch.setitem(readers.READERS, ending, fail)
    else: monkeypatch.setattr(readers, reader, fail)
    (tmp_path/f"a{ending}").write_text("Subject: Oil\n\nChange it.\n", encoding="utf-8")
    [(document, reject)] = readers.read_source(tmp_path, f"a{ending}", **PLAIN)
    assert document is None and str(error) in reject["reason"] and ";" in reject["reason"]
