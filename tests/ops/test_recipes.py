"Recipes of deploy/: read by the tools that will read them, held against each other and against the parser, and the image's own command run in a clean environment"
import http.client, json, os, re, shutil, signal, subprocess, sys, sysconfig, tempfile
from pathlib import Path

import compose_spec
import kubernetes_validate
import pytest
import typer

from copies import ROOT
from forge_nb.core.project import Invalid, parse_yaml, read_text, write_jsonl
from forge_nb.core.settings import load_settings
from forge_nb.ops import cli
from forge_nb.ops.api_keys import KeyEntry, hash_key, write_keys
from forge_nb.ops.engines import ServeSettings
from forge_nb.ops.gguf import write_gguf
from forge_nb.ops.recipes import describe_image, list_recipes, read_compose, read_instructions, read_pods, read_unit, take_last_stage
from forge_nb.ops.replay import open_llama
from test_export import ITEMS, save_model
from test_registry import PIPELINE, clone_of, keys, made, write_verdict  # noqa: F401

DEPLOY, UNITS = ROOT/"deploy", ROOT/"deploy"/"systemd"
IMAGE, COMPOSE, PODS = describe_image(DEPLOY/"Containerfile"), read_compose(DEPLOY/"compose.yaml"), read_pods(DEPLOY/"kubernetes.yaml")
SERVICES = [UNITS/f"forge-{name}.service" for name in ("serve", "canary")]
SANDBOX = {"NoNewPrivileges", "CapabilityBoundingSet", "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateUsers",
           "MemoryDenyWriteExecute", "RestrictAddressFamilies", "RestrictNamespaces", "SystemCallFilter", "IPAddressDeny", "IPAddressAllow", "UMask", "MemoryMax", "TasksMax"}
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on this machine; on Debian, `apt install systemd`")


def lint(path) -> subprocess.CompletedProcess:
    "What hadolint says; it lies beside this Python"
    return subprocess.run([Path(sys.executable).with_name("hadolint"), path], capture_output=True, text=True)


# Each is what its tool reads

def test_the_containerfile_has_no_fault_that_hadolint_knows(tmp_path):
    said = lint(DEPLOY/"Containerfile")
    assert not said.returncode, said.stdout
    (tmp_path/"Containerfile").write_text(read_text(DEPLOY/"Containerfile").replace("USER 65532:65532", "USER root").replace('CMD ["serve"', "CMD [serve"), encoding="utf-8")
    assert {"DL3002", "DL3025"} <= set(re.findall(r"DL\d+", lint(tmp_path/"Containerfile").stdout))


def test_the_compose_file_keeps_to_its_specification():
    read = compose_spec.PyOptions(apply_merge=True).from_yaml
    text = json.dumps(COMPOSE)
    read(text).validate()
    for old, new in (('"inside", "outside"', '"inside", "attic"'), ('"keys", "target"', '"key", "target"'), ('"75s"', '"soon"'), ('"read_only"', '"read_onl"')):
        assert old in text
        with pytest.raises(ValueError): read(text.replace(old, new)).validate()


def test_what_is_for_kubernetes_keeps_to_its_schemas():
    objects = [parse_yaml(text, "kubernetes.yaml") for text in read_text(DEPLOY/"kubernetes.yaml").split("\n---\n")]
    for item in objects: kubernetes_validate.validate(item, "1.37", strict=True)
    assert {item["kind"] for item in objects} == {"Namespace", "PersistentVolumeClaim", "NetworkPolicy", "Service", "Deployment", "CronJob"}
    [policy] = [item["spec"] for item in objects if item["kind"] == "NetworkPolicy"]
    assert policy["egress"] == [] and set(policy["policyTypes"]) == {"Ingress", "Egress"} and policy["podSelector"] == {}
    broken = objects[-1] | dict(spec=objects[-1]["spec"] | dict(shedule="* * * * *"))
    with pytest.raises(kubernetes_validate.ValidationError): kubernetes_validate.validate(broken, "1.37", strict=True)


def stage_units(folder) -> list:
    "The units, for a machine on which /srv/forge is another folder"
    (folder/"srv"/".venv"/"bin").mkdir(parents=True)
    (folder/"srv"/".venv"/"bin"/"python").symlink_to(sys.executable)
    for path in UNITS.iterdir(): (folder/path.name).write_text(read_text(path).replace("/srv/forge", str(folder/"srv")), encoding="utf-8")
    return sorted(path for path in folder.iterdir() if path.suffix in (".service", ".timer"))


@needs_systemd
def test_systemd_knows_every_line_of_the_units(tmp_path):
    for path in stage_units(tmp_path):
        said = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True)
        assert not said.returncode and path.name not in said.stderr, said.stderr
    path = tmp_path/"forge-serve.service"
    path.write_text(read_text(path).replace("PrivateTmp=yes", "PrivateTemp=yes").replace(".venv/bin/python", ".venv/bin/snake"), encoding="utf-8")
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True).stderr
    assert "PrivateTemp" in said and "snake is not executable" in said


@needs_systemd
def test_little_is_left_open_by_the_units(tmp_path):
    if "--offline" not in subprocess.run(["systemd-analyze", "--help"], capture_output=True, text=True).stdout: pytest.skip("this systemd judges no unit that is not loaded; version 250 does")
    def judge(path, threshold): return subprocess.run(["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", path], capture_output=True, text=True)
    for path in stage_units(tmp_path):
        if path.suffix == ".service": assert not (said := judge(path, 15)).returncode, said.stdout
    path = tmp_path/"forge-serve.service"
    path.write_text("\n".join(line for line in read_text(path).splitlines() if not line.startswith(("IPAddress", "SystemCall", "PrivateUsers"))), encoding="utf-8")
    assert judge(path, 15).returncode


# They agree with each other, with config/serve.yaml, with the parser and with the parts of the project

def test_every_command_line_is_one_that_the_parser_takes():
    verbs = typer.main.get_command(cli.app).commands
    for recipe in list_recipes(DEPLOY):
        verb, *options = recipe.command
        values = verbs[verb].make_context(verb, list(options)).params
        if verb == "monitor": assert values["canary"] and values["stage"] == "production"
        else: assert (values["port"], values["host"]) == (8321, "127.0.0.1" if "systemd" in recipe.name else "0.0.0.0"), recipe.name
    with pytest.raises(typer.TyperException): verbs["serve"].make_context("serve", ["--hots", "0.0.0.0"])


def test_the_port_is_the_same_everywhere():
    texts = {name: read_text(DEPLOY/name) for name in ("Containerfile", "compose.yaml", "haproxy.cfg", "kubernetes.yaml", "systemd/forge-serve.service")}
    assert dict(take_last_stage(read_instructions(DEPLOY/"Containerfile")))["EXPOSE"] == "8321" and "http://127.0.0.1:8321/health" in texts["Containerfile"]
    assert COMPOSE["services"]["door"]["ports"] == ["127.0.0.1:8321:8321"] and "server forge forge:8321" in texts["haproxy.cfg"] and "bind :8321" in texts["haproxy.cfg"]
    [port] = PODS["Deployment"]["containers"][0]["ports"]
    assert port["containerPort"] == 8321 and all(PODS["Deployment"]["containers"][0][f"{name}Probe"]["httpGet"] == dict(path="/health", port=port["name"]) for name in ("startup", "readiness", "liveness"))


def test_nobody_is_root_or_may_gain_rights():
    assert IMAGE.user == "65532:65532" and not any(recipe.user.startswith(("root", "0")) for recipe in list_recipes(DEPLOY))
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"] and service["pids_limit"], name
    assert COMPOSE["networks"]["inside"] == dict(internal=True) and COMPOSE["services"]["forge"]["networks"] == ["inside"] and not COMPOSE["services"]["door"].get("secrets")
    for pod in PODS.values():
        [container] = pod["containers"]
        assert container["securityContext"] == dict(allowPrivilegeEscalation=False, readOnlyRootFilesystem=True, capabilities=dict(drop=["ALL"])) and container["resources"]["limits"]["memory"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == dict(type="RuntimeDefault") and pod["automountServiceAccountToken"] is False


def test_server_and_canary_live_in_the_same_sandbox():
    serve, canary = map(read_unit, SERVICES)
    for name in SANDBOX: assert serve[name] == canary[name], name
    assert canary["PrivateNetwork"] == ["yes"] and read_unit(UNITS/"forge-canary.timer")["OnCalendar"] and all("forge-alarm@%n.service" in unit["OnFailure"] for unit in (serve, canary))
    deployment, job = PODS["Deployment"], PODS["CronJob"]
    shared = [mount for mount in deployment["containers"][0]["volumeMounts"] if mount["name"] != "secrets"]
    assert job["containers"][0]["volumeMounts"] == shared and job["securityContext"] == deployment["securityContext"] and job["containers"][0]["image"] == deployment["containers"][0]["image"]
    assert job["restartPolicy"] == "Never" and "0440" in read_text(DEPLOY/"kubernetes.yaml")


def test_an_answer_is_finished_before_the_server_is_killed():
    needed = load_settings(ROOT/"config"/"serve.yaml", ServeSettings).answer_seconds + 1
    told = [COMPOSE["services"]["forge"]["stop_grace_period"].removesuffix("s"), PODS["Deployment"]["terminationGracePeriodSeconds"], read_unit(SERVICES[0])["TimeoutStopSec"][0]]
    assert all(float(seconds) > needed for seconds in told)
    door = {line.split()[1]: line.split()[2] for line in read_text(DEPLOY/"haproxy.cfg").splitlines() if line.strip().startswith("timeout")}
    assert all(float(door[name].removesuffix("s")) > needed for name in ("client", "server"))


def test_what_is_copied_is_there_and_let_into_the_build():
    allowed = {line[1:] for line in read_text(DEPLOY/"Containerfile.dockerignore").splitlines() if line.startswith("!")}
    copied = {word for name, text in read_instructions(DEPLOY/"Containerfile") if name == "COPY" and not text.startswith("--from") for word in text.split()[:-1]}
    assert {word.replace("wheel[s]", "wheels") for word in copied} == allowed
    ignored = subprocess.run(["git", "check-ignore", *(f"{name}/a" for name in sorted(allowed))], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert ignored == ["wheels/a"] and all((ROOT/name).exists() for name in allowed - {"wheels"})


def test_a_command_through_a_shell_is_refused(tmp_path):
    (tmp_path/"Containerfile").write_text(read_text(DEPLOY/"Containerfile").replace('CMD ["serve", "--host", "0.0.0.0", "--port", "8321"]', "CMD serve"), encoding="utf-8")
    with pytest.raises(Invalid, match="CMD is no list"): describe_image(tmp_path/"Containerfile")


# The image's own command, with what the image has and nothing else

@pytest.fixture(scope="module")
def shipped(made, keys, tmp_path_factory):  # noqa: F811
    "A project that serves a signed release of a small model, with the forms and answers that a canary asks"
    copy = clone_of(made, tmp_path_factory.mktemp("shipped")/"project")
    root, gguf = copy.root, copy.root/"made"/"gguf"/"model.gguf"
    pipeline = PIPELINE.replace("made/gguf artifacts/export/gguf", "made/gguf artifacts/export/gguf-f16 && cp made/answers.jsonl artifacts/export/").replace("rm -rf artifacts/export/gguf ", "rm -rf artifacts/export ")
    (root/"dvc.yaml").write_text(pipeline.replace("outs: [artifacts/export/gguf]", "outs: [artifacts/export/gguf-f16, artifacts/export/answers.jsonl]"), encoding="utf-8")
    shutil.rmtree(root/"made"/"model")
    save_model(root/"made"/"model", steps=80)
    gguf.unlink()
    write_gguf(root/"made"/"model", gguf)
    answers = open_llama(gguf, 512).answer([item["prompt"] for item in ITEMS], 24)
    write_jsonl(root/"made"/"answers.jsonl", [dict(format="gguf-f16", id=item["id"], **answer) for item, answer in zip(ITEMS, answers)])
    write_jsonl(root/"made"/"eval_set"/"items.jsonl", ITEMS)
    write_verdict(root)
    copy(f"dvc repro -q && git add -A && git commit -qm model && FORGE_SIGNING_KEY={keys/'release.pem'} FORGE_PUBLIC_KEY= python -m forge_nb.ops.cli promote --to production --because first")
    return root


class Container:
    "What the Containerfile makes, below a folder: the environment, what is copied, links and folders; mounts are copies that nobody may write to"
    def __init__(self, base: Path, project: Path, secrets: Path):
        self.base, self.home = base, base/"srv"/"forge"
        packages = base/"opt"/"venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", packages], check=True)
        [found] = packages.glob("lib/*/site-packages")
        (found/"packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        self.home.mkdir(parents=True)
        for words, folder in IMAGE.copied:
            for word in words:
                target = self.home/folder/(Path(word).name if len(words) > 1 or folder.endswith("/") else "")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(ROOT/word, target, ignore=shutil.ignore_patterns("__pycache__")) if (ROOT/word).is_dir() else shutil.copy(ROOT/word, target)
        line = self.place(IMAGE.prepared)
        subprocess.run(["sh", "-c", line if not os.getuid() else line.replace("-o 65532 -g 65532", "")], cwd=self.home, env=self.environment, check=True)
        for name in (".git", "releases", "served"): shutil.copytree(project/name, self.home/name, symlinks=True, dirs_exist_ok=True)
        shutil.copytree(secrets, base/"run"/"secrets"/"forge")
        self.lock()

    def place(self, text: str) -> str:
        "The same text, for paths below the folder"
        for path in ("/srv/forge", "/opt/venv", "/run/secrets"): text = text.replace(path, f"{self.base}{path}")
        return text

    def lock(self):
        "Let nobody write but where the image says"
        for folder, _, names in os.walk(self.base):
            if Path(folder).relative_to(self.base).as_posix().startswith(("srv/forge/runs", "srv/forge/.cache", "srv/forge/reports/html")): continue
            for path in (Path(folder), *(Path(folder)/name for name in names)):
                if not path.is_symlink(): path.chmod(path.stat().st_mode & ~0o222 | 0o444)

    @property
    def environment(self) -> dict: return {name: self.place(value) for name, value in IMAGE.environment.items()}

    def start(self, words: list, **options) -> subprocess.Popen:
        "Run words as the image's user, with its variables alone; root reads what lies in its own folders still, and writes nowhere"
        keep = "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search --bounding-set=-all,+dac_read_search"
        user = f"setpriv --reuid {IMAGE.user.split(':')[0]} --regid {IMAGE.user.split(':')[1]} --clear-groups {keep}".split() if not os.getuid() else []
        python = str(self.base/"opt"/"venv"/"bin"/"python")
        return subprocess.Popen([*user, python if words[0] == "python" else words[0], *words[1:]], cwd=self.home, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    def __call__(self, *words) -> tuple:
        running = self.start([*IMAGE.entry, *words])
        out, err = running.communicate()
        return running.returncode, out, err


@pytest.fixture(scope="module")
def container(shipped, keys, tmp_path_factory) -> Container:  # noqa: F811
    if not os.getuid() and not shutil.which("setpriv"): pytest.skip("root without setpriv; on Debian, `apt install util-linux`")
    base, secrets = Path(tempfile.mkdtemp()), tmp_path_factory.mktemp("secrets")  # pytest's own folders are closed to other users, anew with every session
    base.chmod(0o755)
    (secrets/"config").mkdir()
    write_keys(secrets, dict(kim=KeyEntry(sha256=hash_key("fk-kim"))))
    shutil.move(secrets/"config"/"keys.yaml", secrets/"keys.yaml")
    (secrets/"config").rmdir()
    shutil.copy(keys/"release.pub", secrets)
    try: yield Container(base, shipped, secrets)
    finally:
        for folder, _, _ in os.walk(base): Path(folder).chmod(0o755)
        shutil.rmtree(base)


def ask(port: int, path: str, sent=None, key: str = "") -> tuple:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST" if sent else "GET", path, json.dumps(sent) if sent else None, {"Authorization": f"Bearer {key}"} if key else {})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def list_files(folder) -> set: return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and ".git/" not in str(path)}


def test_the_images_own_command_answers_and_ends_gently(container):
    "Only what the Containerfile copies, its variables, its user; nothing is written but log and caches"
    before = list_files(container.base)
    assert IMAGE.command[-2:] == ["--port", "8321"]
    running = container.start([*IMAGE.entry, *IMAGE.command[:-1], "0"])  # any free port: others may run on this machine
    try:
        line = running.stdout.readline()
        assert "forge@v1.0.0 (production, llama) at http://0.0.0.0:" in line, line + running.stderr.read()
        port = int(line.split("/v1")[0].rpartition(":")[2])
        assert ask(port, "/health") == (200, dict(status="ok", release="forge@v1.0.0", waiting=0))
        sent = dict(model="forge", messages=[dict(role="user", content="What does a bolt M3 cost?")])
        assert ask(port, "/v1/chat/completions", sent)[0] == 401
        status, answer = ask(port, "/v1/chat/completions", sent, "fk-kim")
        assert status == 200 and answer["choices"][0]["message"]["content"] and answer["choices"][0]["message"]["annotations"]
        probe = json.loads(dict(take_last_stage(read_instructions(DEPLOY/"Containerfile")))["HEALTHCHECK"].partition("CMD ")[2])
        assert [container.start([*probe[:-1], probe[-1].replace(":8321", f":{asked}")]).wait() for asked in (port, 9)] == [0, 1]
    finally: running.send_signal(signal.SIGTERM)
    assert running.wait(120) == 0
    written = {path.partition("srv/forge/")[2] for path in list_files(container.base) - before}
    assert written == {"runs/requests/requests.jsonl", ".cache/perimeter/sitecustomize.py"}, written


def test_the_canary_runs_on_a_schedule_before_anybody_asked(container):
    "Exit 0 while the release is what it was, though nothing was logged; 1 once it answers otherwise; figures for Prometheus both times"
    shutil.rmtree(container.home/"runs"/"requests", ignore_errors=True)
    code, out, err = container("monitor", "--canary")
    assert code == 0 and f"canary: 100 % of {len(ITEMS)} answers of gguf-f16 are as released" in out, err
    figures = container.home/"runs"/"monitor"/"metrics.prom"
    assert "forge_monitor_canary 100.0" in read_text(figures) and "forge_monitor_alarm 0.0" in read_text(figures)
    answers = container.home/"releases"/"v1.0.0"/"export"/"answers.jsonl"
    text = read_text(answers)
    answers.chmod(0o644)
    answers.write_text(re.sub(r'"tokens": ?\[', '"tokens": [7, ', text), encoding="utf-8")
    try: code, out, err = container("monitor", "--canary")
    finally: answers.write_text(text, encoding="utf-8")
    assert code == 1 and out.startswith("alarm: 0 % of") and "forge_monitor_alarm 1.0" in read_text(figures), err


def test_a_release_that_was_changed_or_has_another_key_is_not_served(container, keys):  # noqa: F811
    served, public = container.home/"releases"/"v1.0.0"/"model"/"config.json", container.base/"run"/"secrets"/"forge"/"release.pub"
    for path, text, words in ((served, "{}", "model/config.json"), (public, read_text(keys/"other.pub"), "release.sig")):
        right = read_text(path)
        path.chmod(0o644)
        path.write_text(text, encoding="utf-8")
        try: code, out, err = container(*IMAGE.command)
        finally: path.write_text(right, encoding="utf-8")
        assert (code, out) == (2, "") and words in err and err.count("\n") == 1, err


def test_without_the_secret_nobody_is_served(container):
    keys_file = container.base/"run"/"secrets"/"forge"/"keys.yaml"
    keys_file.parent.chmod(0o755)
    keys_file.rename(keys_file.with_name("away"))
    try: code, out, err = container(*IMAGE.command)
    finally: keys_file.with_name("away").rename(keys_file)
    assert (code, out) == (2, "") and "other machines could ask" in err
