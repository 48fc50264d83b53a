"What a company may hand over, broken in every way: each fault becomes a reject that names its place and its remedy, and the rest is read"
import csv, gzip, io, json, lzma, os, random, resource, sqlite3, subprocess, sys, tarfile, tempfile, unicodedata, zipfile
from pathlib import Path

import pytest

from forge_nb.core.project import Invalid, ROOT
from forge_nb.data import databases, readers, tables
from forge_nb.data.documents import format_reject, hash_content, normalize_text
from forge_nb.data.guard import end_standing

PLAIN = dict(templates={}, strict=False)


def read(data: Path, source: str, **options) -> tuple:
    "Documents and rejects of one file; what a reject says is a sentence with a remedy, and strict mode stops at the first with the same words"
    found = list(readers.read_source(data, source, **PLAIN | options))
    assert all((d is None) != (r is None) for d, r in found)
    rejects = [r for _, r in found if r]
    for r in rejects:
        assert list(r) == ["source", "line", "field", "reason"] and r["source"].startswith(source)
        assert "expected" in r["reason"] and ";" in r["reason"] and "\n" not in r["reason"] and str(data) not in r["reason"], r["reason"]
    if rejects:
        with pytest.raises(Invalid) as stop: list(readers.read_source(data, source, **PLAIN | options | dict(strict=True)))
        assert str(stop.value) == format_reject(rejects[0])
    return [d for d, _ in found if d], rejects


def only(data: Path, source: str, *words, line=None, field=None) -> list:
    "The file gives exactly one reject, with these words; its documents"
    documents, rejects = read(data, source)
    assert len(rejects) == 1, rejects
    for word in words: assert word in format_reject(rejects[0]), format_reject(rejects[0])
    assert (rejects[0]["line"], rejects[0]["field"]) == (line, field)
    return documents


def limit(monkeypatch, name: str, value):
    "Set a limit of the page documents in every module that reads it"
    for module in "databases documents mail office pdf readers records shapes tables text".split():
        monkeypatch.setattr(f"forge_nb.data.{module}.{name}", value, raising=False)
    end_standing()  # it was forked with the limit of before


def texts(documents: list) -> list: return [d["text"] for d in documents]


def slow_clean(text: str) -> str:
    "What `clean` means, written without care for speed"
    rows = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "").split("\n")
    return "\n".join(row.rstrip() for row in rows).strip("\n") + "\n"


def a_pdf(text: str) -> bytes:
    "A PDF of one page, made with pypdf"
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject
    writer, name = PdfWriter(), NameObject
    page = writer.add_blank_page(300, 300)
    font = DictionaryObject({name("/Type"): name("/Font"), name("/Subtype"): name("/Type1"), name("/BaseFont"): name("/Helvetica")})
    page[name("/Resources")] = DictionaryObject({name("/Font"): DictionaryObject({name("/F"): writer._add_object(font)})})
    stream = DecodedStreamObject()
    stream.set_data(f"BT /F 12 Tf 9 99 Td ({text}) Tj ET".encode())
    page[name("/Contents")] = writer._add_object(stream)
    writer.write(out := io.BytesIO())
    return out.getvalue()


def a_pdf_of(lines: list) -> bytes:
    "A PDF of one page with lines of several sizes: (size, text)"
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject
    writer, name = PdfWriter(), NameObject
    page = writer.add_blank_page(595, 842)
    font = lambda base: writer._add_object(DictionaryObject({name("/Type"): name("/Font"), name("/Subtype"): name("/Type1"), name("/BaseFont"): name(base)}))
    page[name("/Resources")] = DictionaryObject({name("/Font"): DictionaryObject({name("/F"): font("/Helvetica"), name("/B"): font("/Helvetica-Bold")})})
    stream, y, shown = DecodedStreamObject(), 800., []
    for size, text in lines:
        shown.append(f"BT /{'B' if size > 11 else 'F'} {size} Tf 60 {y} Td ({text}) Tj ET")
        y -= 1.6 * size
    stream.set_data("\n".join(shown).encode())
    page[name("/Contents")] = writer._add_object(stream)
    writer.write(out := io.BytesIO())
    return out.getvalue()


def encrypted(raw: bytes, password: str) -> bytes:
    "The same PDF behind a password"
    from pypdf import PdfReader, PdfWriter
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(raw)))
    writer.encrypt(password, owner_password="owner", algorithm="AES-256")
    writer.write(out := io.BytesIO())
    return out.getvalue()


# --- text ---------------------------------------------------------------------------------------------------------------------------

def test_clean_means_what_it_says():
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices("a é\u0301 \t\r\n\ufeff\xa0\x85\u2028\x0c\x1cß", k=draw.randrange(14)))
        assert normalize_text(text) == slow_clean(text), repr(text)


def test_encodings(tmp_path):
    sentence = "Die Größe der Schraube wird in Millimetern angegeben, die Länge über alles in Zoll.\n" * 5
    for name, raw in {"utf8": sentence.encode(), "bom": sentence.encode("utf-8-sig"), "utf16": sentence.encode("utf-16"),
                      "utf16be": b"\xfe\xff" + sentence.encode("utf-16-be"), "cp1252": sentence.encode("cp1252"),
                      "late": b"plain ascii\n" * 20_000 + sentence.encode("cp1252")}.items():
        (tmp_path/f"{name}.txt").write_bytes(raw)
        [document], rejects = read(tmp_path, f"{name}.txt")
        assert document["text"].endswith(sentence) and not rejects, name
        assert ("encoding" in document) == (name not in ("utf8", "bom")), "a guess is flagged, and nothing else"
    for text, encoding in [("Le boulon a été serré à deux mètres. Ça coûte très cher à l'été.", "cp1252"), ("20 °C ± 2, 5 µm", "cp1252"), ("café", "cp1252"),
                           ("Śruba kosztuje trzy złote, a nakrętka pięć. Części są dostępne w magazynie głównym.", "cp1250"), ("Болт стоит три рубля, а гайка пять. Детали есть на складе.", "cp1251"),
                           ("這個螺栓的價格是三歐元，螺母的價格是五歐元。", "big5")]:
        (tmp_path/"a.txt").write_bytes(f"{text}\n".encode(encoding))
        [document], _ = read(tmp_path, "a.txt")
        assert document["text"] == f"{text}\n" and document["encoding"] == encoding
    (tmp_path/"japanese.txt").write_bytes(("これは日本語の文章です。部品の価格は三ユーロです。\n" * 9).encode("shift_jis"))
    [document], _ = read(tmp_path, "japanese.txt")
    assert document["text"].startswith("これは日本語") and document["language"] == "ja"


@pytest.mark.parametrize("raw, found", [
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"), (gzip.compress(b"x" * 999, mtime=0), "gzip data"),
    (b"SQLite format 3\0" + bytes(99), "an SQLite database"), (bytes(random.Random(1).randbytes(5000)), "binary data"),
    (bytes(b for b in random.Random(2).randbytes(5000) if b), "binary data")])
def test_binary_named_txt(tmp_path, raw, found):
    (tmp_path/"notes.txt").write_bytes(raw)
    assert only(tmp_path, "notes.txt", found, "proper extension") == []


def test_broken_utf16_and_mixed_encodings(tmp_path):
    (tmp_path/"a.txt").write_bytes(b"\xff\xfeabc")
    assert only(tmp_path, "a.txt", "UTF-16", "byte order mark") == []


def test_names_with_spaces_and_other_scripts(tmp_path):
    folder = tmp_path/"Über uns (alt)"/"ドキュメント"
    folder.mkdir(parents=True)
    (folder/"größe & preis #3!.md").write_text("Größe: 3\n", encoding="utf-8")
    name = "Über uns (alt)/ドキュメント/größe & preis #3!.md"
    assert readers.list_sources(tmp_path) == [name]
    [document], _ = read(tmp_path, name)
    assert document["source"] == name and document["text"] == "Größe: 3\n"


def test_a_name_that_is_not_utf8(tmp_path):
    "Such a file can be named in no JSON; it is shown with its bytes spelled out, and rejected"
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w", encoding="utf-8") as f: f.write("x")
    assert readers.list_sources(tmp_path) == ["caf\\udce9.txt"]
    assert only(tmp_path, "caf\\udce9.txt", "rename it") == []


def test_links(tmp_path):
    "Links to files inside are followed, circles end, and what leads out of data/ is refused in public"
    data = tmp_path/"data"
    (data/"a"/"b").mkdir(parents=True)
    (tmp_path/"secret.txt").write_text("not ours", encoding="utf-8")
    (data/"a"/"real.txt").write_text("real\n", encoding="utf-8")
    (data/"link.txt").symlink_to("a/real.txt")
    (data/"a"/"b"/"up").symlink_to(data)
    (data/"self").symlink_to("self")
    (data/"x").symlink_to("y"); (data/"y").symlink_to("x")
    (data/"gone.txt").symlink_to("nowhere.txt")
    (data/"out.txt").symlink_to(tmp_path/"secret.txt")
    (data/"outside").symlink_to(tmp_path)
    os.mkfifo(data/"pipe.txt")
    assert readers.list_sources(data) == ["a/real.txt", "link.txt", "out.txt", "outside"]
    assert texts(read(data, "link.txt")[0]) == ["real\n"]
    for source in ("out.txt", "outside"): assert only(data, source, "leads out") == []
    assert only(data, "../secret.txt", "leads out") == []
    assert only(data, "self", "found none") == []


def test_sources_leave_out_what_is_no_document(tmp_path):
    for name in ("a.txt", ".env", ".git/config", "LICENSE", "lib/COPYING.LESSER", "lib/NOTICE.txt", "lib/licences-explained.md", "SHA256SUMS",
                 "facts/a.csv", "facts/deep/b.csv", "licence.txt"):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text("x", encoding="utf-8")
    assert readers.list_sources(tmp_path, ["facts/*"]) == ["a.txt", "lib/licences-explained.md"]
    with pytest.raises(Invalid, match="expected a folder"): readers.list_sources(tmp_path/"no")


# --- bounds -------------------------------------------------------------------------------------------------------------------------

def test_five_gigabytes_in_one_line(tmp_path):
    "Sparse files: 5 GiB as text, 1 GiB (for time) as JSON Lines with good lines before and after; memory stays far below"
    for name, size in (("big.txt", 5 << 30), ("big.jsonl", 1 << 30)):
        with open(tmp_path/name, "wb") as f:
            f.write(b'{"text": "first"}\n'.ljust(5000) + b"\n")
            f.seek(size)
            f.write(b'\n{"text": "last"}\n')
    code = f"""if 1:
        from pathlib import Path
        from forge_nb.data import readers
        [(_, r)] = readers.read_source(Path({str(tmp_path)!r}), "big.txt", templates={{}}, strict=False)
        assert "at most 64 MiB" in r["reason"], r
        got = list(readers.read_source(Path({str(tmp_path)!r}), "big.jsonl", templates={{}}, strict=False))
        assert [d["text"] for d, r in got if d] == ["first\\n", "last\\n"], got
        [r] = [r for _, r in got if r]
        assert "at most 16 MiB" in r["reason"] and r["line"] == 3, r
        [peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]  # ru_maxrss would hold the parent's memory too
        print(int(peak.split()[1]) >> 10)"""
    peak = int(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout)
    assert peak < 400, f"{peak} MiB"


def test_limits_on_lines_and_files(tmp_path, monkeypatch):
    limit(monkeypatch, "MAX_LINE_BYTES", 100)
    limit(monkeypatch, "MAX_FILE_BYTES", 1000)
    (tmp_path/"a.txt").write_text("short\n" + "x" * 101 + "\nshort\n", encoding="utf-8")
    assert only(tmp_path, "a.txt", "break this one", line=2) == []
    (tmp_path/"b.txt").write_text("short\n" * 200, encoding="utf-8")
    assert only(tmp_path, "b.txt", "split the file") == []
    (tmp_path/"c.csv").write_text("a,b\n1,2\n" + "y" * 500 + ",2\n3,4\n", encoding="utf-8")
    documents = only(tmp_path, "c.csv", "break this one", line=3)
    assert [d["record"]["values"]["a"] for d in documents] == ["1", "3"] and documents[1]["source"] == "c.csv#3"
    (tmp_path/"d.jsonl").write_text('{"text": "a"}\n{"text": "' + "z" * 500 + '"}\n{"text": "b"}\n', encoding="utf-8")
    assert texts(only(tmp_path, "d.jsonl", "split this record", line=2)) == ["a\n", "b\n"]
    (tmp_path/"e.json").write_text(json.dumps([{"text": "a" * 50}] * 50), encoding="utf-8")
    assert only(tmp_path, "e.json", "split the file") == []
    (tmp_path/"f.csv").write_text('a,b\n1,2\n"' + "never closed\n" * 30, encoding="utf-8")
    documents, rejects = read(tmp_path, "f.csv")
    assert len(documents) == 1 and rejects[0]["line"] == 3 and "quote" in rejects[0]["reason"]


# --- tables -------------------------------------------------------------------------------------------------------------------------

def test_csv_with_ragged_rows(tmp_path):
    (tmp_path/"parts.csv").write_text('name,price\nbolt,3\nnut\nM3, zinc,4\n\n"washer, thin",1\n', encoding="utf-8")
    documents, rejects = read(tmp_path, "parts.csv")
    assert texts(documents) == ["parts\nname: bolt\nprice: 3\n", "parts\nname: washer, thin\nprice: 1\n"]
    assert [(r["source"], r["line"]) for r in rejects] == [("parts.csv#2", 3), ("parts.csv#3", 4)]
    assert "expected 2 cells" in rejects[0]["reason"] and "found 1" in rejects[0]["reason"] and "found 3" in rejects[1]["reason"]
    assert documents[1]["source"] == "parts.csv#4" and documents[1]["record"] == dict(
        table="parts", key={}, references=[], values=dict(name="washer, thin", price="1"))


def test_csv_quotes_headers_and_encodings(tmp_path):
    (tmp_path/"a.csv").write_text('a;b\n"x"y;1\n2;3\n', encoding="utf-8")
    assert texts(only(tmp_path, "a.csv", "misplaced quote", line=2)) == ["a\na: 2\nb: 3\n"]
    (tmp_path/"b.csv").write_text('a,b\n1,2\n3,"4\n5,6\n', encoding="utf-8")
    assert texts(only(tmp_path, "b.csv", "from this line to line 4", line=3)) == ["b\na: 1\nb: 2\n"]
    (tmp_path/"c.csv").write_text("a,b,a\n1,2,3\n", encoding="utf-8")
    assert only(tmp_path, "c.csv", "found `a` twice", line=1, field="a") == []
    (tmp_path/"d.csv").write_bytes(b"\0\1\2\3" * 99)
    assert only(tmp_path, "d.csv", "binary data") == []
    (tmp_path/"empty.csv").write_text("", encoding="utf-8")
    assert read(tmp_path, "empty.csv") == ([], [])
    rows = [["größe", "preis"], ["groß, außen", "3 €"], ["klein und dünn", "2 €"]]
    for encoding in ("utf-8-sig", "utf-16", "cp1252"):
        with open(tmp_path/"e.tsv", "w", encoding=encoding, newline="") as f: csv.writer(f, delimiter="\t").writerows(rows)
        documents, rejects = read(tmp_path, "e.tsv")
        assert not rejects and [[*d["record"]["values"].values()] for d in documents] == rows[1:], encoding


def test_templates(tmp_path):
    (tmp_path/"parts.csv").write_text("name,unit price,a.b\nbolt,3,x\n{nut},,y\n", encoding="utf-8")
    read_with = lambda **templates: texts(read(tmp_path, "parts.csv", templates=templates)[0])
    assert read_with(parts="{name} costs {unit price} EUR {{{a.b}}}") == ["bolt costs 3 EUR {x}\n", "{nut} costs  EUR {y}\n"]
    assert read_with(**{"*": "{name}", "other": "{no}"}) == ["bolt\n", "{nut}\n"]
    for template, words in [("{price}", "names the column `price`"), ("{name.upper}", "`name.upper`"), ("{name[0]}", "`name[0]`"), ("{}", "``"), ("{name", "expected '}'")]:
        with pytest.raises(Invalid) as e: read_with(parts=template)
        assert words in str(e.value) and "table `parts`" in str(e.value) and (words.startswith("expected") or "`name`, `unit price`, `a.b`" in str(e.value))
    _, rejects = read(tmp_path, "parts.csv", templates={"*": "{unit price:.2f}"})
    assert len(rejects) == 1 and rejects[0]["field"] == "unit price" and "mend the value or the template" in rejects[0]["reason"]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_jsonl_with_broken_lines(tmp_path, ending):
    "Duplicate keys, NaN, nested nulls, mixed shapes, bad bytes: each costs its line"
    chat = lambda content: dict(messages=[dict(role="user", content="a"), dict(role="assistant", content=content)])
    good = [chat(f"answer {n}") for n in range(3)]
    bad = [('{"messages": [], "messages": []}', "messages", "twice"), (json.dumps(chat(float("nan"))), "messages[1].content", "NaN"),
           (json.dumps(chat(None)), "messages[1].content", "found null"), ('{"text": "another shape"}', None, "found text"),
           ('{"messages": [{"role": "user"', None, "mistake at column"), (json.dumps(chat(1)), "messages[1].content", "found a number"),
           ('{"messages": []}', "messages", "an empty one"), ('{"messages": [{"content": "a"}]}', "messages[0].role", "found null"),
           ('{"messages": "a"}', "messages", "found a string"), ("[1]", None, "found a list"), ('{"messages": [{"role": "user", "content": "\\udead"}]}', None, "surrogate"),
           ('{"messages": [{"role": "user", "content": 1e400}]}', "messages[0].content", "1e400"), ("[" * 200_000, None, "without end"), ("9" * 5000, None, "very long numbers")]
    rows = [json.dumps(good[0]), *(row for row, _, _ in bad), json.dumps(good[1]), "", json.dumps(good[2])]
    raw = "\n".join(rows).encode() + b"\n\xff\n"
    (tmp_path/f"x.jsonl{ending}").write_bytes(gzip.compress(raw) if ending else raw)
    documents, rejects = read(tmp_path, f"x.jsonl{ending}")
    assert [d["record"] for d in documents] == good and {d["kind"] for d in documents} == {"chat"}
    assert [r["line"] for r in rejects] == [*range(2, len(bad) + 2), len(rows) + 1]
    for (_, field, words), r in zip(bad, rejects): assert r["field"] == field and words in r["reason"], r
    assert "UTF-8" in rejects[-1]["reason"]


def turns(*texts):
    "Messages of a user and an assistant in turn"
    return [dict(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(texts)]


ASKED, PAIR = turns("a", "b"), dict(prompt=turns("a"), chosen=turns("a", "b")[1:], rejected=turns("a", "c")[1:])
JUDGED = dict(prompt=turns("a"), completion=ASKED[1:], label=False)
SHAPES = {  # kind, record, what is read
    "messages": ("chat", dict(messages=ASKED, tools=[{"name": "t"}]), dict(messages=ASKED, tools=[{"name": "t"}])),
    "sharegpt": ("chat", dict(conversations=[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]), dict(messages=ASKED)),
    "completion": ("chat", dict(prompt="a", completion="b"), dict(messages=ASKED)),
    "response": ("chat", dict(prompt="a", response="b"), dict(messages=ASKED)),
    "alpaca": ("chat", dict(instruction="a", input="", output="b"), dict(messages=ASKED)),
    "faq": ("chat", dict(question="a", answer="b"), dict(messages=ASKED)),
    "names_with_capitals": ("chat", dict(Question="a", Answer="b"), dict(messages=ASKED)),
    "turns": ("chat", dict(prompt=turns("a"), completion=ASKED[1:]), dict(messages=ASKED)),
    "pair": ("pairs", dict(prompt="a", chosen="b", rejected="c"), PAIR),
    "pair_of_lists": ("pairs", PAIR, PAIR),
    "implicit_prompt": ("pairs", dict(chosen=ASKED, rejected=turns("a", "c")), PAIR),
    "prompt_and_lists": ("pairs", dict(prompt="a", chosen=ASKED, rejected=turns("a", "c")), PAIR),
    "kto": ("kto", dict(prompt="a", completion="b", label=False), dict(prompt=turns("a"), completion=ASKED[1:], label=False)),
    "kto_number": ("kto", dict(prompt="a", completion="b", label=1), dict(prompt=turns("a"), completion=ASKED[1:], label=True)),
    "judged_turns": ("kto", dict(messages=ASKED, label=False), JUDGED),
    "judged_sharegpt": ("kto", dict(conversations=[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], thumbs_up=False), JUDGED),
    "kto_tag": ("kto", dict(instruction="a", output="b", kto_tag=False), JUDGED),
    "thumbs_up": ("kto", dict(question="a", answer="b", thumbs_up=False), JUDGED),
    "thumbs_down": ("kto", dict(prompt="a", response="b", thumbs_down=True), JUDGED),
    "toxic": ("kto", dict(prompt="a", completion="b", is_toxic=True), JUDGED),
    "rating_in_words": ("kto", dict(query="a", response="b", rating="thumbs_down"), JUDGED),
    "system_beside_turns": ("chat", dict(system="s", conversations=[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]), dict(messages=[dict(role="system", content="s"), *ASKED])),
    "tools_as_json": ("chat", dict(messages=ASKED, tools='[{"name": "t"}]'), dict(messages=ASKED, tools=[{"name": "t"}])),
    "pair_of_dialogues": ("pairs", dict(chosen="\n\nHuman: a\n\nAssistant: b", rejected="\n\nHuman: a\n\nAssistant: c"), PAIR),
    "pair_of_dialogues_of_two_turns": ("pairs", dict(chosen="Human: x Assistant: y Human: a Assistant: b", rejected="Human: x Assistant: y Human: a Assistant: c"),
                                       PAIR | dict(prompt=turns("x", "y", "a"))),
    "pair_of_texts": ("pairs", dict(chosen="Is it a? b", rejected="Is it a? c"), PAIR | dict(prompt=turns("Is it a?"))),
    "openai_pair": ("pairs", dict(input=dict(messages=turns("a")), preferred_output=ASKED[1:], non_preferred_output=turns("a", "c")[1:]), PAIR),
    "prompt": ("prompts", dict(prompt="a"), dict(prompt=turns("a")))}


@pytest.mark.parametrize("name", SHAPES)
def test_rows_to_train_on_in_every_shape_and_format(tmp_path, name):
    import pyarrow as pa
    from pyarrow import parquet
    kind, record, expected = SHAPES[name]
    remark = {} if kind == "prompts" else dict(score=2)
    (tmp_path/"x.jsonl").write_text(json.dumps(record | remark) + "\n", encoding="utf-8")
    (tmp_path/"x.json").write_text(json.dumps([record | remark]), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist([record | remark, record | remark]), tmp_path/"x.parquet")
    endings = ["jsonl", "json", "parquet"]
    if all(isinstance(value, (str, int)) for value in record.values()):
        with open(tmp_path/"x.csv", "w", newline="", encoding="utf-8") as f: csv.writer(f, delimiter=";").writerows([record, record.values()])
        endings.append("csv")
    for ending in endings:
        documents, rejects = read(tmp_path, f"x.{ending}")
        assert not rejects and {d["kind"] for d in documents} == {kind} and documents[0]["source"] == f"x.{ending}#1"
        more = dict(remarks=remark) if remark and ending != "csv" else {}
        assert documents[0]["record"] == expected | more
        assert all(message["content"] in documents[0]["text"] for part in expected.values() if isinstance(part, list) for message in part if "content" in message)


def test_roles_calls_of_tools_and_weights(tmp_path):
    "The older function_call is read as tool_calls, and an answer of weight 0 keeps its weight"
    call = dict(name="stock", arguments="{}")
    said = [dict(role="developer", content="Be brief."), dict(role="user", content="How many?"),
            dict(role="assistant", content=None, function_call=call), dict(role="function", name="stock", content="900"),
            dict(role="assistant", content="None.", weight=0), dict(role="assistant", content="900.", weight=1)]
    (tmp_path/"x.jsonl").write_text(json.dumps(dict(messages=said)), encoding="utf-8")
    [document], _ = read(tmp_path, "x.jsonl")
    found = document["record"]["messages"]
    assert [m["role"] for m in found] == ["system", "user", "assistant", "tool", "assistant", "assistant"]
    assert found[2]["tool_calls"] == [dict(type="function", function=call)] and found[2]["content"] == ""
    assert [m.get("weight") for m in found] == [None] * 4 + [0, 1] and "stock" in document["text"]


@pytest.mark.parametrize("record, field, words", [
    (dict(prompt="a", completion="b", label="good"), "label", "true or false"), (dict(messages=turns("a")), "messages", "answer of the assistant"),
    (dict(messages=[dict(role="narrator", content="a"), *ASKED]), "messages[0].role", "'narrator'"),
    (dict(messages=[dict(role="user", content=[dict(type="image_url")]), *ASKED]), "messages[0].content", "image_url"),
    (dict(messages=[*ASKED, dict(role="assistant", content="c", weight=.5)]), "messages[2].weight", "0 or 1"),
    (dict(chosen="a", rejected="b"), "chosen", "add `prompt`"), (dict(chosen="The nut fits.", rejected="The nut melts."), "chosen", "a whole question"),
    *((judged | said, field, words) for judged in (dict(messages=ASKED), dict(question="a", answer="b"), dict(prompt="a", completion="b")) for said, field, words in (
        (dict(rating=2), "rating", "found 2"), (dict(stars="1"), "stars", "found '1'"), (dict(reward=-.5), "reward", "found -0.5"), (dict(feedback="not what I asked"), "feedback", "rename the field"), (dict(liked=True, label=0), "label", "disagree"))),
    (dict(prompt="a", response_a="b", response_b="c", winner="a"), "response_a", "which is better"), (dict(question="a", output_1="b", output_2="c", better=1), "output_1", "which is better"),
    (dict(messages=[*ASKED, dict(role="user", content="Thanks")], label=False), "messages", "judged"),
    (dict(messages=ASKED, tools="stock"), "tools", "as an object"), (dict(messages=ASKED, tools=[3]), "tools", "as an object"),
    (dict(messages=[*ASKED, dict(role="assistant", content="", tool_calls="stock()")]), "messages[2].tool_calls", "as an object"), (dict(prompt="a", chosen="b"), "rejected", "found null"),
    (dict(prompt="a", chosen="b", rejected="b"), "rejected", "found the same"), (dict(promtp="a", completions="b"), "completions", "rename the field"),
    (dict(prompt="a", chosen=turns("x", "b"), rejected=turns("x", "c")), "prompt", "in front")])
def test_rows_that_lack_something(tmp_path, record, field, words):
    (tmp_path/"x.jsonl").write_text(json.dumps(record), encoding="utf-8")
    _, [rejected] = read(tmp_path, "x.jsonl")
    assert words in rejected["reason"] and rejected["line"] == 1 and rejected["field"] == field


def test_no_disliked_answer_is_learned_however_it_is_marked(tmp_path):
    "A judgement in a later row, or in a message, is seen as well as one in the first row"
    (tmp_path/"x.csv").write_text("question;answer;label\na;b;\na;c;false\n", encoding="utf-8")
    [kept], [refused] = read(tmp_path, "x.csv")
    assert kept["record"]["messages"] == ASKED and "a file of their own" in refused["reason"] and refused["field"] == "label"
    (tmp_path/"y.jsonl").write_text("\n".join(json.dumps(dict(prompt="a", completion="b", label=label)) for label in (True, None)), encoding="utf-8")
    [_], [refused] = read(tmp_path, "y.jsonl")
    assert refused["line"] == 2
    (tmp_path/"z.jsonl").write_text(json.dumps(dict(messages=[*ASKED, dict(role="user", content="d"), dict(role="assistant", content="e", rating="thumbs_down")])), encoding="utf-8")
    assert [m.get("weight") for m in read(tmp_path, "z.jsonl")[0][0]["record"]["messages"]] == [None, None, None, 0]


@pytest.mark.parametrize("record", [
    dict(batch=71, produced=1000, rejected=12, shift="early"), dict(batch=71, reject=12), dict(mailbox="orders", messages=1204, unread=3),
    dict(chosen=7, rejected=3), dict(input="230 V", output="12 V"), dict(question=4, answer="b"), dict(topic="mail", messages=["a", "b"]),
    {"folder": "in", "messages": [{"from": "stores", "subject": "Bolts", "content": "None are left."}]}])
def test_one_name_alone_makes_no_row_to_train_on(tmp_path, record):
    import pyarrow as pa
    from pyarrow import parquet
    (tmp_path/"x.json").write_text(json.dumps([record]), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist([record]), tmp_path/"x.parquet")
    if all(isinstance(value, (str, int)) for value in record.values()):
        (tmp_path/"x.csv").write_text(",".join(record) + "\n" + ",".join(map(str, record.values())) + "\n", encoding="utf-8")
    for path in sorted(tmp_path.glob("x.*")):
        [document], rejects = read(tmp_path, path.name)
        assert document["kind"] == "rows" and not rejects, path.name


def test_text_in_records_keeps_its_title_and_the_rest(tmp_path):
    page = dict(id=7, title="How to restart", url="wiki/7", text="Hold the green button.")
    (tmp_path/"x.jsonl").write_text(json.dumps(page), encoding="utf-8")
    [document], _ = read(tmp_path, "x.jsonl")
    assert document["text"] == "# How to restart\n\nHold the green button.\n" and document["kind"] == "docs"
    assert document["record"] == dict(id=7, title="How to restart", url="wiki/7")


def test_json_in_the_forms_of_programs(tmp_path):
    "An object that wraps rows is those rows; settings with comments are code; JSON over several lines in a .jsonl is one reject"
    (tmp_path/"a.json").write_text(json.dumps(dict(count=2, next=None, results=[dict(name="bolt"), dict(name="nut")])), encoding="utf-8")
    assert [d["record"]["values"] for d in read(tmp_path, "a.json")[0]] == [dict(name="bolt"), dict(name="nut")]
    (tmp_path/"b.json").write_text('{\n  // the port\n  "port": 8443,\n  "hosts": ["a", "b"],\n}\n', encoding="utf-8")
    [document], rejects = read(tmp_path, "b.json")
    assert document["kind"] == "code" and not rejects
    (tmp_path/"c.json").write_text('{"port": }', encoding="utf-8")
    assert only(tmp_path, "c.json", "mistake", line=1) == []
    for number, value in enumerate((dict(name="bolt"), [dict(name="bolt")])):
        text = json.dumps(value, indent=2)
        (tmp_path/f"d{number}.jsonl").write_text(f"{text}\n{text}\n", encoding="utf-8")
        assert only(tmp_path, f"d{number}.jsonl", "over several lines", line=1) == []


def test_json(tmp_path):
    (tmp_path/"a.json").write_text('[\n{"name": "bolt", "size": {"d": 3, "l": null}},\n {"name": "nut", "name": "x"},\n{"name": "ß", "price": null}\n]', encoding="utf-8")
    documents = only(tmp_path, "a.json", "a.json#2", "twice", line=3, field="name")
    assert texts(documents) == ['a\nname: bolt\nsize: {"d": 3, "l": null}\n', "a\nname: ß\n"]
    (tmp_path/"b.json").write_text('[{"a": 1},\n{"a": 2}\n{"a": 3}]', encoding="utf-8")
    assert len(only(tmp_path, "b.json", "comma", line=3)) == 2
    (tmp_path/"c.json").write_text('[{"a": 1}] x', encoding="utf-8")
    assert len(only(tmp_path, "c.json", "nothing after", line=1)) == 1
    (tmp_path/"d.json").write_text("[1, 2, 3]", encoding="utf-8")
    assert only(tmp_path, "d.json", "begins with a number", line=1) == []
    (tmp_path/"e.json").write_text('{"name": "one", "parts": [1, 2]}', encoding="utf-8")
    assert texts(read(tmp_path, "e.json")[0]) == ["e\nname: one\nparts: [1, 2]\n"]
    (tmp_path/"f.json").write_text(" ", encoding="utf-8")
    assert only(tmp_path, "f.json", "mistake", line=1) == []
    (tmp_path/"g.json").write_text("[]", encoding="utf-8")
    assert read(tmp_path, "g.json") == ([], [])
    (tmp_path/"h.json").write_text('[{"a": 1},]', encoding="utf-8")
    assert len(only(tmp_path, "h.json", "mistake", line=1)) == 1


def test_parquet(tmp_path):
    import pyarrow as pa
    from datetime import datetime
    from pyarrow import parquet
    table = pa.table(dict(name=["a"] * 3000, when=[datetime(2026, 1, 2)] * 3000, price=[1.5, float("nan")] * 1500, raw=[b"\0"] * 3000))
    parquet.write_table(table, tmp_path/"parts.parquet", row_group_size=500)
    documents, rejects = read(tmp_path, "parts.parquet")
    assert len(documents) == 3000 and not rejects and documents[1]["source"] == "parts.parquet#2"
    assert documents[1]["record"]["values"] == dict(name="a", when="2026-01-02T00:00:00", price=None, raw=None)
    raw = (tmp_path/"parts.parquet").read_bytes()
    (tmp_path/"torn.parquet").write_bytes(raw[:len(raw) // 2])
    assert only(tmp_path, "torn.parquet", "write the file again") == []
    (tmp_path/"hurt.parquet").write_bytes(raw[:4] + bytes(len(raw) // 3) + raw[4 + len(raw) // 3:])
    _, [rejected] = read(tmp_path, "hurt.parquet")
    assert "write the file again" in rejected["reason"]


# --- documents of offices -----------------------------------------------------------------------------------------------------------

def test_pdf(tmp_path):
    raw = a_pdf("Bolt M3 costs 3 EUR.")
    for name, content in {"good": raw, "open": encrypted(raw, ""), "locked": encrypted(raw, "secret"), "torn": raw[:len(raw) // 3], "empty": b"", "scan": a_pdf("")}.items():
        (tmp_path/f"{name}.pdf").write_bytes(content)
    for name in ("good", "open"): assert texts(read(tmp_path, f"{name}.pdf")[0]) == ["Bolt M3 costs 3 EUR.\n"]
    assert only(tmp_path, "locked.pdf", "without a password") == []
    for name in ("torn", "empty"): assert only(tmp_path, f"{name}.pdf", "save it again") == []
    assert only(tmp_path, "scan.pdf", "OCR") == []


def test_docx(tmp_path):
    from docx import Document
    made = Document()
    made.add_heading("Prices", 2)
    table = made.add_table(2, 2)
    for n, cell in enumerate(["part", "EUR", "bolt", "3"]): table.cell(*divmod(n, 2)).text = cell
    table.cell(1, 0).merge(table.cell(1, 1))
    made.save(tmp_path/"good.docx")
    assert texts(read(tmp_path, "good.docx")[0]) == ["## Prices\n\npart | EUR\nbolt 3\n"]
    raw = (tmp_path/"good.docx").read_bytes()
    (tmp_path/"torn.docx").write_bytes(raw[:len(raw) // 2])
    (tmp_path/"old.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(999))
    with zipfile.ZipFile(tmp_path/"other.docx", "w") as z: z.writestr("a.txt", "x")
    for name in ("torn", "old", "other"): assert only(tmp_path, f"{name}.docx", "save it again") == []


def test_docx_bomb(tmp_path, monkeypatch):
    limit(monkeypatch, "MAX_FILE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path/"a.docx", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("word/document.xml", bytes(8 << 20))
    assert only(tmp_path, "a.docx", "at most 4 MiB unpacked") == []


def test_html(tmp_path):
    (tmp_path/"a.html").write_bytes('<?xml version="1.0" encoding="iso-8859-1"?><html><head><meta charset="iso-8859-1"></head><h1>Größe</h1><p>a<br>b&nbsp;c</p>'.encode("latin-1"))
    [document], rejects = read(tmp_path, "a.html")
    assert document["text"] == "# Größe\n\na\nb c\n" and document["encoding"] == "iso8859-1" and not rejects
    (tmp_path/"b.htm").write_text("", encoding="utf-8")
    assert only(tmp_path, "b.htm", "expected text in a web page") == []
    (tmp_path/"c.html").write_text("<div>" * 100_000 + "deep", encoding="utf-8")
    assert len(read(tmp_path, "c.html")[0]) + len(read(tmp_path, "c.html")[1]) == 1
    (tmp_path/"d.html").write_bytes(b"\x89PNG\0\0")
    assert only(tmp_path, "d.html", "a PNG image") == []


# --- databases ----------------------------------------------------------------------------------------------------------------------

def shop(path: Path, rows: int = 3, *pragmas) -> Path:
    "An SQLite file with two tables and a foreign key"
    with sqlite3.connect(path) as c:
        for pragma in pragmas: c.execute(pragma)
        c.executescript("CREATE TABLE makers (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE parts (name TEXT, maker INT REFERENCES makers, price REAL, made DATE, photo BLOB);"
                        "INSERT INTO makers VALUES (7, 'Bolt & Co');")
        c.executemany("INSERT INTO parts VALUES (?, 7, ?, 'no date', x'00')", [(f"part {n}", n / 2) for n in range(rows)])
    c.close()
    return path


def test_sqlite_keeps_keys_and_leaves_nothing_behind(tmp_path):
    for mode in ("DELETE", "WAL"):
        path = shop(tmp_path/f"{mode}.db", 3, f"PRAGMA journal_mode={mode}")
        before, raw = sorted(tmp_path.iterdir()), path.read_bytes()
        documents, rejects = read(tmp_path, path.name)
        assert not rejects and sorted(tmp_path.iterdir()) == before and path.read_bytes() == raw
        assert [d["source"] for d in documents] == [f"{path.name}!/makers#7", *(f"{path.name}!/parts#{n}" for n in (1, 2, 3))]
        assert documents[0]["record"]["key"] == {"id": 7} and documents[1]["record"] == dict(
            table="parts", key={}, references=[dict(column="maker", table="makers", to="id")],
            values=dict(name="part 0", maker=7, price=0.0, made="no date", photo=None))


def test_sqlite_locked(tmp_path, monkeypatch):
    limit(monkeypatch, "LOCK_TIMEOUT_SECONDS", .1)
    shop(tmp_path/"a.db")
    with sqlite3.connect(tmp_path/"a.db", isolation_level=None) as c:
        c.execute("BEGIN EXCLUSIVE")
        assert only(tmp_path, "a.db", "locked", "close the program") == []  # sqlite's own wait would be for ever: the lock is not given up before the next lines
        with pytest.raises(Invalid, match="locked"): databases.snapshot_database(f"sqlite:///{tmp_path}/a.db", tmp_path/"copy.sqlite")
        c.execute("ROLLBACK")
    c.close()
    assert len(read(tmp_path, "a.db")[0]) == 4


def test_sqlite_with_changes_in_its_log(tmp_path):
    shop(tmp_path/"a.db", 3, "PRAGMA journal_mode=WAL")
    c = sqlite3.connect(tmp_path/"a.db", isolation_level=None)
    c.execute("INSERT INTO makers VALUES (8, 'Late')")
    assert only(tmp_path, "a.db", "a.db-wal", "wal_checkpoint") == []
    c.close()
    assert len(read(tmp_path, "a.db")[0]) == 5


def test_sqlite_corrupt(tmp_path):
    raw = shop(tmp_path/"good.db", 5000).read_bytes()
    (tmp_path/"short.db").write_bytes(raw[:20_000])
    (tmp_path/"hurt.db").write_bytes(raw[:40_000] + random.Random(3).randbytes(8192) + raw[48_192:])
    (tmp_path/"none.db").write_bytes(b"not at all")
    (tmp_path/"header.db").write_bytes(raw[:100] + b"\xff" * 4000)
    for name in ("short", "hurt", "header"):
        documents, rejects = read(tmp_path, f"{name}.db")
        assert rejects and len(documents) < 5001, name
        assert "malformed" in rejects[-1]["reason"] and (not documents or documents[0]["source"] == f"{name}.db!/makers#7")
    assert only(tmp_path, "none.db", "proper extension") == []
    with sqlite3.connect(tmp_path/"bytes.db") as c: c.executescript("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT); INSERT INTO t VALUES (1, 'a'), (2, CAST(x'ff41' AS TEXT)), (3, 'c')")
    c.close()
    assert texts(only(tmp_path, "bytes.db", "bytes.db!/t#2", "Unicode")) == ["t\nid: 1\na: a\n", "t\nid: 3\na: c\n"]


SECRET = "h%40nter 2/x"  # as a user writes it in a URL: the password is 'h@nter 2/x'


@pytest.mark.parametrize("url, words", [
    (f"postgresql+psycopg2://me:{SECRET}@nowhere.invalid/shop", "driver `psycopg2`"), (f"oracle+nothing://me:{SECRET}@host/x", "dialect"),
    (f"sqlite://me:{SECRET}@host/x.db", "sqlite"), (f"sqlite:////no/such/folder/x.db?password={SECRET}&mode=ro", "No such file"),
    (f"sqlite+pysqlcipher://:{SECRET}@/x.db", "sqlcipher"), (f"postgresql+psycopg2://me:{SECRET}@@host/x", "%40"), (f"postgres//me:{SECRET}", "cannot be read"),
    (f"mssql+pyodbc:///?odbc_connect=DRIVER=x;PWD={SECRET}", "pyodbc"), (f"postgresql://me:{SECRET}@host:port/x", "cannot be read"), ("", "cannot be read")])
def test_database_password_is_never_shown(url, words, capsys, tmp_path):
    with pytest.raises(Invalid) as stop: databases.snapshot_database(url, tmp_path/"copy.sqlite")
    assert not list(tmp_path.iterdir())
    said, cause = str(stop.value), stop.value.__context__
    assert words in said and "\n" not in said
    assert cause is None, "a traceback would carry what the driver said"
    out = capsys.readouterr()
    for hidden in (SECRET, "h@nter", "nter 2", "nter%202", "2/x"): assert hidden not in said + out.out + out.err, said


def test_what_a_driver_says_is_scrubbed(tmp_path):
    "Servers quote what they were sent: here a driver that is registered for the test and refuses as they do"
    import sqlalchemy
    from sqlalchemy.dialects import registry
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

    class Refusing(SQLiteDialect_pysqlite):
        def create_connect_args(self, url): return [], dict(password=url.password)
        def connect(self, password): raise sqlite3.OperationalError(f"password authentication failed for 'me' with {password!r} (Password={password})\nDETAIL: {password}")
    sys.modules["refusing_dialect"] = type(sys)("refusing_dialect")
    sys.modules["refusing_dialect"].Refusing = Refusing
    registry.register("refusing", "refusing_dialect", "Refusing")
    with pytest.raises(Invalid) as stop: databases.snapshot_database(f"refusing://me:{SECRET}@host/shop", tmp_path/"copy.sqlite")
    assert "authentication failed for 'me'" in str(stop.value) and "refusing://me:***@host/shop" in str(stop.value)
    assert "nter" not in str(stop.value) and sqlalchemy.__version__


def test_templates_say_the_rows_of_a_database(tmp_path):
    shop(tmp_path/"a b.db")
    documents, _ = read(tmp_path, "a b.db", templates={"parts": "{name} ({price:.1f})", "*": "{name}"})
    assert texts(documents) == ["Bolt & Co\n", "part 0 (0.0)\n", "part 1 (0.5)\n", "part 2 (1.0)\n"] and documents[0]["source"] == "a b.db!/makers#7"
    with pytest.raises(Invalid, match="names the column `nmae`.*`name`, `maker`"): read(tmp_path, "a b.db", templates={"parts": "{nmae}"})


def test_a_snapshot_loses_no_digit(tmp_path):
    "Decimals, times, identifiers and lists arrive as text that says all of it; two foreign keys of a column both stay"
    import datetime, decimal, uuid
    import sqlalchemy as sa
    with sqlite3.connect(tmp_path/"a.db") as c: c.executescript("""
        CREATE TABLE a (id INTEGER PRIMARY KEY); CREATE TABLE b (id INTEGER PRIMARY KEY);
        CREATE TABLE t (id INTEGER PRIMARY KEY REFERENCES a (id) REFERENCES b (id), price NUMERIC(12, 2), made TIMESTAMP, ok BOOLEAN, raw BLOB);
        INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); INSERT INTO t VALUES (1, 3.50, '2026-01-02 03:04:05.000000', 1, x'00ff');""")
    c.close()
    assert databases.snapshot_database(f"sqlite:///{tmp_path}/a.db", tmp_path/"b.db") == {"a": 1, "b": 1, "t": 1}
    [d] = [d for d in read(tmp_path, "b.db")[0] if d["record"]["table"] == "t"]
    assert d["record"]["values"]["price"] == "3.50" and d["record"]["values"]["made"].startswith("2026-01-02") and [r["table"] for r in d["record"]["references"]] == ["a", "b"]
    for value, said in ((decimal.Decimal("0.10"), "0.10"), (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"), ([1, 2], "[1, 2]"),
                        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "2026-01-02T00:00:00+00:00")): assert tables.value_to_text(tables.to_json_value(value)) == said
    assert isinstance(sa.inspect(sa.create_engine(f"sqlite:///{tmp_path}/b.db")).get_columns("t")[1]["type"], sa.Text)


def test_what_a_careless_export_holds(tmp_path):
    "Blank lines above a header, a last byte that opens a sequence, a mistake behind a NaN, a rich-text file named .txt, a link in a zip"
    (tmp_path/"blank.csv").write_text("\n\nname;price\nbolt;3\n", encoding="utf-8")
    [d], rejects = read(tmp_path, "blank.csv")
    assert not rejects and d["record"]["values"] == {"name": "bolt", "price": "3"}
    (tmp_path/"cut.csv").write_bytes(b"name;price\ncaf\xe9")
    documents, rejects = read(tmp_path, "cut.csv")
    assert len(rejects) == 1 and not documents or documents[0]["encoding"]
    (tmp_path/"nan.jsonl").write_text('{"text": "one"}\n{"text": NaN, "b": }\n{"text": "three"}\n', encoding="utf-8")
    documents, [r] = read(tmp_path, "nan.jsonl")
    assert texts(documents) == ["one\n", "three\n"] and r["line"] == 2
    (tmp_path/"letter.txt").write_bytes(rb"{\rtf1\ansi Dear customer}")
    assert texts(read(tmp_path, "letter.txt")[0]) == ["Dear customer\n"]
    with zipfile.ZipFile(tmp_path/"links.zip", "w") as z:
        link = zipfile.ZipInfo("a.txt"); link.external_attr = 0o120777 << 16
        z.writestr(link, "../secret.txt"); z.writestr("b.txt", "a real page")
    documents, rejects = read(tmp_path, "links.zip")
    assert [d["source"] for d in documents] == ["links.zip!/b.txt"] and not rejects


# --- archives -----------------------------------------------------------------------------------------------------------------------

def zipped(members: dict, path: Path = None, **options) -> bytes:
    "A zip archive of these members"
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED, **options) as z:
        for name, content in members.items(): z.writestr(name, content)
    if path: path.write_bytes(out.getvalue())
    return out.getvalue()


def tarred(members: dict, mode: str = "w") -> bytes:
    "A tar archive of these members"
    with tarfile.open(fileobj=(out := io.BytesIO()), mode=mode) as t:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_archives_of_every_kind(tmp_path):
    import zstandard
    members = {"LICENSE": b"SPDX-License-Identifier: MIT", "deep/a.md": b"# a\n", "deep/b.py": b"b = 1\n", ".hidden": b"x", "deep/c.csv": b"a,b\n1,2\n"}
    tar = tarred(members)
    for name, raw in {"x.zip": zipped(members), "x.tar": tar, "x.tar.gz": gzip.compress(tar), "x.tgz": gzip.compress(tar), "x.tar.bz2": tarred(members, "w:bz2"),
                      "x.tar.xz": lzma.compress(tar), "x.tar.zst": zstandard.compress(tar)}.items():
        (tmp_path/name).write_bytes(raw)
        documents, rejects = read(tmp_path, name)
        assert not rejects and [(d["source"], d["kind"], d["licence"]) for d in documents] == [
            (f"{name}!/deep/a.md", "docs", "MIT"), (f"{name}!/deep/b.py", "code", "MIT"), (f"{name}!/deep/c.csv#1", "rows", "MIT")], name
    for name, raw in {"a.md.gz": gzip.compress(b"# a\n"), "a.md.xz": lzma.compress(b"# a\n"), "a.md.zst": zstandard.compress(b"# a\n") + zstandard.compress(b"b\n")}.items():
        (tmp_path/name).write_bytes(raw)
        [document], _ = read(tmp_path, name)
        assert document["text"] == ("# a\nb\n" if name.endswith("zst") else "# a\n") and document["source"] == name
        (tmp_path/name).write_bytes(raw[:-3])
        assert only(tmp_path, name, "fetch it again") == []


def test_office_files_and_databases_inside_archives(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet
    parquet.write_table(pa.table(dict(a=[1])), columns := io.BytesIO())
    zipped({"a.pdf": a_pdf("Hello"), "s.db": shop(tmp_path/"s.db").read_bytes(), "p.parquet": columns.getvalue(), "in.zip": zipped({"b.txt": "b"})}, tmp_path/"x.zip")
    documents, rejects = read(tmp_path, "x.zip")
    assert not rejects and [d["source"] for d in documents] == ["x.zip!/a.pdf", "x.zip!/s.db!/makers#7", *(f"x.zip!/s.db!/parts#{n}" for n in (1, 2, 3)), "x.zip!/p.parquet#1", "x.zip!/in.zip!/b.txt"]


def test_broken_archives(tmp_path):
    raw = zipped({"a.txt": "first " * 99, "b.txt": "second"})
    (tmp_path/"torn.zip").write_bytes(raw[:len(raw) // 2])
    assert only(tmp_path, "torn.zip", "broken", "again") == []
    (tmp_path/"no.zip").write_bytes(b"no zip")
    assert only(tmp_path, "no.zip", "broken") == []
    hurt = bytearray(raw)
    hurt[raw.index(b"b.txt") + 6] ^= 255
    (tmp_path/"hurt.zip").write_bytes(hurt)
    assert texts(only(tmp_path, "hurt.zip", "hurt.zip!/b.txt")) == [("first " * 99).strip() + "\n"]
    tar = tarred({f"{n}.txt": b"x" * 600 for n in range(4)})
    (tmp_path/"torn.tar").write_bytes(tar[:5000])
    assert len(only(tmp_path, "torn.tar", "broken after")) >= 2
    (tmp_path/"hurt.tar").write_bytes(tar[:3072] + b"?" * 512 + tar[3584:])
    assert len(only(tmp_path, "hurt.tar", "broken after 2 members")) == 2
    (tmp_path/"torn.tgz").write_bytes(gzip.compress(tar)[:-30])
    assert only(tmp_path, "torn.tgz", "fetch it again") == []


def test_names_that_lead_out(tmp_path):
    names = ["../out.txt", "/etc/motd", "a/../../b.txt", "..\\up.txt", "C:\\boot.txt", "ok.txt"]
    zipped(dict.fromkeys(names, "x"), tmp_path/"x.zip")
    (tmp_path/"x.tar").write_bytes(tarred(dict.fromkeys(names, b"x")))
    for source in ("x.zip", "x.tar"):
        documents, rejects = read(tmp_path, source)
        assert [d["source"] for d in documents] == [f"{source}!/ok.txt"] and len(rejects) == 5
        assert all("leads out" in r["reason"] for r in rejects)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar", "x.zip"] and not (tmp_path.parent/"out.txt").exists()


def test_members_twice_encrypted_and_linked(tmp_path):
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path/"x.zip", "w") as z:
        for text in ("one", "two"): z.writestr("a.txt", text)
    assert texts(only(tmp_path, "x.zip", "second member")) == ["one\n"]
    raw = bytearray(zipped({"a.txt": "one"}))
    raw[6] |= 1
    raw[raw.index(b"PK\1\2") + 8] |= 1
    (tmp_path/"locked.zip").write_bytes(raw)
    assert only(tmp_path, "locked.zip", "without a password") == []
    with tarfile.open(tmp_path/"links.tar", "w") as t:
        info = tarfile.TarInfo("passwd"); info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        t.addfile(info)
    assert read(tmp_path, "links.tar") == ([], [])


@pytest.mark.parametrize("name", ["a.zip", "a.txt.gz", "a.tgz", "nested.zip", "overlap.zip"])
def test_bombs(tmp_path, name):
    "100 MB of zeros in 100 kB, plain, nested and with many members: ended by the budget, in little memory"
    zeros = bytes(100 << 20)
    if name == "a.zip": raw = zipped({"first.txt": "intact", "zeros.txt": zeros})
    elif name == "a.txt.gz": raw = gzip.compress(zeros)
    elif name == "a.tgz": raw = gzip.compress(tarred({"zeros.txt": zeros}))
    elif name == "nested.zip": raw = zipped({"first.txt": "intact", "in.zip": zipped({"in2.zip": zipped({"zeros.txt": zeros})})})
    else: raw = zipped({"first.txt": "intact", **{f"{n}.jsonl": zeros[:25 << 20] for n in range(5)}})
    assert len(raw) < 1 << 20
    (tmp_path/name).write_bytes(raw)
    del zeros
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    documents, rejects = read(tmp_path, name)
    assert texts(documents) == (["intact\n"] if name.endswith("zip") else [])
    assert rejects and "bomb" in rejects[-1]["reason"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_depth(tmp_path):
    raw = zipped({"a.txt": "bottom"})
    for n in range(5): raw = zipped({f"{n}.zip": raw, f"{n}.txt": f"level {n}"})
    (tmp_path/"x.zip").write_bytes(raw)
    documents = only(tmp_path, "x.zip", "at most 3 deep")
    assert texts(documents) == ["level 2\n", "level 3\n", "level 4\n"]
    (tmp_path/"a.txt.gz.gz").write_bytes(gzip.compress(gzip.compress(b"x")))
    assert only(tmp_path, "a.txt.gz.gz", "one layer") == []


# --- as a whole ---------------------------------------------------------------------------------------------------------------------

def test_documents_of_a_mixed_folder_are_the_same_every_time(tmp_path):
    (tmp_path/"lib").mkdir()
    (tmp_path/"lib"/"LICENSE").write_text("Mozilla Public License Version 2.0", encoding="utf-8")
    (tmp_path/"lib"/"a.c").write_text("int a;\n", encoding="utf-8")
    (tmp_path/"b.txt").write_text("Der Preis der Schraube beträgt drei Euro.\n", encoding="utf-8")
    zipped({"c.md": "# c"}, tmp_path/"c.zip")
    shop(tmp_path/"d.db")
    names = readers.list_sources(tmp_path)
    first = list(readers.read_documents(tmp_path, names, **PLAIN))
    again = [x for name in reversed(names) for x in readers.read_source(tmp_path, name, **PLAIN)]
    assert sorted(map(json.dumps, first)) == sorted(map(json.dumps, again)) and len(first) == 7
    found = {d["source"]: d for d, _ in first}
    assert found["lib/a.c"]["licence"] == "MPL-2.0" and found["lib/a.c"]["language"] == "c"
    assert found["b.txt"]["language"] == "de" and found["b.txt"]["licence"] == ""
    for d in found.values():
        assert list(d)[:6] == ["id", "source", "kind", "language", "licence", "text"]
        assert d["id"] == hash_content(d["text"]) and d["text"] == normalize_text(d["text"])
        json.dumps(d, allow_nan=False, ensure_ascii=False).encode()


def test_default_data_is_read_whole():
    names = readers.list_sources(ROOT/"data", ["facts/*", "general/*"])
    found = list(readers.read_documents(ROOT/"data", names, **PLAIN))
    assert len(names) == len(found) and not [r for _, r in found if r]
    assert {d["kind"] for d, _ in found} == {"docs", "code"} and {d["licence"] for d, _ in found} == {"BSD-3-Clause"}


def test_unreadable_file():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder)/"a.txt").write_text("x", encoding="utf-8")
        assert len(read(Path(folder), "a.txt")[0]) == 1  # and every module that reading needs is loaded
        (Path(folder)/"a.txt").chmod(0)
        root = not os.geteuid()  # root may read everything, so it stops being root
        if root: os.seteuid(65534)
        try: assert only(Path(folder), "a.txt", "Permission denied") == []
        finally:
            if root: os.seteuid(0)
