"A search server: a stand-in that speaks OpenSearch's HTTP runs here, and answers as the local index does"
import json, re, shutil

import pytest
from search_standin import serve

from forge_nb.core.project import Invalid, NotFound, ROOT, RunFailed, load_params, read_json
from forge_nb.data import search_server as page
from forge_nb.data.passages import build_index, make_document_passages, save_index, search
from forge_nb.data.search_server import (ServerIndex, name_server_index, open_server, remove_other_indices, search_server,
                                         upload_passages)
from forge_nb.ops import cli

GROUPS = {"docs/ref/settings.txt": ["hr"], "*": ["everyone"]}


@pytest.fixture
def server():
    with serve() as running: yield running


@pytest.fixture(scope="module")
def index():
    "An index over some pages of the manuals, one of which the group hr alone may read"
    sources = ["docs/ref/settings.txt", "docs/intro/tutorial01.txt", "docs/faq/general.txt", "docs/topics/http/urls.txt"]
    documents = [dict(kind="docs", language="en", source=s, text=(ROOT/"data"/s).read_text(encoding="utf-8")[:30_000]) for s in sources]
    return build_index(make_document_passages(documents, GROUPS, "en", 1200))


QUESTIONS = ["Which setting has the path of the database?", "How do I start a project?", "What is a path converter?", "ALLOWED_HOSTS", "Who owns it?"]


def test_it_ranks_as_the_local_index_does(server, index, monkeypatch):
    "With the rights of every group the two have the same statistics, so the same passages come in the same order; what titles add, the local index alone knows"
    monkeypatch.setattr("forge_nb.data.passages.TITLE_BONUS", 0.)
    remote = open_server(server.url)
    assert upload_passages(remote, "ab" * 8, index.passages) and not upload_passages(remote, "ab" * 8, index.passages)
    found = search_server(ServerIndex(remote, "ab" * 8, ["en"]), QUESTIONS, 5, ["hr"])
    assert [[p["id"] for p in ps] for ps in found] == [[p["id"] for p in ps] for ps in search(index, QUESTIONS, 5, ["hr"])]
    assert all({**p, "score": 0} == {**q, "score": 0} for ps, qs in zip(found, search(index, QUESTIONS, 5, ["hr"])) for p, q in zip(ps, qs))


def test_what_may_not_be_read_does_not_come_back(server, index):
    remote = open_server(server.url)
    upload_passages(remote, "ab" * 8, index.passages)
    found = search_server(ServerIndex(remote, "ab" * 8, ["en"]), QUESTIONS, 50, [])
    assert found[0] and not [p for ps in found for p in ps if p["source"] == "docs/ref/settings.txt"]
    sent = [json.loads(line) for line in server.state["requests"][-1][2].splitlines()[1::2]]
    assert all(q["query"]["bool"]["filter"] == [dict(terms=dict(groups=["everyone"]))] for q in sent)


def test_many_questions_go_in_batches(server, index):
    remote = open_server(server.url)
    upload_passages(remote, "ab" * 8, index.passages[:9])
    assert len(search_server(ServerIndex(remote, "ab" * 8, ["en"]), ["path"] * 250, 1, ["hr"])) == 250
    assert [r[1].rpartition("/")[2] for r in server.state["requests"]].count("_msearch") == 3


def test_an_upload_that_was_killed_is_made_anew_and_older_indices_go(server, index):
    remote, name = open_server(server.url), name_server_index(open_server(server.url), "ab" * 8)
    for corpus in ("cd" * 8, "ab" * 8): upload_passages(remote, corpus, index.passages[:20])
    server.state["indices"] |= {"manuals-of-somebody": dict(documents={}), "manualsold-" + "0" * 16 + "-" + "0" * 16: dict(documents={})}
    server.state["indices"][name]["documents"].popitem()
    assert upload_passages(remote, "ab" * 8, index.passages[:20]) and len(server.state["indices"][name]["documents"]) == 20
    assert remove_other_indices(remote, "ab" * 8) == [name_server_index(remote, "cd" * 8)]
    assert {name, "manuals-of-somebody"} < set(server.state["indices"]) and len(server.state["indices"]) == 3


def test_faults_are_sentences(server, index):
    remote = open_server(server.url)
    with pytest.raises(NotFound, match="it has no index manuals-abab"): search_server(ServerIndex(remote, "ab" * 8, ["en"]), ["bolt"], 1, [])
    server.state["refuse"] = index.passages[0]["source"]
    with pytest.raises(RunFailed, match="passages were refused, the first for .mapper_parsing"): upload_passages(remote, "ab" * 8, index.passages)
    server.state["key"] = "secret"
    with pytest.raises(Invalid, match="put a valid one into SEARCH_SERVER_KEY"): upload_passages(remote, "ab" * 8, index.passages)
    with pytest.raises(Invalid, match="the query is empty"): search_server(ServerIndex(remote, "ab" * 8, ["en"]), [" "], 1, [])
    with pytest.raises(Invalid, match="different terms"): search_server(ServerIndex(remote, "ab" * 8, ["en"]), [" ".join(f"w{n}" for n in range(10_000))], 1, [])


def test_a_key_is_sent_and_stands_in_no_file(server, index, monkeypatch):
    server.state["key"] = "Basic c2VjcmV0"
    monkeypatch.setenv(page.SERVER_KEY, "Basic c2VjcmV0")
    assert upload_passages(open_server(server.url), "ab" * 8, index.passages[:3])


@pytest.fixture
def project(tmp_path, index, monkeypatch):
    "A project whose live index is on the server"
    save_index(index, tmp_path/"artifacts"/"retrieval"/"live")
    shutil.copy(ROOT/"params.yaml", tmp_path)
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    return tmp_path


def name_server(project, url: str):
    text = (project/"params.yaml").read_text(encoding="utf-8")
    (project/"params.yaml").write_text(re.sub(r'server_url: ""', f'server_url: "{url}"', text), encoding="utf-8")
    assert load_params(project/"params.yaml")["retrieval"]["server_url"] == url


def forge(capsys, *words: str) -> tuple:
    with pytest.raises(SystemExit) as end: cli.main([*words])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_forge_search_asks_the_server(server, project, index, capsys):
    local = json.loads(forge(capsys, "search", "ALLOWED_HOSTS", "--groups", "hr", "--json")[1])
    name_server(project, server.url)
    code, out, err = forge(capsys, "search", "ALLOWED_HOSTS")
    assert (code, out) == (3, "") and "it has no index" in err and "`forge refresh` brings it there" in err
    upload_passages(open_server(server.url), read_json(project/"artifacts/retrieval/live/manifest.json")["corpus"], index.passages)
    answer = json.loads(forge(capsys, "search", "ALLOWED_HOSTS", "--groups", "hr", "--json")[1])
    assert [p["id"] for p in answer["passages"]] == [p["id"] for p in local["passages"]]
    assert forge(capsys, "search", "elephants")[0] == 3


def test_a_server_that_is_down_is_one_sentence(project, capsys):
    name_server(project, "http://127.0.0.1:9/manuals")
    code, out, err = forge(capsys, "search", "ALLOWED_HOSTS")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "search server http://127.0.0.1:9: no answer" in err and "leave `retrieval.server_url` empty" in err
