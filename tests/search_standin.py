"A stand-in for a search server: the requests of forge_nb.data.search_server, answered as OpenSearch's reference describes them"
import json, math, threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandIn(BaseHTTPRequestHandler):
    "Indices in memory, BM25 over the field `terms` with Lucene's formula, and the requests that the page sends"
    def log_message(self, *_): pass

    def answer(self, status: int, value: dict):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        state, (name, action) = self.server.state, (self.path.strip("/").split("/") + [""])[:2]
        state["requests"].append((self.command, self.path, self.body))
        if state["key"] and self.headers.get("Authorization") != state["key"]: return self.answer(401, {})
        if action == "_settings": return self.answer(200, {n: {} for n in state["indices"] if n.startswith(name.removesuffix("*"))})
        if self.command == "PUT":
            state["indices"][name] = dict(json.loads(self.body), documents={})
            return self.answer(200, dict(acknowledged=True))
        if name not in state["indices"]:
            missing = dict(error=dict(type="index_not_found_exception"), status=404)
            return self.answer(200, dict(responses=[missing] * (self.body.count("\n") // 2))) if action == "_msearch" else self.answer(404, missing)
        index = state["indices"][name]
        if self.command == "DELETE": return self.answer(200, dict(acknowledged=bool(state["indices"].pop(name))))
        if action == "_count": return self.answer(200, dict(count=len(index["documents"])))
        if action == "_refresh": return self.answer(200, {})
        if action == "_bulk": return self.bulk(index)
        if action == "_msearch": return self.answer(200, dict(responses=[self.query(index, json.loads(line)) for line in self.body.splitlines()[1::2]]))
        self.answer(400, dict(error="unknown request"))

    do_GET = do_PUT = do_POST = do_DELETE = handle_request

    def bulk(self, index):
        assert self.headers["Content-Type"] == "application/x-ndjson" and self.body.endswith("\n")
        lines, items = [json.loads(line) for line in self.body.splitlines()], []
        for head, document in zip(lines[::2], lines[1::2]):
            refused = document["passage"]["source"] == self.server.state["refuse"]
            if not refused: index["documents"][head["index"]["_id"]] = document
            items.append(dict(index=dict(_id=head["index"]["_id"], status=400 if refused else 201, error="mapper_parsing_exception" if refused else None)))
        self.answer(200, dict(errors=any(i["index"]["status"] >= 300 for i in items), items=items))

    def query(self, index, request):
        [match], [may_read] = request["query"]["bool"]["must"], request["query"]["bool"]["filter"]
        assert index["mappings"]["properties"]["terms"]["analyzer"] == "whitespace"
        similarity, documents = index["settings"]["index"]["similarity"]["default"], index["documents"].values()
        counts = [Counter(d["terms"].split()) for d in documents]
        mean = sum(map(Counter.total, counts)) / len(counts)
        found = []
        for document, count in zip(documents, counts):
            if not set(document["groups"]) & set(may_read["terms"]["groups"]): continue
            score = 0
            for term in match["match"]["terms"].split():
                n = sum(term in other for other in counts)
                norm = similarity["k1"] * (1 - similarity["b"] + similarity["b"] * count.total() / mean)
                score += math.log(1 + (len(counts) - n + .5) / (n + .5)) * count[term] / (count[term] + norm)
            if score: found.append((-score, document["number"], document))
        hits = [dict(_score=-s, _source=dict(passage=d["passage"])) for s, _, d in sorted(found, key=lambda f: f[:2])[:request["size"]]]
        return dict(hits=dict(hits=hits), status=200)


@contextmanager
def serve():
    "Run the stand-in on a free port of this machine; `state` is what it holds, and what it was asked"
    running = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    running.state = dict(indices={}, requests=[], key="", refuse="")
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.url = f"http://127.0.0.1:{running.server_port}/manuals"
    try: yield running
    finally:
        running.shutdown()
        running.server_close()
