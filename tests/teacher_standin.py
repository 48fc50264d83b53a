"A teacher behind an endpoint, on this machine"
import json, re, threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    "A real server on this machine; `answer` maps a question, as `read` takes it from the request, and how often it was asked to (status, body)"
    def __init__(self, answer, read=lambda content: content.splitlines()[-1]):
        self.asked, self.keys = Counter(), set()
        outer = self
        class Chat(BaseHTTPRequestHandler):
            def do_POST(self):
                question = read(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"])
                outer.asked[question] += 1; outer.keys.add(self.headers["Authorization"])
                status, body = answer(question, outer.asked[question])
                try: self.send_response(status); self.send_header("Content-Length", str(len(body.encode()))); self.end_headers(); self.wfile.write(body.encode())
                except OSError: pass  # who asked has gone
            def log_message(self, *_): pass
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self): threading.Thread(target=self.http.serve_forever, daemon=True).start(); return self
    def __exit__(self, *_): self.http.shutdown(); self.http.server_close()


def chat(text): return 200, json.dumps(dict(choices=[dict(message=dict(content=text))]))


def propose(content: str):
    "What a teacher replies: of a passage a question about a name in it, of every other one nonsense; of a question another wording"
    if "Read the passage below" not in content: return chat(f"Could you tell me: {content.splitlines()[-1]}")
    title, text = content.partition("in backticks.\n\n")[2].split("\n\n", 1)
    names, words = re.findall(r"`([^`\n]+)`", text), re.findall(r"\w{5,}", title + " " + text)
    if not names: return chat("I am a teapot.")
    return chat(f"Which name stands beside {words[0]}, {words[-1]} and {words[len(words) // 2]}?\n`{names[0]}`")
