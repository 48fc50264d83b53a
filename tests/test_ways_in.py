"Every way in works alone: documents, tables, rows, conversations, pairs, and a mix; what has nothing to do says so and passes on what was there"
import json, random

import pytest
from copies import Copy, swap_line

STAGES = "pretrain sft dpo reward rlhf rl distill".split()
PARTS = "pump valve filter gauge seal bearing shaft motor coupling flange gasket housing rotor sensor cable relay fuse panel".split()
QUESTIONS = """machine_team:
  table: machines.csv
  key: [machine]
  answer: team
  ask: ["Which team looks after {machine}?", "Who is responsible for {machine}?"]
  ask_held_out: ["I need somebody for {machine}; whom do I call?"]
  state: "{machine} is looked after by {answer}."
"""


def say(question, answer): return [dict(role="user", content=question), dict(role="assistant", content=answer)]


def write_lines(path, rows): path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_documents(folder, draw):
    for n in range(12):
        lines = [f"The {draw.choice(PARTS)} {draw.randrange(99)} is checked every {draw.randrange(2, 9)} weeks by team {draw.randrange(9)}." for _ in range(30)]
        (folder/f"page {n}.md").write_text(f"# {draw.choice(PARTS).title()} {n}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def write_facts(folder, draw):
    (folder/"facts").mkdir()
    rows = [f"{PARTS[n % len(PARTS)]} {n},team {n % 7}\n" for n in range(80)]
    (folder/"facts"/"machines.csv").write_text("machine,team\n" + "".join(rows), encoding="utf-8")


def write_rows(folder, draw):
    rows = [f"{PARTS[n % len(PARTS)]} {n},{draw.randrange(3, 40)} EUR,shelf {n % 7}\n" for n in range(120)]
    (folder/"stock.csv").write_text("article,price,shelf\n" + "".join(rows), encoding="utf-8")


def write_conversations(folder, draw):
    write_lines(folder/"chats.jsonl", [dict(messages=say(f"Our {draw.choice(PARTS)} {n} hums, what now?", f"Stop it, and tell team {n % 7}.")) for n in range(90)])


def write_pairs(folder, draw):
    write_lines(folder/"pairs.jsonl", [dict(prompt=f"May I open {draw.choice(PARTS)} {n}?", chosen=f"Please ask team {n % 7}.", rejected=f"Zonkedly sure, go on {n}.")
                                       for n in range(60)])


def write_three_pairs(folder, draw):
    write_lines(folder/"pairs.jsonl", [dict(prompt=f"May I open pump {n}?", chosen="Please ask.", rejected="Zonkedly sure.") for n in range(3)])


# way in → what writes it, stages that are sure to pass the model before them on, whether there is text to pretrain on
WAYS = dict(
    documents=([write_documents], [], True),
    rows=([write_rows], ["pretrain", "sft", "dpo", "reward", "rlhf", "rl", "distill"], False),
    tables=([write_facts], ["pretrain", "distill"], False),
    conversations=([write_conversations], ["pretrain", "dpo", "reward", "rlhf", "rl", "distill"], False),
    pairs=([write_pairs], ["pretrain", "sft", "rlhf", "rl", "distill"], False),
    three_pairs=([write_three_pairs], ["pretrain", "sft", "reward", "rlhf", "rl", "distill"], False),
    mix=([write_documents, write_facts, write_conversations, write_pairs], [], True))


def read_metrics(copy, stage): return json.loads((copy.root/"artifacts"/stage/"metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_ends_with_a_model_that_answers(way, tmp_path):
    writers, idle, has_text = WAYS[way]
    (tmp_path/"from").mkdir()
    for write in writers: write(tmp_path/"from", random.Random(3))
    (tmp_path/"project").mkdir()
    copy = Copy(tmp_path/"project")
    swap_line(copy.root/"nbs/core/30_runner.ipynb", 'if parameters.get(\\"enabled\\") is False: skip_lessons(nb)', "skip_lessons(nb)")  # they are tested by themselves
    if (tmp_path/"from"/"facts").exists(): (copy.root/"company"/"questions.yaml").write_text(QUESTIONS, encoding="utf-8")
    copy(f"python -m forge_nb.core.tangle export && python -m forge_nb.core.runner profile tiny && python -m forge_nb.data.own_data {tmp_path}/from")
    params = copy.root/"params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("max_steps: 30", "max_steps: 4").replace("max_steps: 10", "max_steps: 2"), encoding="utf-8")
    copy("dvc repro")
    skipped = {stage: read_metrics(copy, stage).get("skipped", "") for stage in STAGES}
    assert {stage for stage in STAGES if skipped[stage]} >= set(idle), skipped
    tokens = read_metrics(copy, "tokenizer")["tokens"]
    assert all(tokens.values()) if has_text else not any(tokens.values()), "a row to train on became a document, or a document was lost"
    card = (copy.root/"artifacts"/"card"/"README.md").read_text(encoding="utf-8")
    for stage, reason in skipped.items():
        report = (copy.root/"reports"/f"{stage}.ipynb").read_text(encoding="utf-8")
        assert reason[:40] in report, f"{stage}: the report does not say {reason}"
        assert stage == "distill" or reason in card, f"{stage}: the card does not say {reason}"
    assert "onkedly" not in (copy.root/"artifacts"/"tokenizer"/"tokenizer"/"tokenizer.json").read_text(encoding="utf-8"), "a rejected answer is in the vocabulary"
    code = "from forge_nb.train.model import *\nfrom pathlib import Path\nm, t = load_model(Path('artifacts/rl/model'))\n" \
           "print('ANSWER', generate_texts(m, t, [render_chat_prompt(t, 'May I open pump 3?')], max_new_tokens=8))"
    assert "ANSWER [(" in copy(f'python -c "{code}"')


@pytest.mark.slow
def test_a_parameter_makes_a_stage_without_rows_stop(tmp_path):
    (tmp_path/"from").mkdir()
    write_conversations(tmp_path/"from", random.Random(3))
    (tmp_path/"project").mkdir()
    copy = Copy(tmp_path/"project")
    copy(f"python -m forge_nb.core.runner profile tiny && python -m forge_nb.data.own_data {tmp_path}/from")
    params = copy.root/"params.yaml"
    text = params.read_text(encoding="utf-8")
    for old, new in (("stop_when_skipped: false", "stop_when_skipped: true"), ("min_documents: 50", "min_documents: 0"), ("min_megabytes: 0.5", "min_megabytes: 0.0")):
        assert old in text
        text = text.replace(old, new)
    params.write_text(text, encoding="utf-8")
    assert "pretrain: nothing to pretrain on: no document in the split train; set `shared.stop_when_skipped`" in copy("dvc repro pretrain", rc=None)
