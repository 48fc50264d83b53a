"JupyterLab as a door, driven through its own server: `make lab` serves the project, and Run All by hand touches no artifact"
import ast, hashlib, json, socket, subprocess, time, uuid
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
import pytest
import websocket
from copies import ENV, HANG, Copy
from forge_nb.core import tangle
from forge_nb.core.project import read_stages

BOOKS = tangle.list_notebooks()
NB = {name: nbformat.read(path, 4) for name, path in BOOKS.items()}
STAGES = {name.rpartition(".")[2]: name for name, nb in NB.items() if any(map(tangle.is_parameters, nb.cells))}  # stage → module
KEPT = "artifacts reports data build nbs forge_nb dvc.lock params.yaml dvc.yaml".split()  # of which no byte may change


class Lab:
    "`make lab` in a copy, without a browser, and what JupyterLab's pages ask of it"

    def __init__(self, copy: Copy, settings: Path):
        (settings/"jupyter_server_config.json").write_text('{"ServerApp": {"open_browser": false, "allow_root": true}}', encoding="utf-8")
        with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
        env = ENV | dict(JUPYTER_CONFIG_DIR=str(settings), JUPYTER_RUNTIME_DIR=str(settings/"runtime"), JUPYTER_TOKEN="t", JUPYTER_PORT=str(port))
        env.pop("PYTHONPATH", None)
        with open(settings/"log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(["make", "-o", "setup", "lab"], cwd=copy.root, env=env, stdout=log, stderr=log, start_new_session=True)
        while not (found := list((settings/"runtime").glob("jpserver-*.json"))):
            assert self.process.poll() is None, (settings/"log").read_text(encoding="utf-8")
            time.sleep(.1)
        while not (text := found[0].read_text(encoding="utf-8")).rstrip().endswith("}"): time.sleep(.1)
        self.info, self.copy = json.loads(text), copy
        self.at = f"127.0.0.1:{self.info['port']}"

    def ask(self, path: str, given: dict = None, method: str = None):
        "Jupyter's REST interface"
        request = Request(f"http://{self.at}{path}", json.dumps(given).encode() if given is not None else None, {"Authorization": "token t"}, method=method)
        with urlopen(request) as answer: text = answer.read().decode(); return json.loads(text) if text.startswith(("{", "[")) else answer.url

    def run_all(self, path: str) -> tuple:
        "Open a notebook and run its cells in order, up to the first that fails: what each showed, and the error, if any"
        cells = [c for c in self.ask(f"/api/contents/{path}")["content"]["cells"] if c["cell_type"] == "code"]
        session = self.ask("/api/sessions", dict(path=path, name=Path(path).name, type="notebook", kernel=dict(name="python3")))
        place, shown = f"ws://{self.at}/api/kernels/{session['kernel']['id']}/channels?session_id={uuid.uuid4().hex}", []
        socket = websocket.create_connection(place, header=["Authorization: token t"], timeout=HANG)
        try:
            for cell in cells:
                text, error = execute(socket, cell["source"])
                shown.append((cell["source"], text))
                if error: return shown, error
            return shown, None
        finally: socket.close(); self.ask(f"/api/sessions/{session['id']}", method="DELETE")

    def close(self):
        "As File, Shut Down does"
        self.ask("/api/shutdown", {})
        self.process.wait()


def execute(socket, source: str) -> tuple:
    "A cell's printed text and its error, if any, over Jupyter's message protocol"
    number, text, error, open_ends = uuid.uuid4().hex, "", None, {"execute_reply", "idle"}
    header = dict(msg_id=number, msg_type="execute_request", username="", session=number, date="", version="5.3")
    content = dict(code=source, silent=False, store_history=True, user_expressions={}, allow_stdin=False, stop_on_error=True)
    socket.send(json.dumps(dict(header=header, parent_header={}, metadata={}, content=content, channel="shell")))
    while open_ends:
        message = json.loads(socket.recv())
        if message["parent_header"].get("msg_id") != number: continue
        kind, content = message["header"]["msg_type"], message["content"]
        open_ends -= {kind, content.get("execution_state")}
        if kind == "stream" and content["name"] == "stdout": text += content["text"]
        elif kind == "execute_result": text += content["data"].get("text/plain", "")
        elif kind == "error": error = f"{content['ename']}: {content['evalue']}"
    return text, error


def digest(copy: Copy) -> dict:
    "Hash and date of every file that is the pipeline's or the user's: the same bytes written again would show"
    files = [p for top in KEPT for p in ([copy.root/top] if (copy.root/top).is_file() else (copy.root/top).rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    return {p.relative_to(copy.root).as_posix(): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def files(folder: Path) -> dict: return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run_by_hand(lab: Lab, name: str) -> str:
    "Run All on a stage's page, with what must hold for each: what its first run cell said"
    before = digest(lab.copy)
    shown, error = lab.run_all(BOOKS[STAGES[name]].relative_to(tangle.ROOT).as_posix())
    assert error is None, f"{name}: {shown[-1][0]}\n{error}"
    assert digest(lab.copy) == before
    [said] = [text for source, text in shown if "prepare_interactive_run(" in source]
    assert f"by hand: outputs go to runs/lab/{name}/" in said
    return said


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Copy:
    "A copy, under a path with a blank, in which the first stages have run with the profile `tiny`"
    copy = Copy(tmp_path_factory.mktemp("by hand"))
    copy("python -m forge_nb.core.runner profile tiny && dvc repro tokenizer ngram && git add -A && git -c user.name=t -c user.email=t@localhost commit -qm tiny")
    return copy


@pytest.fixture(scope="module")
def lab(begun, tmp_path_factory):
    running = Lab(begun, tmp_path_factory.mktemp("settings"))
    yield running
    running.close()


@pytest.mark.parametrize("name", STAGES)
def test_first_run_cell_prepares_a_run_by_hand(name):
    nb = NB[STAGES[name]]
    first = next(c for c in nb.cells if "run" in tangle.read_directives(c))
    assert ast.unparse(ast.parse(first.source).body[-1]) == f"prepare_interactive_run('{name}', globals())"
    assert not any("core.lab" in tangle.find_imports(c.source) for c in nb.cells if tangle.is_exported(c)), "a stage's result would depend on it"


def test_make_lab_serves_the_project_with_the_tour_open(lab, begun):
    assert Path(lab.info["root_dir"]) == begun.root and lab.info["hostname"] == "127.0.0.1"
    assert lab.ask("/").split("?")[0].endswith("/lab/tree/nbs/index.ipynb")
    assert {"params.yaml", "nbs", "reports", "artifacts", "README.md"} <= {e["name"] for e in lab.ask("/api/contents/")["content"]}
    assert "pretrain:" in lab.ask("/api/contents/params.yaml")["content"]
    reports = [e["path"] for e in lab.ask("/api/contents/reports")["content"]]
    assert reports and all(lab.ask(f"/api/contents/{path}")["type"] == "notebook" for path in [*reports, "nbs/index.ipynb"])
    assert not lab.ask("/lab/api/news")["news"]
    shown, error = lab.run_all("nbs/index.ipynb")
    assert error is None and len(shown) == sum(c.cell_type == "code" for c in nbformat.read(begun.root/"nbs"/"index.ipynb", 4).cells)


def test_kernels_run_this_tree_offline_whoever_is_installed(lab, begun):
    code = "import sys, forge_nb, huggingface_hub.constants as hub; print(forge_nb.__file__, hub.HF_HUB_OFFLINE, sys.flags.hash_randomization)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), begun.root/"runs"/"where.ipynb")
    assert lab.run_all("runs/where.ipynb") == ([(code, f"{begun.root}/forge_nb/__init__.py True 0\n")], None)


@pytest.mark.parametrize("name", "ingest assess curate tokenizer ngram".split())
def test_run_all_makes_what_the_pipeline_makes_and_touches_no_artifact(lab, begun, name):
    said = run_by_hand(lab, name)
    assert files(begun.root/"runs"/"lab"/name/"artifacts"/name) == files(begun.root/"artifacts"/name)
    if name == "ngram": assert "params.yaml: order = 4 stands for this page's 8\n" in said
    assert not begun("git status --porcelain")


def test_run_all_takes_what_params_yaml_says_now(lab, begun):
    params = (begun.root/"params.yaml").read_text(encoding="utf-8")
    try:
        (begun.root/"params.yaml").write_text(params.replace("order: 4", "order: 2"), encoding="utf-8")
        assert "params.yaml: order = 2 stands for this page's 8\n" in run_by_hand(lab, "ngram")
        curve = (begun.root/"runs/lab/ngram/artifacts/ngram/curve.csv").read_text(encoding="utf-8")
        assert curve != (begun.root/"artifacts/ngram/curve.csv").read_text(encoding="utf-8") and "\n2," in curve and "\n3," not in curve
        (begun.root/"params.yaml").write_text(params.replace("order: 4", "ordr: 4"), encoding="utf-8")
        assert lab.run_all("nbs/35_ngram.ipynb")[1] == "Invalid: params.yaml: unknown field `ngram.ordr`; did you mean `order`?"
    finally: (begun.root/"params.yaml").write_text(params, encoding="utf-8")


def test_run_all_names_a_missing_input_and_its_remedy(lab, begun):
    before = digest(begun)
    shown, error = lab.run_all("nbs/50_sft.ipynb")
    assert error == "Invalid: artifacts/pretrain/model is missing; `dvc repro sft` makes it" and "prepare_interactive_run(" in shown[-1][0]
    (begun.root/"data").rename(begun.root/"runs"/"elsewhere")
    try: assert lab.run_all("nbs/10_ingest.ipynb")[1] == "Invalid: data is missing; `make data` makes it"
    finally: (begun.root/"runs"/"elsewhere").rename(begun.root/"data")
    assert digest(begun) == before


@pytest.mark.parametrize("folder", [".", "nbs"])
def test_any_kernel_inside_the_project_serves(begun, folder):
    "VS Code and others start kernels in the root or beside the notebook; Run All twice in one kernel begins anew"
    code = "from pathlib import Path; from forge_nb.core.lab import prepare_interactive_run as go; page = dict(order=8); go('ngram', page); " \
           "(out := Path('artifacts/ngram/x')).touch(); go('ngram', page); print(page, Path.cwd().relative_to(Path('../../..').resolve()), out.exists())"
    said = begun(f'export PYTHONPATH="$PWD"; cd {folder} && python -c "{code}"')
    assert said.splitlines()[-1] == "{'order': 4} runs/lab/ngram False"


def test_a_study_by_hand_writes_beside_its_artifacts_too(begun):
    code = "from pathlib import Path; from forge_nb.core.lab import prepare_interactive_run as go; go('moe', {}); print(Path('studies').resolve())"
    said = begun(f'python -c "{code}"')
    assert said.splitlines()[-1] == f"{begun.root}/runs/lab/moe/studies" and "`cd studies && dvc repro moe` makes those that count" in said


def test_forget_searches_what_was_made_by_hand(begun):
    begun("python -c \"from forge_nb.core.lab import prepare_interactive_run as go; go('ngram', {}); open('artifacts/ngram/text', 'w').close()\"")
    code = "from forge_nb.ops.receipt import list_output_files, is_regenerable; from forge_nb.core.project import ROOT, read_stages; " \
           "print([is_regenerable(n) for p in list_output_files(ROOT, read_stages(ROOT)) if (n := p.relative_to(ROOT).as_posix()) == 'runs/lab/ngram/artifacts/ngram/text'])"
    assert begun(f'python -c "{code}"').strip() == "[True]"


def test_reports_show_nothing_of_it(begun):
    for name in "ingest assess curate tokenizer ngram".split():
        [cell] = [c for c in nbformat.read(begun.root/"reports"/f"{name}.ipynb", 4).cells if "prepare_interactive_run(" in c.source]
        assert not cell.outputs
    assert "reports/html/ngram.html" in begun("python -m forge_nb.report.pages html")
    short, full = ((begun.root/"reports/html"/name).read_text(encoding="utf-8") for name in ("ngram.html", "full/ngram.html"))
    assert "prepare_interactive_run" in full and "prepare_interactive_run" not in short
    assert "by hand: outputs" not in full and "by hand: outputs" not in short


def test_outputs_saved_in_jupyterlab_do_not_stay(begun):
    path = begun.root/"nbs"/"35_ngram.ipynb"
    nb, before = nbformat.read(path, 4), path.read_text(encoding="utf-8")
    nb.cells[-2].outputs, nb.cells[-2].execution_count = [nbformat.v4.new_output("stream", text="1.5 bits")], 3
    nbformat.write(nb, path)
    begun("make -o setup export")
    assert path.read_text(encoding="utf-8") == before and not begun("git status --porcelain")


@pytest.mark.slow
def test_run_all_on_every_stage_of_the_chain(tiny, tmp_path_factory):
    running, differ = Lab(tiny, tmp_path_factory.mktemp("settings")), []
    try:
        for name in STAGES:
            if name == "continued": continue  # needs `make base`
            run_by_hand(running, name)
            made = tiny.root/"runs"/"lab"/name/("studies" if "wdir" in read_stages(tiny.root)[name] else "")/"artifacts"/name
            assert (made/"metrics.json").exists()
            if (tiny.root/"reports"/f"{name}.ipynb").exists() and files(made) != files(tiny.root/"artifacts"/name): differ.append(name)
    finally: running.close()
    assert not differ, "the same parameters and inputs gave other bytes"
    assert not tiny("git status --porcelain")
