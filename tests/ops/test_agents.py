"`forge mcp`: a program that speaks the protocol works a cycle; what is a person's it may not do, and what it forges is noticed"
import asyncio, sys

import pytest
from copies import COMMIT, ENV, sibling, swap_line
from jsonschema import validate
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from forge_nb.core.dvc import parse_out_hash
from forge_nb.core.project import read_json, write_json
from forge_nb.evals.release import seal_verdict
from forge_nb.ops.agents import LONG_VERBS, QUICK_VERBS, WITHHELD_VERBS
from forge_nb.ops.cli import ANSWER_MODELS, app


def act(root, script, *options, **variables):
    "Start the server in a project and let a script of calls run against it"
    server = StdioServerParameters(command=sys.executable, args=["-m", "forge_nb.ops.cli", "mcp", *options], cwd=str(root), env=ENV | variables)
    async def play():
        async with stdio_client(server) as streams, ClientSession(*streams) as session:
            await session.initialize()
            return await script(Agent(session))
    return asyncio.run(play())


class Agent:
    "A program at the other end: it calls tools, and waits for jobs"
    def __init__(self, session): self.session = session

    async def call(self, tool, **arguments) -> dict:
        "Structured content, which the client held against the tool's schema; a quick verb on a busy machine is waited for"
        result = await self.session.call_tool(tool, arguments)
        answer = result.structured_content
        if result.is_error: assert answer["error"] == result.content[0].text and "\n" not in answer["error"]
        while tool in QUICK_VERBS and answer.get("state") == "running": answer = await self.call("job", job=answer["job"], wait=60)
        if tool in QUICK_VERBS and "asked" in answer: answer = answer["result"] | dict(exit_code=answer["exit_code"])
        return answer

    async def ask(self, tool, **arguments) -> dict:
        answer = await self.call(tool, **arguments)
        assert not answer.get("error"), answer
        return answer

    async def refused(self, tool, **arguments) -> tuple:
        answer = await self.call(tool, **arguments)
        assert answer.get("error"), answer
        return answer["exit_code"], answer["error"]

    async def finish(self, tool, **arguments) -> dict:
        "Start a long verb and poll its job to the end"
        job = await self.ask(tool, **arguments)
        assert job["state"] == "running" and job["result"] is None, "a long verb answers at once"
        while job["state"] == "running": job = await self.call("job", job=job["job"], wait=60)
        return job


@pytest.fixture(scope="module")
def project(chain, tmp_path_factory): return sibling(chain, tmp_path_factory.mktemp("agents")/"project")


@pytest.fixture
def cheated(project):
    "The finished project, and after the test as it was"
    yield project
    project("git checkout -q . && dvc checkout -q --force")


def test_every_verb_says_whether_a_program_may_run_it():
    "A new verb is not offered until somebody has thought of it; those that were thought of exist"
    verbs = {command.name for command in app.registered_commands}
    assert {*QUICK_VERBS, *LONG_VERBS, *WITHHELD_VERBS} <= verbs
    assert not {*QUICK_VERBS, *LONG_VERBS} - set(ANSWER_MODELS), "a tool needs a schema of its answer"


def test_what_is_offered(bare):
    async def look(agent): return (await agent.session.list_tools()).tools
    tools = {tool.name: tool for tool in act(bare.root, look)}
    assert set(tools) == {*QUICK_VERBS, *LONG_VERBS, "job", "jobs", "cancel"}
    for tool in tools.values():
        assert tool.input_schema["type"] == tool.output_schema["type"] == "object" and tool.input_schema["additionalProperties"] is False and tool.description
        assert not {"groups", "record", "plot", "as_json"} & set(tool.input_schema["properties"])
        validate(dict(error="no", exit_code=2), tool.output_schema)
    assert tools["search"].input_schema["required"] == ["query"] and tools["search"].input_schema["properties"]["k"]["default"] == 5


def test_what_is_a_persons_is_refused_even_with_a_key(bare, tmp_path):
    before = bare("git status --porcelain && git tag")
    async def script(agent): return {verb: await agent.refused(verb) for verb in WITHHELD_VERBS}
    for verb, (rc, text) in act(bare.root, script, FORGE_SIGNING_KEY=str(tmp_path/"key.pem")).items():
        assert rc == 2 and f"`{verb}` is not done over MCP" in text and f"runs `forge {verb}` in a terminal" in text
    assert bare("git status --porcelain && git tag") == before


def test_errors_are_the_verbs_own_sentences(bare):
    async def script(agent):
        return [await agent.refused("whereis", docs=["docs/no-such-page.txt"]), await agent.refused("search", query="bolt", k="many"),
                await agent.refused("search", query="bolt", groups="hr"), await agent.refused("verify-release", version="v9.9.9"),
                await agent.refused("job", job="../../etc/passwd"), await agent.refused("nosuch"), await agent.refused("estimate", plot="x.png"),
                await agent.refused("run", settings=["gate.waiver_name=me"]), await agent.refused("sweep", axes=["freeze.enforce=true,false"])]
    found = act(bare.root, script)
    assert [rc for rc, _ in found] == [3, 2, 2, 3, 3, 2, 2, 2, 2], found
    for (_, text), words in zip(found, ["no document `docs/no-such-page.txt`", "`k`", "`groups`", "v9.9.9", "there is no job", "nosuch", "`plot`",
                                        "a person's decision", "a person's decision"]): assert words in text


def test_options_and_words_are_not_mixed_up(bare):
    "What a program puts into a field stays in it, whatever it looks like"
    rc, text = act(bare.root, lambda agent: agent.refused("whereis", docs=["--history", "-h"]))
    assert rc == 3 and "no document `--history`" in text


def test_a_long_verb_is_a_job_that_outlives_the_server(project):
    async def start(agent): return await agent.ask("run", settings=["ngram.order=3"], to="ngram")
    async def rest(agent):
        known = [job["job"] for job in (await agent.ask("jobs"))["jobs"]]
        job = await agent.ask("job", job=started["job"])
        while job["state"] == "running": job = await agent.call("job", job=started["job"], wait=60)
        return known, job
    started = act(project.root, start)
    known, job = act(project.root, rest)
    assert started["state"] == "running" and started["job"] in known and job["state"] == "done" and job["exit_code"] == 0
    assert job["result"]["settings"] == {"ngram.order": 3} and "ngram" in job["result"]["ran"]
    assert {f["stage"] for f in job["result"]["figures"]} == {"ngram"} and not project("git status --porcelain")


def test_a_job_is_cancelled_and_puts_away_what_it_had_begun(project):
    async def script(agent):
        job = await agent.ask("run", settings=["ngram.order=2"], to="ngram")
        while not job["progress"]: job = await agent.ask("job", job=job["job"], wait=.2)
        return await agent.call("cancel", job=job["job"]), await agent.refused("cancel", job=job["job"])
    known = project("dvc exp list --name-only")
    job, again = act(project.root, script)
    assert job["state"] == "cancelled" and again[0] == 3 and "is over: cancelled" in again[1]
    assert project("dvc exp list --name-only") == known and "Data and pipelines are up to date" in project("dvc status")


async def work(agent, setting, to) -> str:
    "A cycle: look, estimate, try one change, read what came of it, report"
    looked = await agent.ask("check")
    assert looked["problems"] == []
    expected = await agent.ask("estimate", seconds=1)
    here = await agent.ask("results")
    job = await agent.finish("run", settings=[setting], to=to)
    assert job["state"] == "done", job["error"]
    there = await agent.ask("results", experiment=job["result"]["experiment"])
    stage = setting.split(".")[0]
    assert here["metrics"][stage] != there["metrics"][stage] and there["verdict"] == job["result"]["verdict"]
    moved = [f for f in job["result"]["figures"] if f["stage"] == stage]
    assert moved and here["experiment"] == ""
    return f"{setting}: expected {expected['total']['seconds']:.0f} s for all, took {job['seconds']:.0f} s; {len(moved)} figures of {stage} moved; gate: {there['verdict']}"


def test_an_agent_works_a_cycle(project):
    before = project("git rev-parse HEAD && git status --porcelain")
    said = act(project.root, lambda agent: work(agent, "ngram.order=3", "ngram"))
    assert said.startswith("ngram.order=3: expected ") and "figures of ngram moved; gate: " in said and not said.endswith("None")
    assert project("git rev-parse HEAD && git status --porcelain") == before, "the work tree is not as it was"


@pytest.mark.slow
def test_an_agent_trains_with_another_value_up_to_the_gate(project):
    "Proves: a program without a shell checks, estimates, trains with one parameter changed and reads the gate's verdict, over MCP alone"
    before = project("git rev-parse HEAD && git status --porcelain")
    said = act(project.root, lambda agent: work(agent, "sft.learning_rate=0.002", "gate"))
    assert "figures of sft moved; gate: " in said and not said.endswith("None")
    assert project("git rev-parse HEAD && git status --porcelain") == before


def test_loosened_rules_are_noticed_by_the_gate(cheated):
    swap_line(cheated.root/"config/rules/tiny.yaml", "max_drop: 0.5", "max_drop: 0.9")
    job = act(cheated.root, lambda agent: agent.finish("run", to="gate"))
    assert job["result"]["verdict"] == "fail" and "config/rules/tiny.yaml is not what it was in commit" in job["result"]["because"][0]


@pytest.fixture
def frozen(cheated):
    "The same with an exam that is frozen and committed"
    shipped = cheated("git rev-parse HEAD").strip()
    swap_line(cheated.root/"params.yaml", "enforce: false", "enforce: true")
    cheated(f"git rm -q eval_set.lock && {COMMIT} -am 'another exam' && dvc repro -q freeze && git add -A && {COMMIT} -m frozen")
    yield cheated
    cheated(f"git reset -q --hard {shipped}")


def test_what_grades_the_exam_is_frozen(frozen):
    "A kind number of the company's own, given after the exam was frozen, stops the run before anything is trained"
    with open(frozen.root/"company/kpi.py", "a", encoding="utf-8") as f: f.write("\n\ndef kpi(*given, **more): return 1.0\n")
    job = act(frozen.root, lambda agent: agent.finish("run", to="freeze"))
    assert job["state"] == "failed" and job["exit_code"] == 1 and "company/kpi.py" in job["error"] and "forge freeze --because" in job["error"], job


@pytest.mark.parametrize("is_lock_deleted", [False, True])
def test_an_easier_exam_is_refused_also_where_its_lock_was_deleted(frozen, is_lock_deleted):
    swap_line(frozen.root/"company/eval_sets/out_of_domain/general.jsonl", "Which metal is liquid at room", "Which metal runs at room")
    if is_lock_deleted: (frozen.root/"eval_set.lock").unlink()
    job = act(frozen.root, lambda agent: agent.finish("run", to="freeze"))
    said = "no freeze with a reason made it so" if is_lock_deleted else "forge freeze --because"
    assert job["state"] == "failed" and said in job["error"], job


def test_a_forged_verdict_is_noticed_and_written_anew(cheated):
    path = cheated.root/"artifacts/gate/verdict.json"
    honest = path.read_bytes()
    write_json(path, seal_verdict(read_json(path) | dict(verdict="pass", because=[], slices=[])))
    async def script(agent): return await agent.refused("results"), await agent.finish("run", to="gate"), await agent.ask("results")
    refused, job, _ = act(cheated.root, script)
    assert refused[0] == 2 and "artifacts/gate/verdict.json is not what the stage `gate` wrote" in refused[1]
    assert job["state"] == "done" and path.read_bytes() == honest


def test_a_forged_object_of_the_cache_is_noticed(cheated):
    digest = parse_out_hash((cheated.root/"dvc.lock").read_text(encoding="utf-8"), "artifacts/curate/documents/train.jsonl")
    path = cheated.root/".dvc/cache/files/md5"/digest[:2]/digest[2:]
    honest, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o644); path.write_bytes(honest.replace(b" the ", b" a   ", 1)); path.chmod(mode)
    job = act(cheated.root, lambda agent: agent.finish("verify", stages=["ngram"]))
    path.chmod(0o644); path.write_bytes(honest); path.chmod(mode)
    assert job["state"] == "failed" and "artifacts/curate/documents/train.jsonl" in job["error"], job
