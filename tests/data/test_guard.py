"Databases and Parquet files that hang, crash or swallow memory: each costs one reject, and what stands before and beside it is read"
import io, os, signal, sqlite3, tempfile
from functools import partial

import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet
from sheets import zipped

from forge_nb.core.project import Invalid
from forge_nb.data import fact_tables, readers
from forge_nb.data.guard import iterate_guarded

PLAIN = dict(templates={}, strict=False)
HANGS = "instr(hex(zeroblob(10000000)), hex(zeroblob(5000000)) || '1')"  # hours: ten million bytes are compared at each of ten million places
SWALLOWS = "hex(zeroblob(450000000))"  # 900 MB in a cell of a file of 8 kB


def database(path, expression: str = "", count: int = 3):
    "A SQLite file whose second table has a column that SQLite computes when it is read"
    with sqlite3.connect(path) as c:
        c.execute("create table parts (id integer primary key, name text)")
        c.executemany("insert into parts (name) values (?)", [(f"bolt {n}",) for n in range(count)])
        if expression:
            c.execute("create table stock (id integer primary key, amount integer)")
            c.execute("insert into stock (amount) values (7)")
            c.execute(f"alter table stock add column made text generated always as ({expression}) virtual")  # an insert would compute it
    c.close()
    return path


def bomb(path):
    "A Parquet file of 100 rows, each with the same 20 MB, which stand in the file once"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["bolt " * 4_000_000]))
    parquet.write_table(pa.table({"name": column}), path, compression="zstd")
    return path


@pytest.fixture
def tight(monkeypatch):
    "A GiB more than this process has"
    readers.load_libraries()  # they take address space
    monkeypatch.setattr(readers, "iterate_guarded", lambda read, seconds: iterate_guarded(read, seconds, 1 << 30))


def beside(folder, name: str) -> tuple:
    "Documents and rejects of a file, and a good database and a page that are read after it"
    database(folder/"zz good.sqlite")
    (folder/"zz page.md").write_text("The pump is greased every forty hours.\n", encoding="utf-8")
    found = [*readers.read_documents(folder, [name, "zz good.sqlite", "zz page.md"], **PLAIN)]
    assert [d["source"] for d, _ in found[-4:]] == [*(f"zz good.sqlite!/parts#{n}" for n in (1, 2, 3)), "zz page.md"]
    return [d["source"] for d, _ in found[:-4] if d], [r for _, r in found if r]


def test_a_database_that_hangs_costs_one_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_READ_SECONDS", 5.)
    database(tmp_path/"a.sqlite", HANGS, 250)  # rows travel by the hundred
    sources, [reject] = beside(tmp_path, "a.sqlite")
    assert len(sources) == 200 and "takes longer" in reject["reason"] and reject["source"] == "a.sqlite"


def test_a_database_that_swallows_memory_costs_one_reject(tmp_path, tight):
    assert database(tmp_path/"a.sqlite", SWALLOWS).stat().st_size < 20_000
    sources, [reject] = beside(tmp_path, "a.sqlite")
    assert sources == [f"a.sqlite!/parts#{n}" for n in (1, 2, 3)] and "memory" in reject["reason"]


def test_a_parquet_file_that_swallows_memory_costs_one_reject(tmp_path, tight):
    assert bomb(tmp_path/"a.parquet").stat().st_size < 100_000
    sources, [reject] = beside(tmp_path, "a.parquet")
    assert sources == [] and reject["source"] == "a.parquet" and ";" in reject["reason"]


@pytest.mark.parametrize("ending", ["parquet", "sqlite"])
@pytest.mark.parametrize("end", [partial(os._exit, 3), lambda: os.kill(os.getpid(), signal.SIGSEGV), lambda: os.abort()])
def test_a_reader_that_ends_its_process_costs_one_reject(tmp_path, monkeypatch, ending, end):
    "What it had read by then is kept; in an archive the other files are read"
    def die(file, source, context):
        for n in range(250): yield dict(source=f"{source}#{n}", text="bolt\n", kind="rows"), None
        end()
    monkeypatch.setitem(readers.READERS, f".{ending}", die)
    monkeypatch.setattr(readers, "STREAMED", (die,))
    (tmp_path/f"a.{ending}").write_bytes(b"whatever")
    (tmp_path/"b.zip").write_bytes(zipped({f"a.{ending}": "whatever", "b.md": "The pump is greased every forty hours.\n"}))
    for name, others in ((f"a.{ending}", 0), ("b.zip", 1)):
        found = [*readers.read_source(tmp_path, name, **PLAIN)]
        assert len(found) == 200 + 1 + others and [r["reason"].split(",")[1] for _, r in found if r] == [" found one at which its reader crashed; open it and save it again"]


@pytest.mark.parametrize("ending", ["parquet", "sqlite"])
def test_good_files_are_read_as_without_a_guard(tmp_path, monkeypatch, ending):
    "The same documents in the same order, alone, in an archive and in an archive of an archive, and no file is left behind"
    names = [f"bolt {n}" for n in range(1234)]
    if ending == "sqlite": database(tmp_path/"a.sqlite", "amount + 1", 1234)
    else: parquet.write_table(pa.table({"id": [*range(1, 1235)], "name": names}), tmp_path/"a.parquet")
    raw = (tmp_path/f"a.{ending}").read_bytes()
    context = dict(templates={}, licence="", path=str(tmp_path/f"a.{ending}"), depth=0, budget=dict(size=len(raw), unpacked=0), cache=None)
    plain = [*readers.READERS[f".{ending}"](io.BytesIO(raw), f"a.{ending}", context)]
    found = [*readers.read_source(tmp_path, f"a.{ending}", **PLAIN)]
    assert len(plain) >= 1234 and [{k: v for k, v in d.items() if k != "reader"} for d, _ in found] == [d for d, _ in plain]
    (tmp_path/"b.zip").write_bytes(zipped({f"a.{ending}": raw, "c.zip": zipped({f"a.{ending}": raw})}))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path/"temporary"))
    (tmp_path/"temporary").mkdir()
    packed = [*readers.read_source(tmp_path, "b.zip", **PLAIN)]
    assert [d["text"] for d, _ in packed] == [d["text"] for d, _ in found] * 2
    assert not os.listdir(tmp_path/"temporary")


def test_who_stops_early_leaves_no_process(tmp_path):
    database(tmp_path/"a.sqlite", count=5000)
    reading = readers.read_source(tmp_path, "a.sqlite", **PLAIN)
    next(reading)
    [child] = [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE][-1:]
    reading.close()
    assert not psutil.pid_exists(child.pid)


@pytest.mark.parametrize("ending", ["sqlite", "xlsx", "parquet"])
def test_a_table_of_facts_that_ends_its_reader_is_one_sentence(tmp_path, monkeypatch, ending):
    "And the process that asked goes on"
    name = dict(sqlite="read_database_rows", xlsx="read_sheet_rows", parquet="read_parquet_rows")[ending]
    monkeypatch.setattr(fact_tables, name, lambda *_: os._exit(3))
    (tmp_path/f"prices.{ending}").write_bytes(b"whatever")
    with pytest.raises(Invalid, match=f"prices.{ending}: .*crashed; open it and save it again"): fact_tables.read_fact_table(tmp_path/f"prices.{ending}")


def test_a_database_of_facts_is_a_table(tmp_path):
    database(tmp_path/"parts.sqlite")
    assert fact_tables.list_fact_tables(tmp_path) == [tmp_path/"parts.sqlite"]
    assert fact_tables.read_fact_table(tmp_path/"parts.sqlite")[1] == dict(id="2", name="bolt 1")
    database(tmp_path/"two.sqlite", "amount + 1")
    with pytest.raises(Invalid, match="two.sqlite: expected one table in a database of facts, found 2"): fact_tables.read_fact_table(tmp_path/"two.sqlite")
    (tmp_path/"torn.sqlite").write_bytes(b"SQLite format 3\0" + bytes(900))
    with pytest.raises(Invalid, match="torn.sqlite: expected .*; open it and save it again"): fact_tables.read_fact_table(tmp_path/"torn.sqlite")
