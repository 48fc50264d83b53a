"Near duplicates and decontamination against planted truth: recall, precision, order, workers, executors, kills"
import json, os, random, re, signal, subprocess, sys, unicodedata
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
from copies import wait_for

from forge_nb.core.project import Invalid, ROOT
from forge_nb.data import dedup
from forge_nb.data.dedup import near_duplicates
from forge_nb.data.executors import run_pipeline
from forge_nb.data.shingles import find_contamination, hash_words, index_eval_items

local = partial(run_pipeline, executor="local", workers=1)


def words_of(text): return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


def sets_of(text, n=5):
    "Shingles as the textbook has them: a Python set of tuples of words"
    words = words_of(text)
    return {tuple(words[i:i + n]) for i in range(max(len(words) - n + 1, 1))} if words else set()


def alike(a, b):
    "Jaccard similarity of two texts, by Python sets"
    a, b = sets_of(a), sets_of(b)
    return len(a & b) / max(len(a | b), 1)


def replaced(words, share, draw):
    "A copy with this share of the words replaced"
    return [f"new{draw.randrange(10**6)}" if draw.random() < share else w for w in words]


@pytest.fixture(scope="module")
def pages():
    "Texts of the repository's own documents, at most 1,200 words of each"
    texts = []
    for path in sorted((ROOT/"data"/"docs").rglob("*.txt")):
        words = path.read_text(encoding="utf-8").split(" ")
        if len(words) > 150: texts.append(" ".join(words[:1200]))
    assert len(texts) > 300
    return texts


@pytest.fixture(scope="module")
def planted(pages):
    "Documents with near duplicates of every similarity from 0.3 to 1, and the planted pairs with their exact similarity"
    draw, documents, pairs = random.Random(1), [], []
    for n, text in enumerate(pages[:300]):
        aim = .3 + .7 * n / 299
        copy = " ".join(replaced(text.split(" "), 1 - (2 * aim / (1 + aim))**.2, draw))
        pairs.append((len(documents), len(documents) + 1, alike(text, copy)))
        documents += [text, copy.upper() if n % 2 else copy]
    return [dict(id=f"{int.from_bytes(random.Random(t).randbytes(8)):016x}", source=f"docs/{n}.txt", text=t) for n, t in enumerate(documents)], pairs


def shards_of(documents, folder, count, seed=None):
    "Documents spread over JSONL files, shuffled if a seed is given"
    rows = list(documents)
    if seed is not None: random.Random(seed).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count): (folder/f"{i}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[i::count]), encoding="utf-8")
    return [folder/f"{i}.jsonl" for i in range(count)]


@pytest.fixture(scope="module")
def found(planted, tmp_path_factory):
    "Clusters of the planted documents"
    folder = tmp_path_factory.mktemp("planted")
    return near_duplicates(local, shards_of(planted[0], folder/"in", 3), folder/"work", dedup_threshold=.8)


def test_recall_and_precision(planted, found):
    "Of the pairs from 0.8 on at least 95 % are one cluster and lose a member; what goes is at least 0.8 like a document that stays"
    (documents, pairs), (clusters, duplicate_of) = planted, found
    true = [(documents[a]["id"], documents[b]["id"]) for a, b, j in pairs if j >= .8 and documents[a]["id"] != documents[b]["id"]]
    assert len(true) > 60
    assert sum(clusters.get(a, a) == clusters.get(b, b) for a, b in true) / len(true) >= .95
    assert sum(a in duplicate_of or b in duplicate_of for a, b in true) / len(true) >= .95
    text = {d["id"]: d["text"] for d in documents}
    assert not set(duplicate_of) & set(duplicate_of.values())
    assert all(alike(text[a], text[b]) >= .8 for a, b in duplicate_of.items())
    members, source = defaultdict(list), {d["id"]: (len(d["source"]), d["source"]) for d in reversed(documents)}
    for id, name in clusters.items(): members[name].append(id)
    assert all(name == min(ids) and len(ids) > 1 for name, ids in members.items())
    assert all(clusters[a] == clusters[b] and source[b] < source[a] for a, b in duplicate_of.items())


def test_exact_copies_share_an_id(planted):
    "Identical texts have one id, so exact duplicates need no search: recall 1 by construction"
    documents, pairs = planted
    assert [j for a, b, j in pairs if documents[a]["id"] == documents[b]["id"]] and all(j == 1 for a, b, j in pairs if documents[a]["id"] == documents[b]["id"])


@pytest.mark.parametrize("count,workers,seed", [(1, 1, None), (5, 1, 3), (4, 2, 4)])
def test_order_and_workers_do_not_matter(planted, found, tmp_path, count, workers, seed):
    "Other shards, another order, more workers: the same clusters"
    run = partial(run_pipeline, executor="local", workers=workers)
    assert near_duplicates(run, shards_of(planted[0], tmp_path/"in", count, seed), tmp_path/"work", dedup_threshold=.8) == found


def test_little_memory_gives_the_same(planted, found, tmp_path, monkeypatch):
    "Documents held a few kilobytes at a time decide the same"
    monkeypatch.setattr(dedup, "MAX_BATCH_BYTES", 20_000)
    assert near_duplicates(local, shards_of(planted[0], tmp_path/"in", 3), tmp_path/"work", dedup_threshold=.8) == found


def row(n, text, folder="docs"): return dict(id=f"{n:016x}", source=f"{folder}/{n}.txt", text=text)


def test_copies_have_one_cluster(pages, tmp_path):
    "Exact copies in other shards share an id; copies that differ in case or punctuation share a cluster, and the shortest source stays"
    documents = [row(n, t) for n, t in enumerate(pages[:40])]
    shouted = [row(n + 100, t.upper().replace(" ", "\n* "), "a") for n, t in enumerate(pages[:40])]
    copies = [{**d, "source": "an/archive/" + d["source"]} for d in documents]
    clusters, duplicate_of = near_duplicates(local, shards_of(documents + shouted + copies, tmp_path/"in", 4, 0), tmp_path/"work", dedup_threshold=.8)
    assert all(clusters[a["id"]] == clusters[b["id"]] for a, b in zip(documents, shouted))
    assert all(d["id"] in duplicate_of for d in documents)  # a/100.txt is shorter than docs/0.txt
    clusters, duplicate_of = near_duplicates(local, shards_of(documents + copies, tmp_path/"in2", 2), tmp_path/"work2", dedup_threshold=.8)
    assert set(clusters) <= {d["id"] for d in documents} and len(clusters) < 10


def test_many_copies_of_one_template(tmp_path):
    "A thousand short rows of one template are one cluster of which one stays; a hundred documents without any word are left alone"
    said = "part {} is a bolt of steel that is kept in hall seven on shelf nine and is ordered by the dozen from a shop in the old town near the river whenever less than ten are left"
    rows = [row(n, said.format(n // 2 * 2) + " " * (n % 2)) for n in range(1000)] + [row(n, "!" * n) for n in range(2000, 2100)]
    clusters, duplicate_of = near_duplicates(local, shards_of(rows, tmp_path/"in", 3, 0), tmp_path/"work", dedup_threshold=.8)
    assert len(clusters) == 1000 and set(clusters.values()) == {"0" * 16}
    assert len(duplicate_of) == 999 and set(duplicate_of.values()) == {"0" * 16}


@pytest.mark.parametrize("seed", range(20))
def test_words_are_those_of_the_regular_expression(seed):
    "Random text from all of Unicode: the same number of words and of distinct words as re finds"
    draw = random.Random(seed)
    letters = [*" .,-_'\n\0aZé9ß", "\u0301", "“", "ﬁ", "İ", "\xa0", "\u2028", "Ω", "д", "\U0001f600", "\ud800"] + [chr(draw.randrange(0x80, 0xd00)) for _ in range(20)]
    texts = ["".join(draw.choices(letters, k=draw.randrange(300))) for _ in range(30)]
    hashes, counts = hash_words(texts)
    words = [words_of(t) for t in texts]
    assert counts.tolist() == [len(w) for w in words]
    assert len(np.unique(hashes)) == len({w for ws in words for w in ws})


def fails(data, rank, world_size):
    "A step that cannot do its work"
    raise ValueError("broken step")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_step_is_told(tmp_path, capfd, workers):
    "The exception arrives, the terminal stays quiet, the log has it, nothing is marked as done"
    with pytest.raises(ValueError, match="broken step"): run_pipeline([fails], 2, "fails", tmp_path, executor="local", workers=workers)
    assert "broken step" not in "".join(capfd.readouterr())
    assert any("broken step" in p.read_text(encoding="utf-8") for p in (tmp_path/"fails"/"logs").iterdir())
    assert not list(tmp_path.glob("fails/completions/*"))


def killed(data, rank, world_size):
    "A step whose process the system ends"
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told(tmp_path):
    "Not waited for: a sentence with the remedy"
    with pytest.raises(RuntimeError, match="killed.*workers: 1"): run_pipeline([killed], 2, "killed", tmp_path, executor="local", workers=2)


def test_slurm_writes_its_job(planted, tmp_path, monkeypatch):
    "Without sbatch one sentence, and a script with the right array whose pickled pipeline runs in another process"
    monkeypatch.setenv("PATH", "/nowhere")
    shards = shards_of(planted[0], tmp_path/"in", 5)
    run = partial(run_pipeline, executor="slurm", workers=2)
    with pytest.raises(Invalid, match="sbatch.*launch_script.slurm.*login node"): near_duplicates(run, shards, tmp_path/"work", dedup_threshold=.8)
    script = (tmp_path/"work"/"logs"/"sign"/"launch_script.slurm").read_text(encoding="utf-8")
    for line in ("--array=0-4%2", "--partition=cpu", "--time=24:00:00", "--wait", "--job-name=sign"): assert f"#SBATCH {line}\n" in script
    assert "--qos" not in script
    code = "import dill, sys; executor = dill.load(open(sys.argv[1], 'rb')); executor.pipeline[0](None, 3, executor.world_size)"
    subprocess.run([sys.executable, "-c", code, tmp_path/"work"/"logs"/"sign"/"executor.pik"], check=True, cwd=ROOT)
    assert (tmp_path/"work"/"signed"/"rows"/"00003.npy").exists()


SCRIPT = """
import json, sys
from functools import partial
from pathlib import Path
from forge_nb.data.dedup import near_duplicates
from forge_nb.data.executors import run_pipeline
if __name__ == "__main__":
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    found = near_duplicates(partial(run_pipeline, executor="local", workers=workers), sorted(folder.glob("in/*.jsonl")), folder/"work", dedup_threshold=.8)
    (folder/"found.json").write_text(json.dumps(found))
"""


@pytest.mark.parametrize("marker,half,workers", [("sign/completions/00002", "signed/bucket_000/00011.minhash.sig", 1), ("propose/completions/00003", "proposed/00011_00.dups", 1),
                                                 ("verify/completions/00004", "verified/00011.dups", 1), ("sign/completions/00001", "signed/rows/00011.npy", 2)])
def test_kill_and_resume(pages, planted, tmp_path, marker, half, workers):
    "Killed anywhere, with half a file lying about, and run again: the same clusters, and finished tasks are not done twice"
    rows = planted[0] + [row(n, t) for n, t in enumerate(pages)]
    shards_of(rows, tmp_path/"in", 12)
    (tmp_path/"run.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, tmp_path/"run.py", tmp_path, str(workers)]
    running = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    wait_for((tmp_path/"work"/"logs"/marker).exists, running, pause=.001)
    os.killpg(running.pid, signal.SIGKILL); running.wait()
    assert not (tmp_path/"found.json").exists(), "the run was over before it was killed"
    done = {p: p.stat().st_mtime_ns for p in (tmp_path/"work"/"signed"/"rows").glob("*.npy") if (tmp_path/"work/logs/sign/completions"/p.stem).exists()}
    assert done
    (tmp_path/"work"/half).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path/"work"/half).write_bytes(b"half a file")
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert {p: p.stat().st_mtime_ns for p in done} == done
    whole = near_duplicates(local, sorted(tmp_path.glob("in/*.jsonl")), tmp_path/"whole", dedup_threshold=.8)
    assert json.loads((tmp_path/"found.json").read_text(encoding="utf-8")) == [*whole]


def test_other_input_starts_afresh(planted, tmp_path):
    "Another threshold or other shards in the same folder are not mixed with what lies there"
    few = planted[0][200:400]
    shards = shards_of(few, tmp_path/"in", 2)
    first = near_duplicates(local, shards, tmp_path/"work", dedup_threshold=.8)
    assert len(near_duplicates(local, shards, tmp_path/"work", dedup_threshold=.5)[0]) > len(first[0])
    assert near_duplicates(local, shards_of(few, tmp_path/"in", 1), tmp_path/"work", dedup_threshold=.8) == first


@pytest.mark.parametrize("line", ['{"id": "zzzzzzzzzzzzzzzz", "source": "a", "text": "a"}', '{"id": "000000000000000a", "source": "a"}', '[]', '{"id": ', '{"id": "0a", "source": "a", "text": "short id"}',
                                  '{"id": "000000000000000a", "source": "a", "text": 3}', '{"id": "000000000000000a", "text": "a"}', '{"id": 7, "source": "a", "text": "a"}'])
def test_a_bad_line_is_named(tmp_path, line):
    "What is no document is told with file and line"
    (tmp_path/"a.jsonl").write_text('{"id": "000000000000000b", "source": "a", "text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(Invalid, match=r"a\.jsonl, line 2: not a document"): near_duplicates(local, [tmp_path/"a.jsonl"], tmp_path/"work", dedup_threshold=.8)


@pytest.fixture(scope="module")
def items(pages):
    "Sentences of 5 to 60 words from pages that the training text does not hold"
    draw, held = random.Random(2), pages[::10]
    sentences = [re.sub(r"\s+", " ", s) for page in held for s in re.split(r"(?<=[.:?])\s+", page) if 5 <= len(words_of(s)) <= 60]
    return draw.sample([s for s in sentences if len(words_of(s)) < 8], 100) + draw.sample([s for s in sentences if len(words_of(s)) >= 8], 400)


def edited(item, draw, put="changed"):
    "One word in fifteen replaced, at least one"
    at = [m.span() for m in re.finditer(r"\w+", item)]
    for a, b in sorted(draw.sample(at, max(round(len(at) / 15), 1)), reverse=True): item = item[:a] + put.format(item[a:b]) + item[b:]
    return item


def test_planted_items_are_found(pages, items):
    "Each item, verbatim, or with other case, punctuation and line breaks, or with one word in fifteen replaced, left out or put in, or all of it"
    draw, index = random.Random(3), index_eval_items(items)
    training = [p for n, p in enumerate(pages) if n % 10]
    shout = lambda item: re.sub("[,.:]", " - ", item.upper()).replace(" ", " \n ")
    for number, item in enumerate(items):
        for version in (item, shout(item), edited(item, draw), edited(item, draw, ""), edited(item, draw, "{} more"), shout(edited(item, draw))):
            page = draw.choice(training).split(" ")
            at = draw.randrange(len(page))
            assert number in find_contamination(" ".join([*page[:at], version, *page[at:]]), index), (item, version)


def test_clean_text_is_left_alone(pages, items):
    "Invented items are found nowhere; of the sentences of other pages, few are reported that do not stand there word for word"
    draw, training = random.Random(4), [p for n, p in enumerate(pages) if n % 10]
    things = "gearbox valve pump filter bearing flange".split()
    invented = [f"How many {draw.choice('litres grams bolts screws'.split())} does the {draw.choice(things)} of machine {n} need when the {draw.choice(things)} is changed?" for n in range(500)]
    index = index_eval_items(invented)
    assert not any(find_contamination(page, index) for page in training)
    said = [" " + " ".join(words_of(page)) + " " for page in training]
    for some, pairs, pages_ in (([i for i in items if len(words_of(i)) > 5], .001, .25), ([i for i in items if len(words_of(i)) == 5], .01, .4)):  # siblings differ in a number or a name
        index = index_eval_items(some)
        reported = [(words, number) for page, words in zip(training, said) for number in find_contamination(page, index)]
        wrong = [(words, number) for words, number in reported if " " + " ".join(words_of(some[number])) + " " not in words]
        assert len(wrong) / (len(training) * len(some)) < pairs and len({words for words, _ in wrong}) / len(training) < pages_


def test_long_items_are_found_by_a_piece_and_short_ones_reported(pages):
    "Eighty words out of a passage of four hundred give it away; four words give nothing away"
    passage = " ".join(words_of(pages[5])[:400])
    index = index_eval_items([passage, "yes or no", "four words are short"])
    assert index["short"] == [1, 2]
    assert find_contamination(pages[6] + " " + " ".join(passage.split()[111:191]), index) == [0]
    assert find_contamination(pages[6] + " yes or no, four words are short", index) == []
    assert find_contamination("anything", index_eval_items([])) == []
