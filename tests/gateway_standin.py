"Stand-ins for what a gateway needs: an engine without a model, a release of two passages, a server on a port of its own"
import asyncio, json, sys, threading, time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from forge_nb.core.project import ROOT
from forge_nb.core.settings import Style, load_settings
from forge_nb.data.passages import build_index, make_document_passages
from forge_nb.ops.api_forms import ApiError, TextChunk
from forge_nb.ops.engines import ServeSettings
from forge_nb.ops.feedback import AnswerStore
from forge_nb.ops.gateway import Backend, Gateway
from forge_nb.ops.request_log import RequestLog
from forge_nb.ops.serve import make_server, open_port, run_server

TEXTS = {"docs/bolts.txt": "A bolt M3 costs 3 EUR.", "docs/nuts.txt": "A nut M3 costs 1 EUR.", "hr/pay.txt": "Kim is paid 9000 zloty."}
GROUPS = {"hr": ["hr"], "*": ["everyone"]}


class Words:
    "A tokenizer whose tokens are words"
    def encode(self, text, add_special_tokens=False): return SimpleNamespace(ids=text.split())


class Echo:
    "An engine that writes the prompt it was given, word by word, and keeps what it was asked"
    context_length = 512

    def __init__(self, pause: float = 0., answer: str = ""):
        self.pause, self.answer, self.asked, self.written, self.closed = pause, answer, [], 0, False

    def write(self, generation, emit):
        assert not self.closed, "a closed engine was asked"
        self.asked.append(generation)
        prompt = generation.prompt or generation.turns[-1]["content"]
        if "break down" in prompt: raise KeyError(prompt)
        if "refuse this" in prompt: raise ApiError(400, "the engine refuses it", "engine_refused")
        words = (self.answer or prompt).split(" ")[:generation.max_tokens]
        for n, word in enumerate(words):
            time.sleep(self.pause)
            self.written += 1
            if emit(TextChunk(" " * bool(n) + word)): return
        emit(TextChunk(reason="stop", usage=dict(prompt_tokens=len(prompt.split()), completion_tokens=len(words), total_tokens=len(prompt.split()) + len(words))))

    def close(self): self.closed = True


def make_backend(engine=None, version: str = "v1.0.0") -> Backend:
    documents = [dict(id=s, kind="docs", language="en", source=s, text=t) for s, t in TEXTS.items()]
    index = build_index(make_document_passages(documents, GROUPS, "en", 1200))
    style = load_settings(ROOT/"company"/"style.yaml", Style)
    return Backend("forge", version, f"hash of {version}".replace(" ", "-"), engine or Echo(), index, style, Words(), ["<|end|>"])


def make_gateway(folder: Path, engine=None, keys: dict = {}, **settings) -> Gateway:
    answers = AnswerStore(folder/"answers", 30, ["email"])
    return Gateway(make_backend(engine), ServeSettings(**settings), keys, RequestLog(folder/"requests", 10 ** 6, 4), ["email"], answers)


def read_rows(folder: Path) -> list:
    "The rows of the log, oldest first"
    files = sorted((folder/"requests").glob("requests-*.jsonl")) + [folder/"requests"/"requests.jsonl"]
    return [json.loads(line) for path in files if path.exists() for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def serving(gateway: Gateway):
    "A real server in a thread; its port"
    with open_port("127.0.0.1", 0) as opened:
        opened.listen(64)
        server = make_server(gateway)
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[opened]), daemon=True)
        thread.start()
        try: yield opened.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server did not end"


def main():
    "`python -m gateway_standin FOLDER` serves until a signal comes, an answer of twenty words in two seconds"
    gateway = make_gateway(Path(sys.argv[1]), Echo(.1, " ".join(f"w{n}" for n in range(20))))
    with open_port("127.0.0.1", 0) as opened:
        opened.listen(64)
        print(opened.getsockname()[1], flush=True)
        asyncio.run(run_server(gateway, opened, asyncio.sleep(3600)))


if __name__ == "__main__": main()
