"JupyterLab in a real browser: the tour opens, Run All runs stages, the chat answers, tables are filtered, judgements are kept"
import csv, json

import pytest
from browser import SHOTS
from copies import sibling
from test_lab import Lab, digest


COMMAND = "window.jupyterapp.commands.execute"
WIDGET = "window.jupyterapp.shell.currentWidget"
OPENED = f"window.jupyterapp && {WIDGET} && {WIDGET}.context && {WIDGET}.context.path"
INPUT = "document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output {}')"  # in what a page shows


def show(browser, lab, path: str):
    "Open a notebook of the project, and wait until its kernel is there"
    browser.open(f"http://{lab.at}/lab/tree/{path}?token=t&reset", 1280, "light")
    browser.wait(f"({OPENED}) === {json.dumps(path)}")
    browser.evaluate(f"{WIDGET}.context.ready.then(() => {WIDGET}.sessionContext.ready).then(() => true)")
    browser.wait(f"!!{WIDGET}.sessionContext.session && !!{WIDGET}.sessionContext.session.kernel")


def run_all(browser) -> list:
    "Run, Run All Cells; the outputs of the cells"
    browser.evaluate(f"{COMMAND}('notebook:run-all-cells').then(() => true)")
    cells = json.loads(browser.evaluate(f"JSON.stringify({WIDGET}.content.model.toJSON().cells)"))
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"], outputs[-1]
    return outputs


def write(browser, field: str, text: str):
    "Write into a field, and leave it"
    browser.wait(f"!!{field}")
    browser.evaluate(f"""(field => {{ field.value = {json.dumps(text)};
      for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {{bubbles: true}})); }})({field})""")


def press(browser, words: str):
    "Press the button with these words"
    browser.evaluate(f"[...document.querySelectorAll('button.widget-button')].find(b => b.textContent === {json.dumps(words)}).click()")


@pytest.fixture(scope="module")
def lab(chain, tmp_path_factory):
    settings = tmp_path_factory.mktemp("settings")
    (settings/"jupyter_lab_config.json").write_text('{"LabApp": {"expose_app_in_browser": true}}', encoding="utf-8")
    plugin = settings/"lab"/"user-settings"/"@jupyterlab"/"docmanager-extension"/"plugin.jupyterlab-settings"
    plugin.parent.mkdir(parents=True)
    plugin.write_text('{"autosave": false}', encoding="utf-8")  # what a page shows here is looked at, and left
    running = Lab(sibling(chain, tmp_path_factory.mktemp("lab")/"project"), settings)
    yield running
    running.close()


def test_the_tour_opens_with_its_graph_and_its_links_lead_on(browser, lab):
    "Proves: the tour runs, draws the graph of the stages, every link of it leads to a file, and a click opens one"
    show(browser, lab, "nbs/index.ipynb")
    outputs = run_all(browser)
    assert any("flowchart" in "".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    browser.wait("document.querySelectorAll('.jp-RenderedMermaid img, .jp-RenderedMermaid svg').length")
    browser.wait("[...document.querySelectorAll('.jp-RenderedMermaid img, .jp-RenderedMermaid svg')].every(i => i.complete !== false && i.getBoundingClientRect().height > 200)")
    links = browser.wait("(found => found.length > 90 && found)([...document.querySelectorAll('.jp-RenderedMarkdown a[href]')].map(a => [a.textContent, a.href]))")
    assert {"chat", "explore", "label", "10_ingest.ipynb"} <= {text for text, _ in links}
    browser.screenshot(SHOTS/"lab_tour.png")
    browser.evaluate("[...document.querySelectorAll('.jp-RenderedMarkdown a')].find(a => a.textContent === 'chat').click()")
    browser.wait(f"({OPENED}) === 'nbs/chat.ipynb'")


def sources_of(copy) -> dict:
    "Files of a project with hash and time, without those that JupyterLab keeps beside a page that it saved"
    return {name: state for name, state in digest(copy).items() if ".ipynb_checkpoints" not in name}


@pytest.mark.parametrize("name", ["30_tokenizer", "35_ngram"])
def test_run_all_runs_a_stage_into_a_scratch_folder(browser, lab, name):
    "Proves: Run All on a stage's page ends without an error, writes below runs/lab/, and changes no artifact, report or source"
    before = sources_of(lab.copy)
    show(browser, lab, f"nbs/{name}.ipynb")
    outputs = run_all(browser)
    assert any("by hand: outputs go to runs/lab/" in "".join(o.get("text", "")) for o in outputs)
    assert sources_of(lab.copy) == before and list((lab.copy.root/"runs"/"lab"/name[3:]/"artifacts").rglob("*.json"))
    browser.screenshot(SHOTS/f"lab_{name}.png")


def test_chat_streams_an_answer_with_sources_and_alternatives(browser, lab):
    "Proves: a question gets an answer that grows as it is written, with passages below it and probabilities on its tokens, from two models side by side"
    show(browser, lab, "nbs/chat.ipynb")
    run_all(browser)
    browser.evaluate("""window.lengths = [];
      new MutationObserver(() => { const answer = document.querySelector('.widget-html .forge-answer');
        if (answer) window.lengths.push(answer.textContent.length); }).observe(document.body, {childList: true, subtree: true}); true""")
    field = INPUT.format(".widget-text input")
    write(browser, field, "What is the default value of DEBUG?")
    second = browser.evaluate("(box => { box.selectedIndex = 1; box.dispatchEvent(new Event('change', {bubbles: true})); return box.value; })"
                              "([...document.querySelectorAll('.widget-dropdown select')][1])")
    press(browser, "Ask")
    turn = "document.querySelector('.widget-html .forge-turn')"
    browser.wait(f"!!{turn} && {turn}.querySelectorAll('h4').length == 2 && !document.querySelector('.widget-button').disabled")
    assert "DEBUG" in browser.evaluate(f"{turn}.textContent") and browser.evaluate(f"{turn}.querySelectorAll('.forge-passages li').length")
    assert browser.evaluate(f"{turn}.querySelectorAll('h4')[1].textContent") == second
    assert "%" in browser.evaluate(f"{turn}.querySelector('.forge-answer span').title")
    assert len(set(browser.evaluate("window.lengths"))) > 3, "the answer came at once"
    browser.screenshot(SHOTS/"lab_chat.png")


def test_explore_filters_a_table_as_it_is_asked(browser, lab):
    "Proves: another table, a word and a column's value leave fewer lines each time, and all of them hold the word"
    show(browser, lab, "nbs/explore.ipynb")
    run_all(browser)
    lists = "[...document.querySelectorAll('.widget-dropdown select')]"
    shown = "[...document.querySelectorAll('.widget-html table')].at(-1)"
    count = f"({shown} ? parseInt({shown}.closest('.widget-html-content, .widget-html').textContent.replaceAll(',', '')) : 0)"
    choose = lambda place, words: browser.evaluate(f"(box => {{ box.value = {json.dumps(words)}; box.dispatchEvent(new Event('change', {{bubbles: true}})); }})({lists}[{place}])")
    browser.wait(f"{lists}.length > 2 && {count} > 0")
    choose(0, "training rows")
    browser.wait(f"{shown} && {shown}.textContent.includes('generator')")
    everything = browser.evaluate(count)
    write(browser, INPUT.format(".widget-text input"), "default")
    browser.wait(f"{count} < {everything}")
    worded = browser.evaluate(count)
    assert browser.evaluate(f"[...{shown}.rows].slice(1).every(row => /default|…/i.test(row.textContent))")
    choose(1, "file")
    value = browser.wait(f"{lists}[2].options.length > 2 && {lists}[2].options[1].value")
    choose(2, value)
    browser.wait(f"{count} < {worded}")
    assert browser.evaluate(f"[...{shown}.rows].slice(1).every(row => row.cells[0].textContent === {json.dumps(value)})")
    browser.screenshot(SHOTS/"lab_explore.png")


def test_label_keeps_what_is_decided_beside_the_companys_own_files(browser, lab):
    "Proves: without a name nothing is kept and a sentence says so; with one, decisions are in new files of that name, and the company's own files keep their bytes"
    company = lab.copy.root/"company"
    before = {path: path.read_bytes() for path in company.rglob("*") if path.is_file()}
    show(browser, lab, "nbs/label.ipynb")
    run_all(browser)
    who = "[...document.querySelectorAll('.widget-text input')]"
    browser.wait(f"{who}.length >= 2")
    press(browser, "tie")
    browser.wait("document.querySelector('.forge-refused')?.textContent.includes('write your own name')")
    for n in (0, 1): write(browser, f"{who}[{n}]", "Kim Doe")
    press(browser, "tie"), press(browser, "accept")
    browser.wait("[...document.querySelectorAll('.widget-html')].filter(w => w.textContent.includes('kim-doe.csv')).length == 2")
    browser.screenshot(SHOTS/"lab_label.png")
    assert {path: path.read_bytes() for path in before} == before
    new = sorted(path for path in company.rglob("*") if path.is_file() and path not in before)
    assert [path.relative_to(company).as_posix() for path in new] == ["eval_review/kim-doe.csv", "judge_labels/kim-doe.csv"]
    rows = [list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) for path in new]
    assert [len(found) for found in rows] == [1, 1] and rows[0][0]["verdict"] == "accept" and rows[1][0]["label"] == "tie"


def test_nothing_was_asked_complained_of_or_fetched(browser, lab):
    "Proves: over all of this, no error in the console, no question about news, and no request to another host"
    assert not [fault for fault in browser.faults if "'beforeunload' confirmation" not in fault], "the browser's own word when a test leaves a page"
    assert browser.evaluate("document.querySelectorAll('.Toastify__toast, .jp-Dialog').length") == 0
    elsewhere = {url for url in browser.requests if not url.startswith((f"http://{lab.at}/", "data:", "blob:", "about:"))}
    assert browser.requests and not elsewhere and not any("/lab/api/news" in url for url in browser.requests)
