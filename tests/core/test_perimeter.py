"Nothing leaves: what the guard on sockets refuses in a stage, in its children and in the verbs; what `forge check` says of addresses; telemetry is off"
import json, os, shutil, subprocess, sys
from importlib.metadata import files

import nbformat
import pytest

from copies import FORGE, fails_with
from forge_nb.core.outbound import TELEMETRY_SWITCHES, make_outbound_environment, write_sitecustomize
from forge_nb.core.perimeter import Perimeter, describe_perimeter, load_perimeter, make_perimeter_rows
from forge_nb.core.project import ROOT, Invalid, read_jsonl
from forge_nb.ops.check import ProblemList, check, check_perimeter, require_company

HOST = "models.example"  # a name that nobody has
ENTRY = "hosts:\n  {host}: {{may_go: [{purpose}], region: EU, reason: contract 7}}\n"


@pytest.fixture
def project(tmp_path):
    "A project's company/, config/ and parameters, which are in order, and hardly any data"
    shutil.copytree(ROOT/"company", tmp_path/"company")
    shutil.copytree(ROOT/"config", tmp_path/"config")
    shutil.copytree(ROOT/"data"/"facts", tmp_path/"data"/"facts")
    shutil.copy(ROOT/"params.yaml", tmp_path)
    (tmp_path/".dvc").mkdir()
    (tmp_path/"data"/"a.md").write_text("# Bolts\n\nThey hold what is screwed together.\n", encoding="utf-8")
    return tmp_path


def find_problems(project) -> list:
    "What `forge check` says of the perimeter"
    found = ProblemList()
    check_perimeter(found, project)
    return found.problems


def set_field(project, field: str, value: str):
    "Write a value into params.yaml"
    path = project/"params.yaml"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    [number] = [n for n, line in enumerate(lines) if line.startswith(f"  {field}:")]
    lines[number] = f"  {field}: {value}\n"
    path.write_text("".join(lines), encoding="utf-8")


def name_teacher(project): set_field(project, "teacher_url", f"https://{HOST}/v1")
def name_judge(project): set_field(project, "endpoint_url", f"https://{HOST}/v1")
def name_server(project): set_field(project, "server_url", f"https://{HOST}/manuals")
def name_rival(project): (project/"config"/"rivals.yaml").write_text(f"rivals: {{api: {{url: 'https://{HOST}/v1', model: a}}}}\n", encoding="utf-8")
def name_remote(project): (project/".dvc"/"config").write_text(f"['remote \"far\"']\n    url = ssh://{HOST}/store\n", encoding="utf-8")


@pytest.mark.parametrize("name_host, purpose, file, field", [
    (name_teacher, "teacher", "params.yaml", "synth.teacher_url"), (name_judge, "judge", "params.yaml", "judge.endpoint_url"),
    (name_server, "search", "params.yaml", "retrieval.server_url"), (name_rival, "rivals", "config/rivals.yaml", "rivals.api.url"),
    (name_remote, "remote", ".dvc/config", 'remote "far".url')])
def test_an_address_is_held_to_the_perimeter(project, name_host, purpose, file, field):
    name_host(project)
    [problem] = find_problems(project)
    assert problem.file == file
    for words in (f"`{field}` names {HOST}", f"lets no {purpose} go there", f"`{HOST}: {{may_go: [{purpose}]"): assert words in problem.problem
    perimeter = project/"company"/"perimeter.yaml"
    perimeter.write_text(ENTRY.format(host=HOST, purpose="cluster"), encoding="utf-8")
    assert find_problems(project), "allowed for something else"
    perimeter.write_text(ENTRY.format(host=HOST, purpose=purpose), encoding="utf-8")
    assert not find_problems(project)


def test_check_and_the_first_stage_ask(project):
    assert not check(project).problems
    name_teacher(project)
    [problem] = check(project).problems
    assert f"`synth.teacher_url` names {HOST}" in problem.problem
    with pytest.raises(Invalid, match="names models.example"): require_company(project)


def test_a_base_on_a_hub_is_named(project):
    set_field(project, "base", "owner/large")
    [problem] = find_problems(project)
    assert "`shared.base` names " in problem.problem and "lets no hub go there" in problem.problem
    set_field(project, "base", "smollm2")  # out of a package
    assert not find_problems(project)


def test_the_default_allows_nothing():
    perimeter = load_perimeter(ROOT/"company"/"perimeter.yaml")
    assert perimeter == Perimeter() and not make_perimeter_rows(perimeter)
    assert "allows no host outside the machine" in describe_perimeter(perimeter)


@pytest.mark.parametrize("text, words", [
    ("hosts: {https://a.example: {may_go: [hub], region: EU, reason: a}}", "write the name or the address alone"),
    ("hosts: {localhost: {may_go: [hub], region: EU, reason: a}}", "needs no entry"),
    ("hosts: {a.example: {may_go: [], region: EU, reason: a}}", "hosts.a.example.may_go"),
    ("hosts: {a.example: {may_go: [hub], region: EU}}", "field `hosts.a.example.reason` is missing"),
    ("host: {}", "did you mean `hosts`?")])
def test_a_faulty_perimeter_is_one_sentence(project, text, words):
    (project/"company"/"perimeter.yaml").write_text(text, encoding="utf-8")
    [problem] = find_problems(project)
    assert problem.file == "company/perimeter.yaml" and words in problem.problem


# In processes

CALLS = {
    "connect": "socket.socket().connect(('192.0.2.1', 80))", "connect_ex": "socket.socket().connect_ex(('192.0.2.1', 80))",
    "create_connection": "socket.create_connection(('models.example', 80))", "getaddrinfo": "socket.getaddrinfo('models.example', 80)",
    "IPv6": "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))",
    "sendto": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'a', ('192.0.2.1', 80))",
    "urllib": "import urllib.request; urllib.request.urlopen('http://models.example:80')", "httpx2": "import httpx2; httpx2.get('http://models.example:80', trust_env=False)",
    "requests": "import requests; requests.get('http://models.example:80', proxies={'http': ''})",
    "asyncio": "import asyncio; asyncio.run(asyncio.open_connection('models.example', 80))"}


@pytest.fixture
def guarded(tmp_path):
    "The environment of a stage's process, for a project that allows nothing"
    write_sitecustomize(tmp_path/".cache"/"perimeter")
    (tmp_path/"runs").mkdir()
    return os.environ | make_outbound_environment(tmp_path, [])


def run_python(code: str, env: dict) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", f"import socket\n{code}"], env=env, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize("name", CALLS)
def test_a_connection_is_refused_and_noted(guarded, tmp_path, name):
    done = run_python(CALLS[name], guarded)
    assert done.returncode == 1 and "port 80: something wants to connect there, and company/perimeter.yaml does not allow it" in done.stderr
    assert read_jsonl(tmp_path/"runs"/"attempts.jsonl")[0]["port"] == "80"


def test_an_allowed_host_is_let_through(tmp_path, guarded):
    code = "try: socket.create_connection(('192.0.2.1', 80), timeout=.01)\nexcept OSError: print('let through')"
    assert run_python(code, guarded | dict(FORGE_ALLOWED_HOSTS="192.0.2.1")).stdout == "let through\n"
    assert run_python(code, guarded).returncode == 1


TALK = """
import multiprocessing as mp, socket, sys
def connect(port): socket.create_connection(("127.0.0.1", port)).sendall(b"x")
def call(port): socket.create_connection(("192.0.2.1", 80))
if __name__ == "__main__":
    server = socket.create_server(("127.0.0.1", 0))
    for method in ("fork", "spawn", "forkserver"):
        for target, code in ((connect, 0), (call, 1)):
            worker = mp.get_context(method).Process(target=target, args=(server.getsockname()[1],))
            worker.start(); worker.join()
            assert worker.exitcode == code, (method, target)
    print("all")
"""


def test_workers_are_guarded_and_talk_over_loopback(guarded, tmp_path):
    (tmp_path/"talk.py").write_text(TALK, encoding="utf-8")
    done = subprocess.run([sys.executable, "talk.py"], cwd=tmp_path, env=guarded, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout == "all\n", done.stderr
    assert len(read_jsonl(tmp_path/"runs"/"attempts.jsonl")) == 3


REDUCE = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1); dist.all_reduce(total)
if dist.get_rank() == 0: print(int(total))
dist.destroy_process_group()
"""


def test_processes_of_torch_train_together(guarded, tmp_path):
    (tmp_path/"reduce.py").write_text(REDUCE, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "reduce.py"]
    done = subprocess.run(command, cwd=tmp_path, env=guarded | dict(OMP_NUM_THREADS="1"), capture_output=True, text=True, encoding="utf-8")
    assert done.stdout == "2\n", done.stderr
    assert not (tmp_path/"runs"/"attempts.jsonl").exists()


RAY = """
import os, socket
from forge_nb.core.outbound import guard_process
from forge_nb.core.project import ROOT
guard_process(ROOT)
from forge_nb.data.executors import connect_ray
connect_ray(1)
import ray
@ray.remote
def connect():
    try: socket.create_connection(("models.example", 80))
    except ValueError as error: return str(error)
print(ray.get(connect.remote()))
ray.shutdown()
"""


@pytest.mark.slow
def test_ray_works_and_its_workers_are_guarded(mend):
    "What Ray itself reaches for, the metadata of clouds, is refused, and it goes on"
    (mend.root/"connect.py").write_text(RAY, encoding="utf-8")
    assert "models.example, port 80: something wants to connect there" in mend("python - < connect.py")
    hosts = {row["host"] for row in read_jsonl(mend.root/"runs"/"attempts.jsonl")}
    assert "models.example" in hosts and hosts <= {"models.example", "169.254.169.254", "metadata.google.internal"}


def plant_cell(copy, book: str, source: str):
    "Put a lesson before the others of a stage's page"
    path = copy.root/"nbs"/book
    nb = nbformat.read(path, 4)
    number = next(n for n, cell in enumerate(nb.cells) if "parameters" in cell.metadata.get("tags", []))
    nb.cells.insert(number + 1, nbformat.v4.new_code_cell(source))
    nbformat.write(nb, path)


def test_a_stage_is_guarded_and_sends_no_telemetry(mend):
    "Every switch is set in a stage's kernel; what connects from there is one sentence and exit code 2"
    plant_cell(mend, "10_ingest.ipynb", "import json, os, socket\njson.dump(dict(os.environ), open('environment.json', 'w'))\n"
               "socket.create_connection(('models.example', 443))")
    mend("python -m forge_nb.core.tangle")
    fails_with(mend, "python -m forge_nb.core.runner ingest", "models.example, port 443: something wants to connect there", "company/perimeter.yaml")
    environment = json.loads((mend.root/"environment.json").read_text(encoding="utf-8"))
    for package, switches in TELEMETRY_SWITCHES.items(): assert switches.items() <= environment.items(), package
    (mend.root/"environment.json").unlink()
    assert read_jsonl(mend.root/"runs"/"attempts.jsonl")[-1]["host"] == "models.example"


def test_a_verb_is_guarded(mend):
    "A search server that `forge check` never saw is refused by the guard"
    path = mend.root/"params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace('server_url: ""', 'server_url: "http://models.example:9200/manuals"'), encoding="utf-8")
    said = mend(f"{FORGE} check", rc=2)
    assert "`retrieval.server_url` names models.example" in said
    (mend.root/"company"/"perimeter.yaml").write_text("hosts: 3\n", encoding="utf-8")
    fails_with(mend, f"{FORGE} check", "company/perimeter.yaml: `hosts` holds 3")


@pytest.mark.parametrize("package", TELEMETRY_SWITCHES)
def test_a_switch_is_one_that_its_package_reads(package):
    "A switch that a new version has renamed would switch nothing off"
    code = b"".join(file.locate().read_bytes() for file in files(package) if file.suffix in (".py", ".so") and file.locate().exists())
    unread = [name for name in TELEMETRY_SWITCHES[package] if name.encode() not in code]
    if package == "pip": unread = [name for name in unread if name.removeprefix("PIP_").lower().replace("_", "-").encode() not in code]  # every option
    assert not unread
