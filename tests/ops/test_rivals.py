"""Rivals sit the exam: a model folder, the same model as GGUF and behind an endpoint on loopback answer alike; what an endpoint can do wrong is
one sentence, and what it answered is not asked again."""
import json, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from forge_nb.core.project import Invalid, ROOT, read_csv, write_jsonl
from forge_nb.evals.checkpoints import Checkpoint
from forge_nb.evals.harness import ForgeLM, continue_texts
from forge_nb.evals.tasks import ask_tasks, read_results, write_tasks
from forge_nb.ops.gguf import write_gguf
from forge_nb.ops.rivals import compare_rivals, format_rivals
from forge_nb.tokenizer import train_tokenizer
from forge_nb.train.model import render_chat_prompt, save_model

ITEMS = [dict(id=f"q{n}", part="fact", kind="animal", question=f"Which {word} sat on the mat?", prompt=f"the {word} sat on the mat. Source: {n}a.\nWhich {word} sat on the mat?",
              answer=word, sources=[f"{n}a"], policy="") for n, word in enumerate("cat bat hat rat gnat ant".split())]


def teach(model, tokenizer):
    "Teach a model the answers with passages, and two of those without"
    asked = [(item["prompt"], item["answer"]) for item in ITEMS] + [(item["question"], item["answer"]) for item in ITEMS[:2]]
    texts = [f"{render_chat_prompt(tokenizer, turn)}`{answer}`.{tokenizer.eos_token}" for turn, answer in asked]
    tokenizer.padding_side = "right"
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project in which a small model is released and was evaluated, and the same model as GGUF"
    root = tmp_path_factory.mktemp("rivals")
    tokenizer = train_tokenizer([item["prompt"] for item in ITEMS] * 9, 320)
    torch.manual_seed(3)
    shape = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=256)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1, **shape))
    teach(model, tokenizer)
    save_model(model.eval(), tokenizer, root/"artifacts"/"rl"/"model")
    write_gguf(root/"artifacts"/"rl"/"model", root/"same.gguf", "F32")
    (root/"config").mkdir()
    (root/"config"/"checkpoints.yaml").write_text("checkpoints: {rl: {folder: rl/model, ships: true}}\n", encoding="utf-8")
    company = [ROOT/"company"/name for name in ("kpi.py", "style.yaml", "policies.yaml")]
    names = write_tasks(ITEMS, [], company, root/"artifacts"/"evaluate"/"tasks", 12)
    lm = ForgeLM(str(root/"artifacts"/"rl"/"model"))
    rows, _ = read_results("rl", ask_tasks(lm, Checkpoint(folder="rl/model"), root/"artifacts"/"evaluate"/"tasks", names))
    write_jsonl(root/"artifacts"/"evaluate"/"scores.jsonl", rows)
    return root


@pytest.fixture(scope="module")
def lm(project): return ForgeLM(str(project/"artifacts"/"rl"/"model"))


@pytest.fixture
def server(lm):
    "OpenAI's chat completions on loopback, answered by the small model; `mode` is what it does wrong, `asked` the turns that it got"
    class Chat(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            turn = body["messages"][-1]["content"]
            http.asked.append(turn)
            if http.mode == "slow": time.sleep(.6)
            with http.lock: [(text, finished)] = continue_texts(lm, [render_chat_prompt(lm.tokenizer, turn)], body["max_tokens"])
            reply = dict(choices=[dict(message=dict(content=text), finish_reason="stop" if finished else "length")], usage=dict(prompt_tokens=10, completion_tokens=5))
            if http.mode == "later nonsense" and len(http.asked) > 4: reply = dict(hello="world")
            payload = b"<html>busy</html>" if http.mode == "nonsense" else json.dumps(reply).encode()
            try:
                self.send_response(200)
                self.send_header("Content-Length", str(len(payload) * (2 if http.mode == "half" else 1)))
                self.end_headers()
                self.wfile.write(payload)
            except OSError: pass  # who asked has gone
        def log_message(self, *_): pass
    http = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    http.mode, http.asked, http.lock = "", [], threading.Lock()
    http.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield http
    http.shutdown()
    http.server_close()


def name_rivals(project, text): (project/"config"/"rivals.yaml").write_text(f"rivals:\n{text}", encoding="utf-8")


def test_the_same_model_in_three_places_is_as_good(project, server):
    name_rivals(project, f"  base: {{folder: artifacts/rl/model}}\n  file: {{gguf: same.gguf}}\n  api: {{url: '{server.url}', model: tiny, input_price: 1.0, output_price: 2.0}}\n")
    answer = compare_rivals(project)
    rows = read_csv(project/"results"/"rivals.csv")
    assert [(row["rival"], row["passages"]) for row in rows] == [(name, book) for name in ("base", "file", "api") for book in ("True", "False")]
    right = {row["passages"]: float(row["right"]) for row in rows}
    assert right["True"] > .5 and 0 < right["False"] < 1
    assert all(float(row["difference"]) == 0 and int(row["n"]) == len(ITEMS) and float(row["seconds"]) >= 0 for row in rows)
    assert [float(row["price"]) for row in rows] == pytest.approx([0, 0, 0, 0, 20e-6, 20e-6])
    assert "api, with passages" in format_rivals(answer) and len(server.asked) == 2 * len(ITEMS)


@pytest.mark.parametrize("mode, words", [("slow", ["no answer in 4 tries"]), ("half", ["no answer in 4 tries"]), ("nonsense", ["no answer in OpenAI's form", "<html>busy"])])
def test_a_broken_endpoint_is_one_sentence(project, server, mode, words):
    server.mode = mode
    name_rivals(project, f"  {mode}: {{url: '{server.url}', model: {mode}, timeout: 0.3}}\n")
    with pytest.raises(Invalid) as error: compare_rivals(project)
    assert "\n" not in str(error.value) and "run again to go on" in str(error.value)
    for word in (mode, *words): assert word in str(error.value)


def test_what_was_answered_is_kept(project, server):
    "After an endpoint breaks down, only what is left is asked"
    server.mode = "later nonsense"
    name_rivals(project, f"  late: {{url: '{server.url}', model: late}}\n")
    with pytest.raises(Invalid, match="late sent no answer"): compare_rivals(project)
    first, server.mode = server.asked[:4], ""
    server.asked.clear()
    compare_rivals(project)
    assert not set(first) & set(server.asked) and len(server.asked) == 2 * len(ITEMS) - 4
