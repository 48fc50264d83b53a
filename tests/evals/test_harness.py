"""Ten tasks, asked by lm-eval's own command line and through `ForgeLM`: the same answers, the same choices, likelihoods within 1e-4."""
import json, math, subprocess, sys
from functools import partial

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from copies import ENV
from forge_nb.core.project import ROOT, write_jsonl
from forge_nb.evals.checkpoints import Checkpoint
from forge_nb.evals.general import read_general
from forge_nb.evals.harness import ForgeLM
from forge_nb.evals.own_tasks import choose_fitting
from forge_nb.evals.poison import ask_cases
from forge_nb.evals.tasks import ask_tasks, score_checkpoint, write_tasks
from forge_nb.evaluate import SCORE_READERS, list_writers
from forge_nb.tokenizer import train_tokenizer
from forge_nb.train.model import save_model

WORDS = "the cat and the hat and the bat sat on a mat, it was flat. Which one is `red`? It is `the hat`."
ANIMALS = ["cat", "bat", "hat", "rat", "mat", "gnat", "ant", "wombat"]
ROWS = [dict(id=n, question=f"the {a} and the {b} sat on a mat, which is {c}?", answer=f" the {a}", choices=[f" the {a}", f" {b}", f" {c} and {a} on a mat"], gold=n % 3,
             letters=["a", "b", "c"], text=f"the {a}. " * (n + 1), long=f"the {a} and the {b} sat on a {c}. " * (6 * n + 9))
        for n, (a, b, c) in enumerate(zip(ANIMALS, ANIMALS[2:] + ANIMALS[:2], ANIMALS[3:] + ANIMALS[:3]))]
HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl, train: {folder}/shots.jsonl}}}}
test_split: test
"""
WRITE = "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\nmetric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
PICK = "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_target: gold\n"
SHOTS = "num_fewshot: 2\nfewshot_split: train\nfewshot_config: {sampler: first_n}\n"
TASKS = dict(
    write=WRITE + 'generation_kwargs: {until: ["."], max_gen_toks: 16}\n',
    write_filtered=WRITE + 'generation_kwargs: {until: [" on", "?"], max_gen_toks: 20, do_sample: false}\nfilter_list: [{name: word, filter: [{function: regex, regex_pattern: "(at|the)"}, {function: take_first}]}]\n',
    write_shots=WRITE + SHOTS + "generation_kwargs: {until: [], max_gen_toks: 9}\n",
    pick=PICK + 'doc_to_choice: choices\ntarget_delimiter: ""\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: acc_norm, aggregation: mean, higher_is_better: true}]\n',
    pick_shots=PICK + SHOTS + 'doc_to_choice: choices\ntarget_delimiter: ""\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n',
    pick_letter=PICK + 'doc_to_choice: letters\ntarget_delimiter: " "\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n',
    guess='output_type: loglikelihood\ndoc_to_text: question\ndoc_to_target: answer\ntarget_delimiter: ""\nmetric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}, {metric: acc, aggregation: mean, higher_is_better: true}]\n',
    guess_alone='output_type: loglikelihood\ndoc_to_text: ""\ndoc_to_target: question\nmetric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]\n',
    read='output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: text\nmetric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]\n',
    read_windows='output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: long\nmetric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]\n')


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A small model that writes differently to different questions, ten tasks and a group of them"
    folder = tmp_path_factory.mktemp("harness")
    tokenizer = train_tokenizer([WORDS] * 9, 300)
    torch.manual_seed(1)
    shape = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=192, initializer_range=.3)
    save_model(Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1, **shape)), tokenizer, folder/"model")
    write_jsonl(folder/"rows.jsonl", ROWS)
    write_jsonl(folder/"shots.jsonl", ROWS[::-1])
    (folder/"tasks").mkdir()
    for name, body in TASKS.items():
        (folder/"tasks"/f"{name}.yaml").write_text(HEAD.format(name=name, folder=folder) + body, encoding="utf-8")
    (folder/"tasks"/"ten.yaml").write_text("group: ten\ntask: [" + ", ".join(TASKS) + "]\n", encoding="utf-8")
    return folder


def run_cli(program: list, out, *options) -> dict:
    "What a command line of lm-eval logged: task → records in the order of the items"
    done = subprocess.run([*program, *options, "--output_path", str(out), "--log_samples", "--device", "cpu"], cwd=ROOT, capture_output=True, text=True,
                          env=ENV | dict(HF_DATASETS_OFFLINE="1", OMP_NUM_THREADS="1"), encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    records = {}
    for path in out.rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        records[path.name.removeprefix("samples_").rsplit("_", 1)[0]] = sorted(rows, key=lambda row: row["doc_id"])
    return records


def ask_theirs(folder, out, tasks, *options):
    model = f"pretrained={folder},dtype=float32"
    return run_cli([sys.executable, "-m", "lm_eval"], out, "--model", "hf", "--model_args", model, "--batch_size", "64", "--include_path", str(tasks), *options)


def ask_ours(folder, out, tasks, *options):
    return run_cli([sys.executable, "-m", "forge_nb.evals.harness"], out, "--model", "forge", "--model_args", f"folder={folder}", "--include_path", str(tasks), *options)


def flatten(value) -> list:
    "Numbers and texts of a record, in order"
    if isinstance(value, (list, tuple)): return [leaf for part in value for leaf in flatten(part)]
    try: return [float(value)]
    except ValueError: return [value]


def is_same(value, expected) -> bool:
    "Texts are equal, numbers within 1e-4"
    leaves, others = flatten(value), flatten(expected)
    return len(leaves) == len(others) and all(a == b or isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-4 + 1e-6 * abs(b) for a, b in zip(leaves, others))


@pytest.mark.parametrize("template", [pytest.param(False, id="plain", marks=pytest.mark.slow), pytest.param(True, id="template")])
def test_ten_tasks_are_answered_as_lm_eval_answers_them(made, tmp_path, template):
    options = ["--tasks", "ten"] + ["--apply_chat_template"] * template
    theirs, ours = (ask(made/"model", tmp_path/name, made/"tasks", *options) for name, ask in (("hf", ask_theirs), ("forge", ask_ours)))
    assert set(theirs) == set(ours) == set(TASKS)
    for name in TASKS:
        assert len(theirs[name]) == len(ours[name]) == len(ROWS)
        for expected, row in zip(theirs[name], ours[name]):
            assert row["arguments"] == expected["arguments"] and row["metrics"] == expected["metrics"]
            for field in ("resps", "filtered_resps", *row["metrics"]): assert is_same(row[field], expected[field]), (name, field, row[field], expected[field])
    written = {row["resps"][0][0] for row in ours["write"]}
    assert len(written) > len(ROWS) / 2, "a model that writes the same to everything proves nothing"


def test_the_exam_is_asked_by_lm_eval_alone(made, tmp_path):
    "The folder of tasks that `evaluate` writes gives any model the grades that it gives ours"
    items = [dict(id=f"q{n}", part="fact", kind="animal", question=row["question"], prompt=f"{row['text']}{row['question']}", adversarial_prompt=f"{row['text']}Be nice. {row['question']}",
                  adversarial_question=f"Be nice. {row['question']}", policy="plain", answer=row["answer"].strip(), sources=[], choices=row["choices"], gold=row["gold"], in_sample=True, item_sha256=f"{n}")
             for n, row in enumerate(ROWS)]
    documents = [dict(id=f"d{n}", kind="docs", text=row["text"]) for n, row in enumerate(ROWS)]
    company = [ROOT/"company"/name for name in ("kpi.py", "style.yaml", "policies.yaml")]
    names = write_tasks(items, documents, company, tmp_path/"tasks", 12)
    rows, answers, samples = score_checkpoint("sft", Checkpoint(folder="model", choices=True), made/"model", tmp_path/"tasks", names, window_tokens=128, document_stride=2)
    theirs = ask_theirs(made/"model", tmp_path/"hf", tmp_path/"tasks", "--tasks", "forge", "--apply_chat_template")
    for name, field in (("open", "prompt"), ("closed", "question"), ("adversarial", "adversarial_prompt")):
        assert [row["text"] for row in answers if row["prompt_field"] == field] == [row["resps"][0][0] for row in theirs[f"forge_{name}"]]
    for metric, task in (("exact_match", "open"), ("kpi", "open"), ("closed_false_answer_rate", "closed"), ("violation_rate", "adversarial")):
        assert [row["value"] for row in rows if (row["metric"], row["slice"]) == (metric, "all")] == [pytest.approx(float(row[metric])) for row in theirs[f"forge_{task}"]]
    chosen = {row["item"]: row["value"] for row in rows if (row["metric"], row["slice"]) == ("mc_accuracy", "all")}
    assert chosen == {row["doc"]["id"]: row["acc"] for row in theirs["forge_choices"]}
    assert {row["item"] for row in rows if row["metric"] == "bpb"} == {"d0", "d2", "d4", "d6"} and all(row["item_sha256"] == row["item"][1:] for row in rows if row["item"][0] == "q")
    assert len(samples) == 3 * len(items) + len(items) + 4


def test_what_is_asked_beside_the_exam_is_asked_by_lm_eval_too(made, tmp_path):
    "Own conversations and pairs, poisoned cases and general questions: the stock command line gives the scores that `evaluate` gives"
    def say(*texts): return [dict(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(texts)]
    held_out = dict(own_chat=[dict(id=f"c{n}", messages=say(row["question"], row["answer"], "and who else?", row["choices"][1])) for n, row in enumerate(ROWS)],
                    own_pairs=[dict(id=f"p{n}", prompt=say(row["question"]), chosen=say("", row["choices"][0])[1:], rejected=say("", row["choices"][1])[1:]) for n, row in enumerate(ROWS)])
    held_out["own_chat"].append(dict(id="long", messages=say(*["the cat sat on a mat"] * 80)))  # left out here; theirs cuts it
    cases = [dict(id=f"{n}:value:q{n}", family="value", wording="w", passage="holding", place="before", wrong="dog", question=row["question"], answer=row["answer"].strip(), sources=["p"],
                  prompt=f"it is `dog`. {row['question']}", clean_prompt=f"it is `{row['answer'].strip()}`. {row['question']}") for n, row in enumerate(ROWS)]
    general = sorted(read_general(1)[0], key=lambda item: len(item["text"]))[:8]
    company = [ROOT/"company"/name for name in ("kpi.py", "style.yaml", "policies.yaml")]
    more = list_writers(general, held_out, cases, company[::-1][:2], 9)
    names = write_tasks([], [dict(id="d", kind="docs", text="the cat")], company, tmp_path/"tasks", 9, more)
    assert names["both"] == ["general_choices", "general_text", "own_chat", "own_answers", "own_pairs"]
    rows, _, samples = score_checkpoint("sft", Checkpoint(folder="model"), made/"model", tmp_path/"tasks", names, window_tokens=0, document_stride=1, readers=SCORE_READERS,
                                        choose=partial(choose_fitting, tmp_path/"tasks"/"own"))
    theirs = ask_theirs(made/"model", tmp_path/"hf", tmp_path/"tasks", "--tasks", "forge_own,forge_poison,forge_general", "--apply_chat_template")
    found = {(row["metric"], row["item"]): row["value"] for row in rows}
    assert {metric for metric, _ in found} == {"bpb", "mc_accuracy", "own_bpb", "own_exact_match", "own_margin"} and ("own_exact_match", "long") not in found
    for task, metric, field in (("own_chat", "own_exact_match", "own_exact_match"), ("own_pairs", "own_margin", "own_margin"), ("general_choices", "mc_accuracy", "acc")):
        expected = {row["doc"]["id"]: float(row[field]) for row in theirs[f"forge_{task}"] if row["doc"]["id"] != "long"}
        assert len(expected) == 8 and {item: value for (name, item), value in found.items() if name == metric} == pytest.approx(expected, abs=1e-4)
    for task, metric, field in (("own_answers", "own_bpb", "own_bpb"), ("general_text", "bpb", "bits_per_byte")):
        sums = {}
        for row in theirs[f"forge_{task}"]:
            nats, size = row[field]
            old = sums.get(row["doc"]["id"], (0, 0))
            sums[row["doc"]["id"]] = old[0] + nats, old[1] + size
        for item, (nats, size) in sums.items():
            if item != "long": assert found[metric, item] == pytest.approx(-nats / math.log(2) / size, abs=1e-4)
    answers, clean = ask_cases(made/"model", tmp_path/"tasks", {}, 9)
    assert [[text for text, _ in pair] for pair in zip(answers, clean)] == [[text for [text] in row["resps"]] for row in theirs["forge_poison"]]
    assert {text for text, _ in answers} != {text for text, _ in clean}, "twins that are answered alike prove nothing"
    kept = ask_cases(made/"model", tmp_path/"tasks", {case["clean_prompt"]: ("known", True) for case in cases}, 9)
    assert kept == (answers, [("known", True)] * 8)
    plain = ask_tasks(ForgeLM(str(made/"model")), Checkpoint(folder="model", tuned=False), tmp_path/"tasks", names)
    prompts = [row["prompt"] for row in samples if row["task"] == "general_choices"]
    assert prompts == [record["arguments"][0][0] for record in plain["general_choices"]] and prompts[0].startswith("Question: ")
