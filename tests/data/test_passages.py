"Passages and the index: what is planted is found, what may not be read is not there, and an index is only read as what it was"
import json, os, random, subprocess, sys

import numpy as np
import pytest

from forge_nb.core.project import Invalid, NotFound, ROOT, hash_file, read_json, read_jsonl, write_json
from forge_nb.data import passages as page
from forge_nb.data.passages import (build_index, load_index, make_analyzer, make_document_passages, make_passage,
                                    read_groups, read_table_passages, save_index, search, split_document)
from forge_nb.ops.search import answer_query


def make_document(source: str, text: str, kind: str = "docs", language: str = "en") -> dict:
    return dict(id=source, kind=kind, source=source, language=language, text=text)


def index_texts(texts: dict, language: str = "en", groups: dict = {}) -> page.Index:
    "An index of short documents by source"
    documents = [make_document(source, text, language="de" if source.endswith("de.txt") else language) for source, text in texts.items()]
    return build_index(make_document_passages(documents, groups, language, 1200))


def find(index, query: str, k: int = 3, groups: list = []) -> list:
    [found] = search(index, [query], k, groups)
    return [passage["source"] for passage in found]


NAMES = {"SESSION_COOKIE_AGE": ["session cookie age", "cookie_age session", "SESSION_COOKIE_AGE"],
         "getElementById": ["getelementbyid", "get element by id", "element id"],
         "auth.models.get_user": ["get_user", "auth.models.get_user", "models get user"],
         "fields.W901": ["fields.W901", "W901", "w901"],
         "HTTPResponseRedirect": ["HTTPResponseRedirect", "http response redirect"],
         "KX-200/B": ["KX-200", "kx 200"],
         "ADMINS": ["ADMINS", "Which value has ADMINS?"]}


@pytest.mark.parametrize("name, query", [(name, query) for name, queries in NAMES.items() for query in queries])
def test_a_name_is_found_whole_and_in_parts(name, query):
    "Among siblings that share every part of it but one, and among prose that holds the parts apart"
    noise = {f"n{n}.txt": f"{text} and what else there is to say." for n, text in enumerate([
        "SESSION_COOKIE_NAME", "SESSION_FILE_PATH", "CSRF_COOKIE_PATH", "The age of a user", "getElementsByName", "getAttribute",
        "auth.models.set_password", "auth.forms.clean", "fields.W902", "fields.E901", "HTTPRequest", "The response of a server",
        "KX-300/B", "KX-400", "200 parts", "An admin sees more", "Every admin and all admins", "A redirect", "Elements"])}
    index = index_texts(noise | {"right.txt": f"{name} and what else there is to say."})
    assert find(index, query)[0] == "right.txt"


def test_prose_is_found_by_other_forms_of_its_words():
    assert find(index_texts({"a.txt": "Schrauben werden angezogen.", "b.txt": "Der Motor läuft."}, "de"), "Schraube")[0] == "a.txt"
    assert find(index_texts({"a.txt": "Bolts are tightened.", "b.txt": "The motor runs."}), "tightening bolt")[0] == "a.txt"


def test_languages_live_in_one_index():
    documents = [make_document("de.txt", "Die Häuser sind hoch gebaut.", language="de"),
                 make_document("en.txt", "The houses were built high.", language="en"),
                 make_document("xx.txt", "Short.", language="pcm")]
    index = build_index(make_document_passages(documents, {}, "en", 1200))
    assert find(index, "Haus")[0] == "de.txt" and find(index, "house")[0] == "en.txt" and find(index, "short") == ["xx.txt"]


@pytest.mark.parametrize("right, wrong, query", [
    ("東京都庁は新宿区にあります。", "京都は古い都です。", "東京都庁"), ("发动机的保养周期是一年。", "电池的保养很简单。", "发动机保养"),
    ("รหัสผ่านต้องมีแปดตัวอักษร", "ชื่อผู้ใช้ต้องไม่ซ้ำกัน", "รหัสผ่าน"), ("데이터베이스를 백업합니다.", "서버를 다시 시작합니다.", "데이터베이스 백업"),
    ("ミーティングは月曜日です。", "休暇は金曜日です。", "ミーティング"), ("手机型号 KX200 支持快充。", "手机型号 KX300 不支持快充。", "kx200快充")])
def test_scripts_without_blanks_are_found(right, wrong, query):
    index = index_texts({"wrong.txt": wrong, "other.txt": "Nothing of this.", "right.txt": right}, "xx")
    assert find(index, query)[0] == "right.txt"


def test_full_width_and_composed_forms_are_one():
    index = index_texts({"a.txt": "Ｍ３ ボルト", "b.txt": "cafe\u0301"}, "xx")
    assert find(index, "M3") == ["a.txt"] and find(index, "CAFÉ") == ["b.txt"]


@pytest.mark.parametrize("source", ["docs/ref/settings.txt", "docs/intro/tutorial01.txt", "code/db/models/base.py", "code/forms/widgets.py"])
@pytest.mark.parametrize("size", [200, 1200])
def test_no_line_of_a_document_is_lost(source, size):
    "Passages together hold every line with a word, in order, each at the line that it names, and none is too long"
    text = (ROOT/"data"/source).read_text(encoding="utf-8")
    parts = split_document(make_document(source, text, "code" if source.endswith(".py") else "docs"), size)
    joined = "".join("".join(part.split()) for _, _, part in parts)
    lines = ["".join(line.split()) for line in text.splitlines() if any(map(str.isalnum, line))]
    position = 0
    for line in lines:
        assert (position := joined.find(line, position)) >= 0, line
    assert max(len(part) for _, _, part in parts) <= size
    rows = text.splitlines()
    for line, _, part in parts: assert part.splitlines()[0].strip() in rows[line - 1]


def test_ids_stay_when_neighbours_change():
    first, second = "One\n===\n\n" + "a word. " * 20, "Two\n===\n\n" + "another word. " * 20
    ids = {p["id"] for p in make_document_passages([make_document("a.txt", first + "\n\n" + second)], {}, "en", 200)}
    again = {p["id"] for p in make_document_passages([make_document("a.txt", "New\n===\n\n" + "x " * 90 + "\n\n" + second)], {}, "en", 200)}
    assert len(ids & again) >= 1 and ids != again


def test_a_rows_value_stands_in_backticks_as_in_answers():
    settings = read_table_passages(ROOT/"data"/"facts", {"settings.csv": ["name"]}, {}, "en")
    debug = next(p for p in settings if p["title"] == "DEBUG")
    assert "default `False`" in debug["text"] and debug["source"] == "facts/settings.csv" and "document" not in debug["text"]
    row = (ROOT/"data"/"facts"/"settings.csv").read_text(encoding="utf-8").splitlines()[debug["line"] - 1]
    assert row.startswith("DEBUG,") and debug["parents"] == [f"settings.csv:{debug['line']}"]
    assert len({p["id"] for p in settings}) == len(settings)


# Who may read what

SECRET = {"hr/pay.txt": "The salary of Kim is 9000 zloty.", "hr/plan.txt": "Salary bands follow the zloty.", "hr/de.txt": "Das Gehalt der Häuser."}
OPEN = {"docs/a.txt": "A salary is paid monthly.", "docs/b.txt": "Bolts cost money.", "docs/c.txt": "The plan of the house is on paper."}
GROUPS = {"hr": ["hr", "board"], "*": ["everyone"]}
QUERIES = ["salary", "zloty", "salary of Kim in zloty", "the plan", "bolts", "Haus", "nine 9000"]


@pytest.fixture(scope="module")
def both(): return index_texts(SECRET | OPEN, groups=GROUPS)


def test_groups_see_what_they_may(both):
    for group in ("hr", "board"): assert set(find(both, "zloty", groups=[group])) == {"hr/plan.txt", "hr/pay.txt"}
    assert find(both, "zloty") == find(both, "zloty", groups=["sales", "nosuch"]) == []


def test_what_may_not_be_read_moves_nothing(both):
    "Passages, order and scores are those of an index in which the others never were; so are the sentences"
    alone = index_texts(OPEN)
    for groups in ([], ["sales"]): assert search(both, QUERIES, 5, groups) == search(alone, QUERIES, 5, groups)
    for query in ("zloty", "Kim", "elephants"):
        errors = []
        for index in (both, alone):
            with pytest.raises(NotFound) as error: answer_query(index, query, 5, [])
            errors.append(str(error.value))
        assert errors[0] == errors[1]
    assert "hr" not in answer_query(both, "salary", 9, []).model_dump_json() and len(answer_query(both, "salary", 9, []).passages) == 1


def test_a_caller_without_any_readable_passage_gets_nothing():
    index = index_texts(SECRET, groups=GROUPS)
    assert search(index, QUERIES, 5, []) == [[] for _ in QUERIES]
    with pytest.raises(NotFound, match="no passage holds"): answer_query(index, "salary", 5, [])


def test_a_row_is_no_wider_open_than_its_document(tmp_path):
    (tmp_path/"facts").mkdir()
    (tmp_path/"facts"/"pay.csv").write_text("name,pay,document\nKim,9000,hr/pay.txt\nLee,8000,docs/a.txt;hr/pay.txt\nAll,1,\n", encoding="utf-8")
    index = build_index(read_table_passages(tmp_path/"facts", {}, GROUPS, "en"))
    assert [p["title"] for p in search(index, ["pay"], 9, [])[0]] == ["All"]
    assert {p["title"] for p in search(index, ["pay"], 9, ["hr"])[0]} == {"All", "Kim", "Lee"}


def test_a_repeated_row_is_one_passage_with_all_its_parents(tmp_path):
    (tmp_path/"facts").mkdir()
    (tmp_path/"facts"/"pay.csv").write_text("name,pay,document\nKim,9000,hr/pay.txt\nKim,9000,docs/a.txt\nLee,1,hr/pay.txt\nLee,1,hr/pay.txt\n", encoding="utf-8")
    kim, lee = read_table_passages(tmp_path/"facts", {}, GROUPS, "en")
    assert kim["parents"] == ["pay.csv:2", "pay.csv:3"] and "everyone" in kim["groups"] and lee["groups"] == ["board", "hr"] and len(lee["parents"]) == 2


def test_a_column_called_document_is_shown_where_it_is_no_provenance():
    row = dict(kind="rows", source="list.csv#1", language="", text="x", record=dict(table="list", key={}, values=dict(name="A", document="Lease")))
    assert make_document_passages([row], {}, "en", 99)[0]["text"] == "list: name `A`; document `Lease`"


def test_a_large_document_is_cut_in_linear_time():
    "Ten megabytes on a line, a line of blanks behind a mark of a heading, ten thousand headings"
    for text in ("x" * 10_000_000, "# a" + " " * 200_000 + "b", "".join(f"# Title {n}\n\nText {n}.\n\n" for n in range(10_000))):
        parts = split_document(make_document("a.md", text), 1200)
        assert sum(len("".join(part.split())) for _, _, part in parts) == len("".join(text.split()))


@pytest.mark.parametrize("text, words", [
    ("docs: everyone\n", "`docs` is 'everyone'; it should be a valid list"), ("docs: []\n", "at least 1 item"), ("- docs\n", "valid dictionary"),
    ("docs: [3]\n", "valid string"), ("docs: [hr\n", "line")])
def test_a_wrong_groups_file_is_a_sentence(tmp_path, text, words):
    (tmp_path/"groups.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(Invalid, match=words): read_groups(tmp_path/"groups.yaml")


def test_the_first_line_that_fits_counts_and_none_is_an_error(tmp_path):
    (tmp_path/"groups.yaml").write_text('docs/hr/open.txt: [everyone]\ndocs/hr: [hr]\n"docs/*": [staff]\n', encoding="utf-8")
    groups = read_groups(tmp_path/"groups.yaml")
    assert [page.find_groups(f"docs/{name}", groups) for name in ("hr/open.txt", "hr/pay.txt", "hr.txt")] == [["everyone"], ["hr"], ["staff"]]
    with pytest.raises(Invalid, match="no line fits mail/1.txt"): make_document_passages([make_document("mail/1.txt", "Hello there.")], groups, "en", 99)
    (tmp_path/"groups.yaml").write_text("# nothing\n", encoding="utf-8")
    assert read_groups(tmp_path/"groups.yaml") == read_groups(tmp_path/"nosuch.yaml") == {}


# Saved and loaded

BUILD = """
import sys; from pathlib import Path
sys.path.insert(0, {tests!r}); from test_passages import OPEN, SECRET, GROUPS, index_texts
from forge_nb.data.passages import save_index
save_index(index_texts(SECRET | OPEN, groups=GROUPS), Path({out!r}))
"""


def test_the_same_passages_give_the_same_bytes(tmp_path):
    "Also in processes that hash texts differently, whatever the number of threads"
    sums = []
    for seed in ("1", "2"):
        out = tmp_path/f"index{seed}"
        env = os.environ | dict(PYTHONHASHSEED=seed, OMP_NUM_THREADS=seed)
        subprocess.run([sys.executable, "-c", BUILD.format(tests=str(ROOT/"tests"/"data"), out=str(out))], cwd=ROOT, env=env, check=True)
        sums.append({p.name: hash_file(p) for p in out.iterdir()})
    assert sums[0] == sums[1] and {"manifest.json", "passages.jsonl"} < set(sums[0])
    assert not [name for name in sums[0] if not name.endswith((".json", ".jsonl", ".npy"))]


def test_what_is_loaded_answers_as_what_was_saved(both, tmp_path):
    save_index(both, tmp_path/"index")
    loaded = load_index(tmp_path/"index")
    for groups in ([], ["hr"], both.groups): assert search(loaded, QUERIES, 5, groups) == search(both, QUERIES, 5, groups)


def test_a_removed_document_is_not_found(both):
    without = index_texts({s: t for s, t in (SECRET | OPEN).items() if s != "hr/pay.txt"}, groups=GROUPS)
    assert "hr/pay.txt" in find(both, "9000 zloty", groups=["hr"])
    assert find(without, "9000", groups=["hr"]) == [] and "9000" not in without.vocabulary
    assert {p["id"] for p in without.passages} == {p["id"] for p in both.passages if p["source"] != "hr/pay.txt"}


def test_a_killed_write_leaves_the_old_index(both, tmp_path, monkeypatch):
    save_index(both, tmp_path/"index")
    before = {p.name: hash_file(p) for p in (tmp_path/"index").iterdir()}
    def fail(*args): raise KeyboardInterrupt
    monkeypatch.setattr(page, "write_json", fail)
    with pytest.raises(KeyboardInterrupt): save_index(index_texts(OPEN), tmp_path/"index")
    assert {p.name: hash_file(p) for p in (tmp_path/"index").iterdir()} == before and [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_foreign_index_is_refused(both, tmp_path):
    folder = tmp_path/"index"
    corpus = save_index(both, folder)
    assert load_index(folder, corpus).passages == both.passages
    assert save_index(index_texts(OPEN), tmp_path/"other") != corpus != save_index(index_texts(SECRET | OPEN), tmp_path/"open")
    manifest = read_json(folder/"manifest.json")
    for changed, words in [(dict(analyzer="0" * 16), "made with analyzer 0000"), (dict(bm25s="9.9"), "made with bm25s 9.9"), (dict(format=0), "made with format 0")]:
        write_json(folder/"manifest.json", manifest | changed)
        with pytest.raises(Invalid, match=words): load_index(folder)
    write_json(folder/"manifest.json", manifest)
    with pytest.raises(Invalid, match="is over other passages"): load_index(folder, "f" * 16)
    with pytest.raises(NotFound, match="there is no index"): load_index(tmp_path/"nosuch")
    (folder/"data.csc.index.npy").write_bytes((tmp_path/"other"/"data.csc.index.npy").read_bytes())
    with pytest.raises(Invalid, match="data.csc.index.npy is not what the manifest"): load_index(folder)
    (folder/"data.csc.index.npy").unlink()
    with pytest.raises(Invalid, match="is not what the manifest"): load_index(folder)


def test_another_analysis_is_noticed(both, tmp_path, monkeypatch):
    "A change of what the analysis does is another version, without anybody raising a number"
    save_index(both, tmp_path/"index")
    monkeypatch.setattr(page, "split_name", lambda token, stem: [token])
    for function in (page.hash_analyzer, page.make_analyzer): function.cache_clear()
    try:
        with pytest.raises(Invalid, match="made with analyzer"): load_index(tmp_path/"index")
    finally:
        monkeypatch.undo()
        for function in (page.hash_analyzer, page.make_analyzer): function.cache_clear()
    load_index(tmp_path/"index")


# How much is asked for

def test_a_longer_list_begins_with_the_shorter_one():
    random.seed(0)
    words = [f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(40)]
    index = index_texts({f"{n}.txt": " ".join(random.choices(words, k=12)) for n in range(300)})
    query = " ".join(words[:6])
    lists = {k: find(index, query, k) for k in (1, 2, 3, 10, 50, 299, 300, 1000)}
    for k, found in lists.items(): assert found == lists[1000][:k] and len(set(found)) == len(found)
    scores = [p["score"] for p in search(index, [query], 1000, [])[0]]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0 and len(scores) < 300  # what shares no word is not listed


def test_equal_passages_keep_their_order():
    index = index_texts({f"{n:03}.txt": "The same words in each." for n in range(50)})
    assert find(index, "same words", 50) == [f"{n:03}.txt" for n in range(50)] and find(index, "same words", 7) == [f"{n:03}.txt" for n in range(7)]


def test_a_batch_is_its_questions(both):
    assert search(both, QUERIES, 3, ["hr"]) == [search(both, [query], 3, ["hr"])[0] for query in QUERIES]
    assert search(both, [], 3, []) == []


# Bad input

@pytest.mark.parametrize("query, k, words", [
    ("", 3, "the query is empty"), (" \n\t", 3, "the query is empty"), ("?!…", 3, "no letter and no digit"), ("\ud800", 3, "no valid Unicode"),
    ("a", 0, "k is 0"), ("a", -1, "k is -1")])
def test_a_query_that_asks_nothing_is_a_sentence(both, query, k, words):
    with pytest.raises(Invalid, match=words): search(both, ["salary", query], k, [])


def test_a_query_of_ten_thousand_words_is_read_to_its_end(both):
    query = " ".join(f"filler{n}" for n in range(10_000)) + " bolts"
    assert find(both, query) == ["docs/b.txt"]
    assert find(both, "bolts " * 10_000) == ["docs/b.txt"]


def test_without_a_passage_there_is_a_sentence(tmp_path):
    for passages in ([], make_document_passages([make_document("a.txt", "---\n")], {}, "en", 99)):
        with pytest.raises(Invalid, match="there is no passage to index"): build_index(passages)
    assert read_table_passages(tmp_path/"nosuch", {}, {}, "en") == []


@pytest.mark.parametrize("text", ["x" * 50_000, "word " * 20_000, "\n" * 5000 + "end", "a\x00b \x1b[31m red", "=" * 3000, "# \n" * 300, "é" * 4000])
def test_odd_documents_lose_nothing(text):
    parts = split_document(make_document("a.txt", text + "\nlast word\n"), 500)
    joined = "".join("".join(part.split()) for _, _, part in parts)
    assert joined.endswith("lastword") and all(len(part) <= 500 for _, _, part in parts)
    if text[0] in "xwé": assert joined == "".join((text + "lastword").split())


def test_cells_of_any_kind_are_shown():
    values = dict(a=None, b=0, c=False, d=1.5, e=["x", "y"], f=" two\n lines ", g="`code`", h="")
    assert page.format_row("t", values) == "t: b `0`; c `False`; d `1.5`; e `['x', 'y']`; f `two lines`; g `code`"


# Vectors

def test_fused_vectors_keep_to_the_groups(both, monkeypatch):
    "With vectors every passage is near to something, and still only what may be read is listed"
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(both.passages), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    dense = page.Index(both.passages, both.term_ids, both.vocabulary, both.matrix, vectors, "toy")
    near = lambda source: next(v for v, p in zip(vectors, both.passages) if p["source"] == source)
    monkeypatch.setattr(page, "embed_texts", lambda model, texts: np.stack([near("hr/pay.txt")] * len(texts)))
    assert find(dense, "elephants", 1, ["hr"]) == ["hr/pay.txt"]
    assert set(find(dense, "elephants", 9)) == set(OPEN) and find(dense, "bolts", 1) == ["docs/b.txt"]


def test_terms_and_vectors_agree_in_the_first_place():
    assert page.fuse_rankings([[1, 2, 3], [1, 3, 2]], 1)[0][0] == 1
    assert page.fuse_rankings([[], [4, 5]], 9) == [(4, 1 / 61), (5, 1 / 62)]


def test_every_answer_of_the_default_facts_stands_in_its_row_as_it_is_to_be_written():
    "Non-breaking blanks and all, in backticks where it holds none itself"
    from forge_nb.core.project import read_csv
    from forge_nb.core.settings import QuestionKinds, load_settings
    rows = {parent: p["text"] for p in read_table_passages(ROOT/"data"/"facts", {}, {}, "en") for parent in p["parents"]}
    for kind in load_settings(ROOT/"company"/"questions.yaml", QuestionKinds).values():
        if kind.table == "headings": continue
        for line, row in enumerate(read_csv(ROOT/"data"/"facts"/kind.table), 2):
            value, text = row[kind.answer], rows.get(f"{kind.table}:{line}", "")
            if text and value and "`" not in value and "\n" not in value: assert f"`{value}`" in text


def test_the_pipelines_index_is_readable_by_people_and_programs(both, tmp_path):
    save_index(both, tmp_path/"index")
    first = read_jsonl(tmp_path/"index"/"passages.jsonl")[0]
    assert list(first) == ["id", "source", "line", "parents", "title", "text", "language", "groups"]
    assert json.loads((tmp_path/"index"/"manifest.json").read_text(encoding="utf-8"))["passages"] == len(both.passages)
    assert make_passage("a", 1, "t", "x", "en")["groups"] == ["everyone"] and make_analyzer("en")("running") == ["run"]
