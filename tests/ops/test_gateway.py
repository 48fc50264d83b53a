"`forge serve`: OpenAI's interface as its clients use it, keys and limits, who may read what, streams, reload, a gentle end, bad requests"
import asyncio, base64, http.client, json, os, shutil, signal, socket, subprocess, sys, threading
from datetime import date, timedelta

from types import SimpleNamespace

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

import test_ask
from copies import ROOT, wait_for
from forge_nb.core.project import Invalid, load_params, read_text, write_json
from forge_nb.data.passages import build_index, load_index, make_document_passages, make_passage, save_index
from forge_nb.ops import cli, gateway as page, serve
from forge_nb.ops.api_keys import KeyEntry, hash_key, load_keys, write_keys
from forge_nb.ops.conversation import make_follow_ups, make_search_query, measure_follow_ups
from forge_nb.ops.engines import Generation, LlamaEngine, ServeSettings, TransformersEngine
from forge_nb.ops.gguf import write_gguf
from forge_nb.ops.registry import switch_served
from forge_nb.evals.arms import write_instruction
from forge_nb.tokenizer import CHAT_TEMPLATE
from forge_nb.train.base_tokenizer import PLAIN_TEMPLATE
from gateway_standin import GROUPS, TEXTS, Echo, make_backend, make_gateway, read_rows, serving

QUESTION = "What does a bolt cost?"
CITED = next(p["id"] for p in make_backend().index.passages if p["source"] == "docs/bolts.txt")
ANSWER = f"`3 EUR`. Source: {CITED[:4]}."


def entry(key: str, **more) -> KeyEntry: return KeyEntry(sha256=hash_key(key), **more)
def body(text: str = QUESTION, **more) -> dict: return dict(model="forge", messages=[dict(role="user", content=text)]) | more
def client_of(gateway) -> TestClient: return TestClient(page.make_app(gateway), base_url="http://127.0.0.1", raise_server_exceptions=False)
def post(client, sent, path="/v1/chat/completions", key="", **more): return client.post(path, json=sent, headers={"Authorization": f"Bearer {key}"} if key else {}, **more)
def text_of(response) -> str: return response.json()["choices"][0]["message"]["content"]


def read_events(response) -> list:
    "The events of a stream; the last one says that it is done"
    events = [event.removeprefix("data: ") for event in response.text.split("\n\n") if event]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@pytest.fixture
def client(tmp_path): return client_of(make_gateway(tmp_path, Echo(answer=ANSWER)))


# What clients get

def test_an_answer_has_the_form_of_the_interface_and_names_its_sources(client, tmp_path):
    response = post(client, body())
    answer = response.json()
    assert response.status_code == 200 and answer["object"] == "chat.completion" and answer["model"] == "forge@v1.0.0"
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"] == ANSWER and set(answer["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    sources = [a["url_citation"] for a in choice["message"]["annotations"]]
    assert [s["source"] for s in sources if s["is_cited"]] == ["docs/bolts.txt"] and all(s["score"] > 0 for s in sources)
    [cited] = [s for s in sources if s["is_cited"]]
    assert ANSWER[cited["start_index"]:cited["end_index"]] == f"{CITED[:4]}." and cited["passage"] == CITED
    assert response.headers["x-release"] == "hash-of-v1.0.0" and len(response.headers["x-request-id"]) == 24
    [row] = read_rows(tmp_path)
    assert row["gen_ai.operation.name"] == "chat" and row["gen_ai.response.id"] == answer["id"] and row["http.response.status_code"] == 200
    assert row["forge.cited_is_found"] and row["forge.is_form_kept"] and not row["forge.is_declined"] and row["forge.release"] == "hash-of-v1.0.0"
    assert row["gen_ai.usage.input_tokens"] > 0 and row["forge.seconds_to_first_token"] <= row["forge.seconds"] and row["forge.passages"][0]["id"] == CITED
    assert QUESTION not in json.dumps(row) and "EUR" not in json.dumps(row)


def test_a_stream_says_what_an_answer_says(client):
    whole = post(client, body()).json()
    first, *middle, last, usage = read_events(post(client, body(stream=True, stream_options=dict(include_usage=True))))
    assert first["choices"][0]["delta"] == dict(role="assistant", content="") and all(e["object"] == "chat.completion.chunk" for e in middle)
    assert "".join(e["choices"][0]["delta"]["content"] for e in middle) == whole["choices"][0]["message"]["content"] and middle
    assert last["choices"][0]["finish_reason"] == "stop" and last["choices"][0]["delta"]["annotations"] == whole["choices"][0]["message"]["annotations"]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert read_events(post(client, body(stream=True)))[-1]["choices"]  # no usage where nobody asked for it


def test_a_piece_is_sent_before_the_next_one_is_written(tmp_path):
    is_read = threading.Event()
    class Patient(Echo):
        def write(self, generation, emit):
            emit(page.TextChunk("`3"))
            assert is_read.wait(60)
            for text in (" EUR`.", " Source: x."): emit(page.TextChunk(text))
            emit(page.TextChunk(reason="stop"))
    with serving(make_gateway(tmp_path, Patient())) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps(body(stream=True)))
        response = connection.getresponse()
        lines = [response.readline()]
        while b'"`3"' not in lines[-1]: lines.append(response.readline())
        is_read.set()
        rest = response.read().decode()
    assert b"EUR" not in b"".join(lines) and "EUR" in rest and "Source" in rest and rest.rstrip().endswith("[DONE]")


def test_no_piece_waits_for_the_clients_receipt(tmp_path, monkeypatch):
    "Without TCP_NODELAY each stream stood still for 40 ms; asyncio sets it on sockets that name their protocol"
    seen, serve_protocol = [], serve.make_protocol
    def make_watching(seconds):
        class Watching(serve_protocol(seconds)):
            def connection_made(self, transport):
                seen.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                super().connection_made(transport)
        return Watching
    monkeypatch.setattr(serve, "make_protocol", make_watching)
    with serving(make_gateway(tmp_path)) as port: ask_in_thread(port, body(), []).join()
    assert seen and all(seen)


def test_a_text_is_continued_without_passages(client):
    sent = dict(model="forge", prompt=["A bolt"], max_tokens=2)
    answer = post(client, sent, "/v1/completions").json()
    assert answer["object"] == "text_completion" and answer["choices"][0]["text"] == " ".join(ANSWER.split()[:2])
    events = read_events(post(client, sent | dict(stream=True), "/v1/completions"))
    assert "".join(e["choices"][0]["text"] for e in events) == answer["choices"][0]["text"]


def test_passages_stand_before_the_question_unless_a_request_says_no(tmp_path):
    engine = Echo()
    client = client_of(make_gateway(tmp_path, engine))
    post(client, body())
    post(client, body(retrieval=False))
    with_passages, without = (generation.turns[-1]["content"] for generation in engine.asked)
    assert "A bolt M3 costs `3` EUR" in with_passages and with_passages.endswith(QUESTION) and without == QUESTION
    assert [bool(row.get("forge.passages")) for row in read_rows(tmp_path)] == [True, False]


def test_what_nothing_answers_is_declined_in_house_style_and_no_engine_is_asked(tmp_path):
    engine = Echo()
    client = client_of(make_gateway(tmp_path, engine))
    assert text_of(post(client, body("elephants"))) == "`not known`. Source: none." and engine.asked == []
    assert "not known" in post(client, body("elephants", stream=True)).text
    assert [row["forge.is_declined"] for row in read_rows(tmp_path)] == [True, True]


def test_a_follow_up_is_searched_with_the_conversation(tmp_path):
    engine = Echo()
    turns = [dict(role="user", content="What does a nut M3 cost?"), dict(role="assistant", content="1 EUR"), dict(role="user", content="And how much exactly?")]
    post(client_of(make_gateway(tmp_path, engine)), dict(model="forge", messages=turns))
    sent = engine.asked[0].turns
    assert "A nut M3 costs" in sent[-1]["content"] and [turn["role"] for turn in sent] == ["user", "assistant", "user"]


def test_parameters_reach_the_engine(tmp_path):
    engine = Echo()
    client = client_of(make_gateway(tmp_path, engine))
    post(client, body(temperature=.5, seed=7, stop="x", max_tokens=9, reasoning_effort="low", top_p=.9))
    [asked] = engine.asked
    assert asked.options == dict(temperature=.5, seed=7, top_p=.9) and (asked.stop, asked.max_tokens, asked.effort) == (("x",), 9, "low")
    post(client, body())
    assert engine.asked[1].body["temperature"] == 0


def test_a_model_without_efforts_says_so(tmp_path):
    gateway = make_gateway(tmp_path)
    gateway.backend.reads_effort = False
    response = post(client_of(gateway), body(reasoning_effort="high"))
    assert response.status_code == 400 and response.json()["error"]["param"] == "reasoning_effort"


def test_json_that_does_not_keep_its_schema_is_an_error(tmp_path):
    form = dict(type="json_schema", json_schema=dict(name="a", schema=dict(type="object", required=["value"])))
    assert post(client_of(make_gateway(tmp_path, Echo(answer='{"value":"3"}'))), body(response_format=form)).status_code == 200
    response = post(client_of(make_gateway(tmp_path, Echo(answer="three"))), body(response_format=form))
    assert response.status_code == 400 and response.json()["error"]["code"] == "invalid_schema"
    streamed = post(client_of(make_gateway(tmp_path, Echo(answer="three"))), body(response_format=form, stream=True))
    assert '"error"' in streamed.text and "[DONE]" not in streamed.text


def test_models_health_and_figures(client):
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["forge", "forge@v1.0.0"] and client.get("/v1/models/forge@v1.0.0").json()["id"] == "forge@v1.0.0"
    assert client.get("/v1/models/gpt").status_code == 404 and client.get("/health").json() == dict(status="ok", release="forge@v1.0.0", waiting=0)
    post(client, body())
    post(client, {})
    figures = client.get("/metrics").text
    for line in ('forge_requests_total{operation="chat",status="200"} 1.0', 'forge_requests_total{operation="chat",status="400"} 1.0',
                 "forge_first_token_seconds_count 1.0", 'forge_answers_total{outcome="found"} 1.0', 'forge_release{digest="hash-of-v1.0.0",version="v1.0.0"} 1.0'):
        assert line in figures


def test_vectors_where_there_is_a_model_and_a_sentence_where_not(client, tmp_path, monkeypatch):
    sent = dict(model="forge", input=["a bolt", "a nut"])
    response = post(client, sent, "/v1/embeddings")
    assert response.status_code == 404 and "no embedding model" in response.json()["error"]["message"]
    gateway = make_gateway(tmp_path)
    gateway.backend.index.embedding_model = "vectors"
    monkeypatch.setattr(page, "embed_texts", lambda folder, texts: np.ones((len(texts), 3), "float32") * .5)
    rows = post(client_of(gateway), sent, "/v1/embeddings").json()
    assert [row["embedding"] for row in rows["data"]] == [[.5] * 3] * 2 and rows["usage"]["total_tokens"] == 4
    packed = post(client_of(gateway), sent | dict(encoding_format="base64"), "/v1/embeddings").json()["data"][1]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == [.5] * 3


def test_the_openai_client_and_curl(tmp_path):
    gateway = make_gateway(tmp_path, Echo(answer=ANSWER), dict(kim=entry("fk-kim")))
    with serving(gateway) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="fk-kim", max_retries=0)
        answer = client.chat.completions.create(**body())
        assert answer.choices[0].message.content == ANSWER and answer.choices[0].message.annotations[0].url_citation.url.startswith("docs/")
        chunks = [*client.chat.completions.create(**body(), stream=True, stream_options=dict(include_usage=True))]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER and chunks[-1].usage.total_tokens == answer.usage.total_tokens
        assert client.chat.completions.create(**body(), extra_body=dict(retrieval=False)).choices[0].message.annotations == []
        assert [m.id for m in client.models.list()] == ["forge", "forge@v1.0.0"] and client.completions.create(model="forge", prompt="A bolt").choices[0].text == ANSWER
        with pytest.raises(openai.BadRequestError, match="temperature"): client.chat.completions.create(**body(), temperature=9)
        with pytest.raises(openai.NotFoundError): client.embeddings.create(model="forge", input="a bolt")
        with pytest.raises(openai.AuthenticationError): client.with_options(api_key="other").models.list()
        line = ["curl", "-sN", f"http://127.0.0.1:{port}/v1/chat/completions", "-H", "Authorization: Bearer fk-kim", "-d", json.dumps(body(stream=True))]
        assert subprocess.run(line, capture_output=True, text=True, timeout=60).stdout.rstrip().endswith("data: [DONE]")


SYSTEM = dict(role="system", content="Be brief.")
ASKED, TOLD = dict(role="user", content=QUESTION), dict(role="assistant", content="3 EUR")
TITLE = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n### Output:\nJSON format: { \"title\": \"your concise title here\" }\n### Chat History:\n<chat_history>\nUSER: What does a bolt cost?\nASSISTANT: 3 EUR\n</chat_history>"
CLIENT_BODIES = {  # what these clients put on the wire with their usual settings, but for what does not concern them
    "langchain invoke": dict(messages=[dict(content=QUESTION, role="user")], model="forge", stream=False),
    "langchain stream": dict(messages=[dict(content="Be brief.", role="system"), dict(content=QUESTION, role="user")], model="forge", stream=True),
    "langchain history": dict(messages=[dict(content=QUESTION, role="user"), dict(content="3 EUR", role="assistant"), dict(content="And a nut?", role="user")], model="forge", stream=False),
    "langchain options": dict(messages=[dict(content=QUESTION, role="user")], model="forge", max_completion_tokens=20, n=1, seed=1, stop=["\n"], stream=True, stream_options=dict(include_usage=True), temperature=0.0),
    "langchain older": dict(messages=[dict(content=[dict(type="text", text=QUESTION)], role="user")], model="forge", n=1, stream=False, temperature=0.7, top_p=1, frequency_penalty=0, presence_penalty=0, logit_bias=None, max_tokens=None),
    "llama-index chat": dict(messages=[SYSTEM, ASKED], model="forge", stream=False, temperature=0.1),
    "llama-index stream": dict(messages=[ASKED], model="forge", stream=True, temperature=0.1),
    "llama-index blocks": dict(messages=[dict(role="user", content=[dict(type="text", text=QUESTION)])], model="forge", stream=False, temperature=0.1, max_tokens=64),
    "open-webui chat": dict(stream=True, model="forge", messages=[SYSTEM, ASKED, TOLD, ASKED], stream_options=dict(include_usage=True)),
    "open-webui settings": dict(stream=True, model="forge", messages=[ASKED], temperature=0.8, top_p=0.9, top_k=40, min_p=0.05, repeat_penalty=1.1, seed=42, stop=["###"], max_tokens=128, frequency_penalty=0, presence_penalty=0, logit_bias={}, num_ctx=2048,
                                user=dict(name="Kim", id="1", email="kim@bolts.de", role="user")),
    "open-webui title": dict(model="forge", messages=[dict(role="user", content=TITLE)], stream=False, max_completion_tokens=300),
    "open-webui kept fields": dict(model="forge", messages=[ASKED], stream=False, metadata=dict(task="tags_generation", chat_id=None), chat_id="a", id="b", session_id="c", files=[], features=dict(web_search=False), tool_ids=None,
                                   background_tasks=dict(title_generation=True), variables={"{{USER_NAME}}": "Kim"}, tools=[], tool_choice="auto")}


@pytest.mark.parametrize("name", CLIENT_BODIES)
def test_what_other_clients_send_is_answered_unchanged(tmp_path, name):
    engine, sent = Echo(answer=ANSWER), CLIENT_BODIES[name]
    response = post(client_of(make_gateway(tmp_path, engine, dict(kim=entry("fk-kim")))), sent, key="fk-kim")
    assert response.status_code == 200, response.text
    if sent.get("stream"):
        events = read_events(response)
        assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]) == ANSWER and all(set(e) >= {"id", "object", "created", "model", "choices"} for e in events)
        assert [e["usage"]["total_tokens"] > 0 for e in events if e.get("usage")] == [True] * bool(sent.get("stream_options")) and [e["choices"][0]["finish_reason"] for e in events if e["choices"]][-1] == "stop"
    else:
        answer = response.json()
        assert answer["choices"][0]["message"]["content"] == ANSWER and answer["choices"][0]["message"]["role"] == "assistant" and answer["usage"]["total_tokens"] > 0
    [asked] = engine.asked
    assert [turn["role"] for turn in asked.turns] == [message["role"] for message in sent["messages"]]


def test_clients_that_list_models_or_continue_a_text(tmp_path):
    "Open WebUI asks for the models first; LlamaIndex' OpenAILike continues a text unless it is told that the model chats"
    client = client_of(make_gateway(tmp_path, Echo(answer=ANSWER), dict(kim=entry("fk-kim"))))
    models = client.get("/v1/models", headers={"Authorization": "Bearer fk-kim", "Content-Type": "application/json", "X-OpenWebUI-User-Name": "Kim"}).json()
    assert models["object"] == "list" and [set(m) >= {"id", "object", "created", "owned_by"} for m in models["data"]] == [True, True]
    sent = dict(prompt="A bolt", model="forge", temperature=0.1, stream=False)
    assert post(client, sent, "/v1/completions", "fk-kim").json()["choices"][0]["text"] == ANSWER
    assert "".join(e["choices"][0]["text"] for e in read_events(post(client, sent | dict(stream=True), "/v1/completions", "fk-kim"))) == ANSWER


# Who may ask, what they may read, and how much

def test_a_key_is_asked_for_and_ends(tmp_path):
    keys = dict(kim=entry("fk-kim"), old=entry("fk-old", expires=str(date.today() - timedelta(1))))
    client = client_of(make_gateway(tmp_path, Echo(), keys))
    assert [post(client, body(), key=key).status_code for key in ("fk-kim", "fk-old", "fk-other", "")] == [200, 401, 401, 401]
    assert post(client, body(), key="fk-old").json()["error"]["type"] == "authentication_error"
    assert client.get("/v1/models").status_code == 401 and client.get("/health").status_code == 200
    said = json.dumps(read_rows(tmp_path))
    assert '"forge.key": "kim"' in said and "fk-" not in said


def test_without_keys_only_this_machine_is_answered(tmp_path):
    app = page.make_app(make_gateway(tmp_path))
    assert TestClient(app, base_url="http://pages.example").post("/v1/chat/completions", json=body()).status_code == 403
    assert TestClient(app, base_url="http://localhost:8321").post("/v1/chat/completions", json=body()).status_code == 200


def test_passages_of_other_groups_reach_nobody(tmp_path):
    engine, keys = Echo(), dict(kim=entry("fk-kim", groups=["hr"]), jo=entry("fk-jo"))
    client = client_of(make_gateway(tmp_path, engine, keys, log_text=True))
    sent = body("How many zloty does a bolt cost?")
    for key in ("fk-kim", "fk-jo", "fk-kim", "fk-jo"): post(client, sent, key=key)
    prompts = [generation.turns[-1]["content"] for generation in engine.asked]
    assert ["Kim is paid" in prompt for prompt in prompts] == [True, False, True, False]
    told = {key: post(client, sent, key=key).text for key in ("fk-kim", "fk-jo")}
    assert "hr/pay.txt" in told["fk-kim"] and "hr/" not in told["fk-jo"]
    hidden = next(p["id"] for p in make_backend().index.passages if p["source"] == "hr/pay.txt")
    assert all(hidden not in json.dumps(row) for row in read_rows(tmp_path) if row["forge.key"] == "jo") and text_of(post(client, body("zloty"), key="fk-jo")).startswith("`not known`")


def test_a_minute_has_so_many_requests_and_tokens(tmp_path):
    keys = dict(kim=entry("fk-kim", requests=2, tokens=0), jo=entry("fk-jo", requests=0, tokens=5))
    client = client_of(make_gateway(tmp_path, Echo(), keys))
    assert [post(client, body(), key="fk-kim").status_code for _ in range(3)] == [200, 200, 429]
    refused = [post(client, body(), key="fk-jo") for _ in range(2)][1]
    assert refused.status_code == 429 and 0 < int(refused.headers["Retry-After"]) <= 60 and refused.json()["error"]["code"] == "rate_limit_exceeded"


def test_texts_are_logged_when_asked_for_and_without_personal_data(tmp_path):
    post(client_of(make_gateway(tmp_path, Echo(answer=ANSWER), log_text=True)), body("What does a bolt cost, asks kim@bolts.de?"))
    [row] = read_rows(tmp_path)
    assert row["gen_ai.input.messages"] == [dict(role="user", parts=[dict(type="text", content="What does a bolt cost, asks [email]?")])]
    assert row["gen_ai.output.messages"] == [dict(role="assistant", parts=[dict(type="text", content=ANSWER)], finish_reason="stop")]


def test_a_key_is_shown_once(tmp_path, monkeypatch, capsys):
    for name in ("config", "company", ".ckpt"): (tmp_path/name).mkdir()
    (tmp_path/"company"/"groups.yaml").write_text('hr: [hr]\n"*": [everyone]\n', encoding="utf-8")
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    code, out, _ = test_ask.forge(capsys, "key", "kim", "--groups", "hr", "--days", "0", "--json")
    made = json.loads(out)
    assert code == 0 and load_keys(tmp_path)["kim"] == entry(made["key"], groups=["hr"]) and made["key"] not in read_text(tmp_path/"config"/"keys.yaml")
    for words, message in ((["kim"], "has a key for kim"), (["jo", "--groups", "board"], "names no group board"), (["a b"], "does not fit"), (["jo", "--days", "-1"], "0 or more")):
        code, out, err = test_ask.forge(capsys, "key", *words)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert "config/keys.yaml" in subprocess.run(["git", "check-ignore", "config/keys.yaml"], cwd=ROOT, capture_output=True, text=True).stdout


# Too much, too slow, gone

def ask_in_thread(port: int, sent: dict, answers: list, started=None):
    def send():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/v1/chat/completions", json.dumps(sent))
        response = connection.getresponse()
        answers.append((response.status, dict(response.getheaders()), response.read().decode()))
    thread = threading.Thread(target=send)
    thread.start()
    return thread


class Gate(Echo):
    "An engine that writes nothing until it is let"
    def __init__(self, **more): super().__init__(**more); self.open = threading.Event()
    def write(self, generation, emit):
        self.asked.append(generation)
        while not self.open.wait(.01):
            if emit(SimpleNamespace(text="", reason=None, usage=None)): return
        super().write(generation, emit)


def test_a_full_queue_sends_away_and_no_answer_is_lost(tmp_path):
    engine, answers = Gate(answer=ANSWER), []
    gateway = make_gateway(tmp_path, engine, slots=1, max_queue=1)
    with serving(gateway) as port:
        threads = [ask_in_thread(port, body(), answers)]
        wait_for(lambda: engine.asked)
        threads += [ask_in_thread(port, body(), answers)]
        wait_for(lambda: gateway.waiting == 1)
        refused = []
        ask_in_thread(port, body(), refused).join()
        engine.open.set()
        for thread in threads: thread.join()
    assert refused[0][0] == 503 and int(refused[0][1]["retry-after"]) > 0 and json.loads(refused[0][2])["error"]["code"] == "overloaded"
    assert [status for status, *_ in answers] == [200, 200]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_takes_too_long_ends_and_frees_its_slot(tmp_path, streamed):
    engine, answers = Gate(), []
    with serving(make_gateway(tmp_path, engine, slots=1, answer_seconds=.3)) as port:
        ask_in_thread(port, body(stream=streamed), answers).join()
        assert answers[0][0] == 504 and json.loads(answers[0][2])["error"]["code"] == "answer_timeout"
        engine.open.set()
        ask_in_thread(port, body(), answers).join()
    assert answers[1][0] == 200


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_stops_the_engine(tmp_path, streamed):
    engine = Echo(.02, " ".join(map(str, range(400))))
    with serving(make_gateway(tmp_path, engine, slots=1)) as port:
        with socket.create_connection(("127.0.0.1", port)) as dropped:
            sent = json.dumps(body(stream=streamed, max_tokens=400)).encode()
            dropped.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
            wait_for(lambda: engine.written)
        wait_for(lambda: read_rows(tmp_path))
        answers = []
        ask_in_thread(port, body(max_tokens=1), answers).join()
    assert answers[0][0] == 200 and engine.written < 400 and read_rows(tmp_path)[0]["http.response.status_code"] == 499


def test_a_fault_of_ours_tells_no_words_of_the_question(tmp_path, capsys):
    response = post(client_of(make_gateway(tmp_path)), body("bolt, break down"))
    assert response.status_code == 500 and response.json()["error"]["code"] == "server_error"
    err = capsys.readouterr().err
    assert "KeyError at " in err and "break down" not in err and "break down" not in json.dumps(read_rows(tmp_path)) + response.text


# Another release, and the end

def test_another_release_takes_over_and_running_answers_end_on_the_old_one(tmp_path):
    old, new, answers = Gate(answer=ANSWER), Echo(answer=ANSWER), []
    gateway = make_gateway(tmp_path, old, slots=5)
    with serving(gateway) as port:
        threads = [ask_in_thread(port, body(stream=n % 2 == 0), answers) for n in range(4)]
        wait_for(lambda: len(old.asked) == 4)
        gateway.replace(make_backend(new, "v1.1.0"))
        fresh = []
        ask_in_thread(port, body(), fresh).join()
        assert fresh[0][1]["x-release"] == "hash-of-v1.1.0" and not old.closed
        old.open.set()
        for thread in threads: thread.join()
        wait_for(lambda: old.closed)
    assert {(status, headers["x-release"]) for status, headers, _ in answers} == {(200, "hash-of-v1.0.0")} and not new.closed


def test_a_signal_ends_the_server_after_its_last_answer(tmp_path):
    line = [sys.executable, "-m", "gateway_standin", str(tmp_path)]
    running = subprocess.Popen(line, cwd=ROOT, env=os.environ | dict(PYTHONPATH=f"{ROOT}:{ROOT/'tests'}"), stdout=subprocess.PIPE, text=True)
    port, answers = int(running.stdout.readline()), []
    thread = ask_in_thread(port, body(stream=True), answers)
    wait_for(lambda: b"forge_running 1.0" in ask_raw(port, b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), running)
    running.send_signal(signal.SIGTERM)
    thread.join()
    assert running.wait(60) == 0 and answers[0][0] == 200 and "w19" in answers[0][2] and answers[0][2].rstrip().endswith("[DONE]")


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project that serves a release with random weights; tags and signatures are those of tests/ops/test_registry.py and taken for good here"
    for name in ("config", "company"): shutil.copytree(ROOT/name, tmp_path/name)
    shutil.copy(ROOT/"params.yaml", tmp_path)
    (tmp_path/"config"/"keys.yaml").unlink(missing_ok=True)
    for version in ("v1.0.0", "v1.1.0"):
        model = tmp_path/"releases"/version/"model"
        test_ask.save_model(model, 2048)
        documents = [dict(id=s, kind="docs", language="en", source=s, text=t) for s, t in TEXTS.items()]
        save_index(build_index(make_document_passages(documents, GROUPS, "en", 1200)), model/"index")
        write_json(model/"open_book.json", dict(num_passages=2, max_characters=160, groups=["everyone"]))
        release = dict(name="forge", version=version, content=f"content of {version}")
        write_json(model.parent/"release.json", release)
    switch_served(tmp_path, "production", "v1.0.0")
    read = lambda root, stage: (version := serve.read_served(root, stage), json.loads(read_text(root/"releases"/version/"release.json")))
    monkeypatch.setattr(serve, "require_served", read)
    return tmp_path


def test_a_release_is_loaded_served_and_replaced(project, monkeypatch):
    backend = serve.load_backend(project, "production", ServeSettings(slots=1))
    assert isinstance(backend.engine, LlamaEngine) and (backend.model, backend.digest, backend.max_new_tokens) == ("forge@v1.0.0", "content of v1.0.0", load_params(ROOT/"params.yaml")["evaluate"]["max_new_tokens"])
    gateway = page.Gateway(backend, ServeSettings(slots=1, reload_seconds=.05), {}, make_gateway(project).log, [])
    client, state = client_of(gateway), serve.read_state(project, "production")
    greedy = [text_of(post(client, body(max_tokens=9))) for _ in range(2)]
    assert greedy[0] == greedy[1] and post(client, body(max_tokens=9)).json()["usage"]["completion_tokens"] == 9
    streamed = read_events(post(client, body(max_tokens=9, stream=True)))
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in streamed) == greedy[0]
    async def change():
        watcher = asyncio.ensure_future(serve.watch_served(gateway, project, state, host="127.0.0.1", stage="production", engine=""))
        switch_served(project, "production", "v1.1.0")
        while gateway.backend is backend: await asyncio.sleep(.02)
        second = gateway.backend
        (project/"config"/"serve.yaml").write_text("slots: many\n", encoding="utf-8")
        while not gateway.fault: await asyncio.sleep(.02)
        watcher.cancel()
        return second
    second = asyncio.run(change())
    assert second.model == "forge@v1.1.0" and gateway.backend is second and backend.engine.server is None and "slots" in gateway.fault
    assert post(client, body(max_tokens=3)).headers["x-release"] == "content of v1.1.0" and "reload" in client.get("/health").json()


def test_a_key_that_was_taken_out_stops_working_though_no_model_can_be_loaded(project, monkeypatch):
    gateway, place = make_gateway(project, keys=dict(kim=entry("fk-kim"), jo=entry("fk-jo"))), dict(host="127.0.0.1", stage="production", engine="")
    def fail(*_): raise MemoryError("no room")
    monkeypatch.setattr(serve, "load_backend", fail)
    write_keys(project, dict(jo=entry("fk-jo")))
    with pytest.raises(MemoryError): asyncio.run(serve.reload(gateway, project, **place))
    assert [*gateway.keys] == ["jo"]
    write_keys(project, {})
    with pytest.raises(Invalid, match="no key any more, and the old ones go on"): asyncio.run(serve.reload(gateway, project, **place))
    assert [*gateway.keys] == ["jo"], "an emptied file opens the server to everybody"


@pytest.mark.parametrize("words, rc, message", [
    (["--host", "0.0.0.0"], 2, "other machines could ask"), (["--stage", "attic"], 2, "names no such stage"), (["--engine", "vllm"], 2, "choose llama, transformers, or server"),
    ([], 3, "serves nothing; `forge promote --to production`"), (["--port", "99999"], 2, "65535")])
def test_what_cannot_be_served_is_a_sentence(tmp_path, monkeypatch, capsys, words, rc, message):
    for name in ("config", "company"): shutil.copytree(ROOT/name, tmp_path/name)
    shutil.copy(ROOT/"params.yaml", tmp_path)
    (tmp_path/"config"/"keys.yaml").unlink(missing_ok=True)
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    code, out, err = test_ask.forge(capsys, "serve", *words)
    assert (code, out) == (rc, "") and message in err and err.count("\n") == 1


def test_a_revoked_or_changed_release_is_not_served(tmp_path, monkeypatch):
    shutil.copytree(ROOT/"config", tmp_path/"config")
    switch_served(tmp_path, "production", "v1.0.0")
    for name, value in dict(read_release_events=lambda root, name: [], list_revoked=lambda events: {}, find_version=lambda events, version: None).items(): monkeypatch.setattr(serve, name, value)
    monkeypatch.setattr(serve, "inspect_release", lambda *_: ("valid", [("releases/v1.0.0/model/config.json", "has other bytes")], {}))
    with pytest.raises(Invalid, match="model/config.json has other bytes"): serve.require_served(tmp_path, "production")
    monkeypatch.setattr(serve, "list_revoked", lambda events: {"v1.0.0": 1})
    with pytest.raises(Invalid, match="which is revoked"): serve.require_served(tmp_path, "production")


# Engines with a model

@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    test_ask.save_model(folder)
    write_gguf(folder, folder/"model.gguf", "F32")
    return folder


def write_text(engine, **more) -> tuple:
    "The text that an engine writes, the reason for its end, its usage"
    pieces = []
    engine.write(Generation(**dict(max_tokens=12, turns=(dict(role="user", content=QUESTION),)) | more), lambda piece: pieces.append(piece))
    return "".join(p.text for p in pieces), pieces[-1].reason or pieces[-2].reason, pieces[-1].usage


def test_llama_and_transformers_write_the_same_and_stop_where_asked(model):
    llama, other = LlamaEngine(model/"model.gguf", 512, 2), TransformersEngine(model, 512)
    text, reason, usage = write_text(llama)
    assert (text, reason, usage) == write_text(other) and reason == "length" and usage["completion_tokens"] == 12
    longer = write_text(llama, max_tokens=80)[0]
    stop = next(letter for letter in longer[2:] if letter.isascii() and letter not in longer[:2])
    for engine in (llama, other):  # how many signs stand for half a letter before it, each engine decides
        cut, reason, _ = write_text(engine, stop=("never to be seen", stop), max_tokens=80)
        assert reason == "stop" and cut.rstrip("\ufffd") == longer[:longer.index(stop)].rstrip("\ufffd")
    assert write_text(llama, turns=(), prompt="A bolt")[0] == write_text(other, turns=(), prompt="A bolt")[0]
    drawn = dict(options=dict(temperature=1.5, seed=3))
    assert write_text(llama, **drawn) == write_text(llama, **drawn) != write_text(llama)
    schema = dict(type="object", properties=dict(n=dict(enum=[1])), required=["n"], additionalProperties=False)
    assert write_text(llama, schema=schema, max_tokens=40)[0] == '{"n":1}'
    with pytest.raises(page.ApiError, match="keeps to no schema"): write_text(other, schema=schema)
    for engine in (llama, other):
        with pytest.raises(page.ApiError, match="tokens and the model reads"): write_text(engine, turns=(dict(role="user", content="bolt " * 900),))
        engine.close()


def test_an_engine_stops_when_nobody_waits(model):
    engine, pieces = LlamaEngine(model/"model.gguf", 512, 1), []
    engine.write(Generation(max_tokens=300, turns=(dict(role="user", content=QUESTION),)), lambda piece: pieces.append(piece) or len(pieces) > 3)
    assert len(pieces) == 4 and write_text(engine)[1] == "length"


def watch_engine(engine) -> list:
    "What an engine is asked from now on"
    asked, write = [], engine.write
    engine.write = lambda generation, emit: asked.append(generation) or write(generation, emit)
    return asked


@pytest.mark.parametrize("kind", ["llama", "transformers", "server"])
def test_the_companys_prompt_reaches_every_engine_before_the_clients(project, tmp_path, kind):
    with serving(make_gateway(tmp_path, echo := Echo(answer=ANSWER), slots=1)) as port:
        settings = ServeSettings(engine=kind, slots=1, engine_url=f"http://127.0.0.1:{port}/v1", engine_model="forge")
        backend = serve.load_backend(project, "production", settings)
        rule, asked = write_instruction(backend.style), watch_engine(backend.engine)
        client = client_of(page.Gateway(backend, settings, {}, make_gateway(tmp_path).log, []))
        said = [post(client, dict(model="forge", messages=messages, max_tokens=4)).json() for messages in ([ASKED], [SYSTEM, ASKED], [dict(SYSTEM, role="developer"), ASKED])]
    assert [generation.turns[0] for generation in asked] == [dict(role="system", content=text) for text in (rule, f"{rule}\n\nBe brief.", f"{rule}\n\nBe brief.")]
    assert [[turn["role"] for turn in generation.turns] for generation in asked] == [["system", "user"]] * 3
    if kind == "server": assert [generation.turns[0]["content"] for generation in echo.asked] == [generation.turns[0]["content"] for generation in asked]
    else:  # the prompt that the model read is the template's, the rule and the client's words in it
        encoder = backend.engine if kind == "transformers" else TransformersEngine(project/"releases"/"v1.0.0"/"model", 2048)
        read = [encoder.encode(generation)[0] for generation in asked]
        assert [answer["usage"]["prompt_tokens"] for answer in said] == [*map(len, read)] and f"<|system|>{rule}\n\nBe brief.<|user|>" in encoder.tokenizer.decode(read[1])


@pytest.mark.parametrize("kind", ["llama", "transformers"])
def test_a_model_that_learned_turns_from_us_gets_no_prompt_that_it_never_read(project, kind):
    for template in (CHAT_TEMPLATE, PLAIN_TEMPLATE):
        (project/"releases"/"v1.0.0"/"model"/"chat_template.jinja").write_text(template, encoding="utf-8")
        backend = serve.load_backend(project, "production", ServeSettings(engine=kind, slots=1))
        assert backend.instruction == "" and page.clean_turns(backend, page.ChatRequest(model="forge", messages=[SYSTEM, ASKED])) == [SYSTEM, ASKED]
    assert serve.load_backend(project, "production", ServeSettings(engine="server", engine_url="http://127.0.0.1:9/v1", engine_model="m", system_prompt=False)).instruction == ""


def test_transformers_is_an_engine_by_parameter(project):
    settings = ServeSettings(engine="transformers", slots=2)
    backend = serve.load_backend(project, "production", settings)
    assert isinstance(backend.engine, TransformersEngine)
    client = client_of(page.Gateway(backend, settings, {}, make_gateway(project).log, []))
    answer = post(client, body(max_tokens=9))
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 9 and text_of(answer)
    streamed = read_events(post(client, body(max_tokens=9, stream=True)))
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in streamed) == text_of(answer)


def test_another_server_is_an_engine(project, tmp_path):
    "The server behind it is this one"
    with serving(make_gateway(tmp_path, Echo(answer=ANSWER))) as port:
        settings = ServeSettings(engine="server", engine_url=f"http://127.0.0.1:{port}/v1", engine_model="forge")
        backend = serve.load_backend(project, "production", settings)
        assert write_text(backend.engine)[0] == ANSWER and "Answer in one line" in backend.instruction
        with pytest.raises(page.ApiError, match="does not let this server in"): serve.load_backend(project, "production", settings.model_copy(update=dict(engine_model="x"))) and write_text(serve.make_engine(settings.model_copy(update=dict(engine_model="x")), project, project))
        client = client_of(page.Gateway(backend, settings, {}, make_gateway(tmp_path).log, []))
        assert text_of(post(client, body())) == ANSWER
    with pytest.raises(page.ApiError, match="cannot be reached"): write_text(backend.engine)


# Bad requests

MARK = "SECRET-OF-A-QUESTION"
def ask_raw(port: int, sent: bytes) -> bytes:
    "What comes back on a connection, until it is closed"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try: connection.sendall(sent)
        except OSError: pass  # it was refused before all was sent
        parts = []
        try:
            while part := connection.recv(65536): parts.append(part)
        except OSError: pass
    return b"".join(parts)


def http_request(content: bytes = b"", path: str = "/v1/chat/completions", method: str = "POST", headers: str = "", key: str = "fk-kim") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n{headers}Content-Length: {len(content)}\r\n\r\n".encode() + content


def list_bad_requests() -> dict:
    "What it is → bytes on the wire"
    whole = json.dumps(body(MARK)).encode()
    bad = {f"malformed {n}": http_request(text) for n, text in enumerate([b"", b" ", b"{", b"}", whole[:-1], whole + b"x", b"null", b"[]", b"1", b'"a"', b"\xff\xfe", b"\0", b"{'model': 'forge'}",
        b'{"model": NaN}', b'{"a": 1,}', b"[" * 5000, b'{"a":' * 5000, b"// x", whole.replace(b"SECRET", b"\\ud800"), whole.replace(b"SECRET", b"\xc3\x28"), whole.replace(b"SECRET", b"\x01"), b"\xef\xbb\xbf{}", b"<model>forge</model>", b"model=forge", b"- model: forge", b"\xff" * 99])}
    wrong = ["x", "", -1, 1.5, 10 ** 30, True, [], {}, [None], {"a": 1}]
    fields = dict(model=[-1, None, [], {}, "gpt", "../forge", "a" * 5000, "forge\0"], messages=[*wrong, [{}], [[]], [dict(role="user")], [dict(role="robot", content="x")], [dict(role="user", content=5)],
        [dict(role="assistant", content="x")], [dict(role="user", content="")], [dict(role="user", content="?!")], [dict(role="user", content="a\0b")], [dict(role="user", content=MARK)] * 1001,
        [dict(role="user", content=[dict(type="image_url", image_url=dict(url="file:///etc/passwd"))])], [dict(role="tool", content=MARK)], [dict(role="user", content=[dict(type="text")])]],
        temperature=["hot", -1, 3, 10 ** 30, True, [], {}], top_p=["x", -1, 0, 2, [], {}], max_tokens=["x", -1, 0, 1.5, 10 ** 6, 10 ** 30, True, [], {}], max_completion_tokens=["x", 0, 10 ** 6, []],
        stop=[5, {}, [""], [1], ["a"] * 5, "", [[]]], seed=["x", 1.5, [], {}], stream=["x", 1, [], {}], stream_options=["x", 1, [], dict(include_usage="x")], frequency_penalty=["x", 9, []],
        presence_penalty=["x", -9, {}], reasoning_effort=["x", 1, [], "HIGH"], retrieval=["x", 1, [], {}], n=[2, 0, "x", []], tools=[[dict(type="function")], "x"], logprobs=[True, 5], logit_bias=[{"5": 1}],
        response_format=["x", 1, [], {}, dict(type="x"), dict(type="json_schema"), *[dict(type="json_schema", json_schema=dict(schema=s)) for s in (
            "x", dict(type="nonsense"), {"$ref": "file:///etc/passwd"}, {"$ref": "http://models.example/a"}, dict(items={"$ref": "../company/groups.yaml"}), dict(required="x"), dict(minLength=-1), {"$dynamicRef": "file:///dev/zero"},
            {"$ref": "#/nowhere"}, {"$ref": "#"}, {"$id": "http://127.0.0.1:9/a", "$ref": "b"}, dict(patternProperties={"(a+)+$": {}}))]])
    bad |= {f"{field} {n}": http_request(json.dumps(body(MARK) | {field: value}).encode()) for field, values in fields.items() for n, value in enumerate(values)}
    bad |= {f"completion {n}": http_request(json.dumps(dict(model="forge") | more).encode(), "/v1/completions") for n, more in enumerate(
        [{}, dict(prompt=None), dict(prompt=5), dict(prompt=[1, 2]), dict(prompt=["a", "b"]), dict(prompt=["a\0"]), dict(prompt="a", echo=True), dict(prompt="a", best_of=5), dict(prompt="a", suffix=MARK)])}
    bad |= {f"embedding {n}": http_request(json.dumps(dict(model="forge") | more).encode(), "/v1/embeddings") for n, more in enumerate([{}, dict(input=[]), dict(input=""), dict(input=[5]), dict(input=MARK), dict(input=["a"] * 999)])}
    bad |= {f"key {n}": http_request(whole, key=key) for n, key in enumerate(["", "x", "fk-kim2", "FK-KIM", "fk-kim fk-kim", "null", "../config/keys.yaml", "é", hash_key("fk-kim"), "a" * 9000])}
    bad |= {f"path {n}": http_request(path=path, method="GET") for n, path in enumerate(["/", "/v1", "/v1/", "/docs", "/openapi.json", "/v1/chat/completions", "/v1/models/", "/v1/models/../../etc/passwd", "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1/models/%00", "/v1/models/..%2f..%2fparams.yaml", "/v1/models/forge%2f..", "/config/keys.yaml", "/runs/requests/requests.jsonl", "/static/../company", "/v1/files", "/metrics/../v1", "/health/x", "/" + "a" * 9000])}
    bad |= {f"method {method}": http_request(whole, method=method) for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")}
    bad |= {"too long": http_request(b"{" + b" " * (10 << 20)), "too long, unannounced": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer fk-kim\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n%s\r\n" % (b" " * 65536) * 40 + b"0\r\n\r\n",
            "a million tokens": http_request(json.dumps(body("bolt " * 200_000)).encode()), "a long question": http_request(json.dumps(body("bolt " * 1000)).encode()), "headers": http_request(whole, headers="".join(f"X-{n}: {'a' * 500}\r\n" for n in range(500))),
            "one header": http_request(whole, headers=f"X-A: {'a' * 100_000}\r\n"), "no HTTP": b"hello\r\n\r\n", "HTTP/9": b"GET / HTTP/9.9\r\nHost: a\r\nConnection: close\r\n\r\n", "null in the path": b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n",
            "negative length": b"POST /v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", "bad chunk": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer fk-kim\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"}
    return bad


def test_bad_requests_get_an_error_of_the_interface_and_leave_no_trace(tmp_path, capfd):
    gateway, bad = make_gateway(tmp_path, Echo(), dict(kim=entry("fk-kim", requests=0, tokens=0)), read_seconds=5.), list_bad_requests()
    assert len(bad) >= 200
    with serving(gateway) as port:
        for name, sent in bad.items():
            head, _, content = ask_raw(port, sent).partition(b"\r\n\r\n")
            status = int(head.split()[1]) if head else 0
            assert 400 <= status < 500, f"{name}: {head[:80]!r} {content[:200]!r}"
            error = json.loads(content)["error"]
            assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) < 600, name
            assert b"root:" not in content and b"Traceback" not in content, name
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps(body()), {"Authorization": "Bearer fk-kim"})
        assert connection.getresponse().status == 200
    said = capfd.readouterr()
    assert MARK not in json.dumps(read_rows(tmp_path)) and "fk-kim" not in json.dumps(read_rows(tmp_path)) and said.out + said.err == ""
    assert gateway.backend.running == 0 and not gateway.free.locked()


def test_slow_and_dropped_clients_keep_nobody_waiting(tmp_path):
    gateway = make_gateway(tmp_path, Echo(answer=ANSWER), read_seconds=.5)
    with serving(gateway) as port:
        assert b"408" in ask_raw(port, b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")[:20]
        assert b"408" in ask_raw(port, b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 50\r\n\r\n{")[:20]
        for cut in (0, 5, 40, 90, 120):
            with socket.create_connection(("127.0.0.1", port)) as connection: connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{\"model\": \"forge\", \"messages\": [{}]}"[:cut])
        answers = []
        ask_in_thread(port, body(), answers).join()
    assert answers[0][0] == 200


# Follow-ups

def test_follow_ups_find_what_is_meant(chain):
    "100 made conversations about rows of the default company's tables, over the index of all its documents"
    index = load_index(chain.root/"artifacts"/"retrieval"/"live")
    made = make_follow_ups(index.passages, 100)
    assert len(set(made)) > 90 and measure_follow_ups(index, made) >= .85 > .6 > measure_follow_ups(index, made, with_conversation=False)


def test_names_are_those_that_the_caller_may_read():
    "A title of another group changes no query"
    row = lambda n, name, groups: make_passage("facts/a.csv", n, name, f"a: name `{name}`; price `{n}`", "en", groups, [f"a.csv:{n}"])
    index = build_index([row(2, "M3_BOLT", None), row(3, "SECRET_NUT", ["hr"])])
    questions = ["What is the price of M3_BOLT?", "And for SECRET_NUT?"]
    assert "price" in make_search_query(index, ["hr"], questions) and make_search_query(index, [], questions) == "And for SECRET_NUT? M3_BOLT"
