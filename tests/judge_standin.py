"A stand-in for a judge behind OpenAI's chat completions, on this machine: made answers, labels, and rules by which it judges"
import csv, json, re, threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from forge_nb.core.project import ROOT, load_params, stable_uniform, write_jsonl
from forge_nb.evals.answer_pairs import LABEL_COLUMNS, make_pair
from forge_nb.judge import judge

SECRET = "sk-of-no-judge-0815"


def say(text: str) -> tuple:
    "A chat completion"
    return 200, json.dumps(dict(choices=[dict(message=dict(content=text))]))


class JudgeServer:
    "A real server; `rule` maps a prompt and how often it was asked to (status, body). A body longer than `cut` is broken off there"

    def __init__(self, rule, cut: int = 10 ** 9):
        self.asked, self.keys, outer = Counter(), set(), self
        class Chat(BaseHTTPRequestHandler):
            def do_POST(self):
                prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
                outer.asked[prompt] += 1; outer.keys.add(self.headers["Authorization"])
                status, body = rule(prompt, outer.asked[prompt])
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body.encode())))
                    self.end_headers()
                    self.wfile.write(body.encode()[:cut])
                except OSError: pass  # who asked has gone
            def log_message(self, *_): pass
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


# Answers about bolts: the right one names the price of the reference. Of every four questions, one has a longer right
# answer, one a longer wrong one, and two have right answers of different length, which are a tie.

def price(n: int) -> str: return f"`{n} EUR`, by p."
def both(n: int) -> tuple:
    "The better answer and the worse one to a question, or two of equal worth"
    longer = lambda text: text + " That is what the list of all prices says."
    if n % 4 == 0: return longer(price(n)), price(n + 5000)
    if n % 4 == 1: return price(n), longer(price(n + 5000))
    return price(n), longer(price(n))


def read_prompt(prompt: str) -> tuple:
    "The two answers in a prompt, and whether each is right"
    first, second = (re.search(f"^Answer {name}: (.*)$", prompt, re.M)[1] for name in "AB")
    truth = re.search("^Reference: (.*)$", prompt, re.M)[1]
    return first, second, f"`{truth}`" in first, f"`{truth}`" in second


def prefer_right(prompt, n=1) -> tuple:
    if "score:" in prompt: return say("score: 4")
    first, second, first_right, second_right = read_prompt(prompt)
    return say(f"verdict: {'tie' if first_right == second_right else 'A' if first_right else 'B'}")


def prefer_right_in_four_of_five(prompt, n=1) -> tuple:
    "Errs on the same pairs in either order, and not in one direction"
    if "score:" in prompt: return say("score: 4")
    first, second, *right = read_prompt(prompt)
    pair = sorted((first, second))
    if stable_uniform("errs", *pair) < .8: return prefer_right(prompt)
    if right[0] != right[1]: return say(f"verdict: {'B' if right[0] else 'A'}")
    return say(f"verdict: {'AB'[(first == pair[0]) == (stable_uniform('side', *pair) < .5)]}")


def prefer_first(prompt, n=1) -> tuple: return say("score: 4" if "score:" in prompt else "verdict: A")
def prefer_longer(prompt, n=1) -> tuple:
    if "score:" in prompt: return say("score: 4")
    first, second, *_ = read_prompt(prompt)
    return say(f"verdict: {'A' if len(first) > len(second) else 'B'}")


def make_project(folder: Path, num_people: int, num_questions: int = 400) -> Path:
    "The files that the stage reads, with so many pairs that people labelled"
    items = [dict(id=f"q{n}", question=f"What does bolt M{n} cost?", answer=f"{n} EUR", passages=[dict(text=f"bolt M{n}: {n} EUR")]) for n in range(num_questions)]
    write_jsonl(folder/"items.jsonl", items)
    row = lambda n, name, text: dict(checkpoint=name, id=f"q{n}", prompt_field="prompt", question=items[n]["question"], truth=items[n]["answer"], text=text, finished=True)
    write_jsonl(folder/"answers.jsonl", [row(n, name, text) for n in range(num_questions) for name, text in zip(("rl", "sft"), both(n))])
    (folder/"checkpoints.yaml").write_text("checkpoints: {sft: {folder: sft}, rl: {folder: rl, ships: true}}\n", encoding="utf-8")
    (folder/"baseline.yaml").write_text('name: ""\n', encoding="utf-8")
    (folder/"style.yaml").write_bytes((ROOT/"company"/"style.yaml").read_bytes())
    labelled = [make_pair(f"q{n}", items[n]["question"], *both(n), "tie" if n % 4 > 1 else "a", "A. Person") for n in range(num_people)]
    with open(folder/"judge_labels.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, LABEL_COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(labelled)
    return folder


def run_judge_stage(folder: Path, url: str = "", **changed) -> dict:
    "The stage on such a project, with the parameters of params.yaml but for those named here"
    params = load_params(ROOT/"params.yaml")["judge"] | dict(threads=1, endpoint_url=url, endpoint_name="m" if url else "", endpoint_key="TEST_JUDGE_KEY", num_compared=20)
    paths = [folder/name for name in ("answers.jsonl", "items.jsonl", "judge_labels.csv", "style.yaml", "checkpoints.yaml", "baseline.yaml")]
    return judge(*paths, folder, folder/"kept", **params | changed, out=folder/"out")
