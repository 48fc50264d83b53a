"JupyterLab in a real browser: the tour opens, Run All runs stages, the chat answers"
import json

import pytest
from browser import SHOTS
from copies import sibling
from test_lab import Lab, digest

COMMAND = "window.jupyterapp.commands.execute"
WIDGET = "window.jupyterapp.shell.currentWidget"


def show(browser, lab, path: str):
    "Open a notebook of the project, and wait until its kernel is there"
    browser.open(f"http://{lab.at}/lab/tree/{path}?token=t", 1280, "light")
    browser.wait(f"!!window.jupyterapp && !!{WIDGET} && !!{WIDGET}.context && {WIDGET}.context.path === {json.dumps(path)}")
    browser.evaluate(f"{WIDGET}.context.ready.then(() => {WIDGET}.sessionContext.ready).then(() => true)")
    browser.wait(f"!!{WIDGET}.sessionContext.session && !!{WIDGET}.sessionContext.session.kernel")


def run_all(browser) -> list:
    "Run, Run All Cells; the outputs of the cells"
    browser.evaluate(f"{COMMAND}('notebook:run-all-cells').then(() => true)")
    cells = json.loads(browser.evaluate(f"JSON.stringify({WIDGET}.content.model.toJSON().cells)"))
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"], outputs[-1]
    return outputs


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


@pytest.mark.slow
def test_the_tour_opens_with_its_graph(browser, lab):
    show(browser, lab, "nbs/index.ipynb")
    outputs = run_all(browser)
    assert any("flowchart" in "".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    browser.wait("document.querySelectorAll('.jp-RenderedMermaid img, .jp-RenderedMermaid svg, .jp-mod-mermaid').length")
    links = browser.evaluate("[...document.querySelectorAll('.jp-RenderedMarkdown a')].map(a => a.textContent)")
    assert {"chat", "explore", "label", "10_ingest.ipynb"} <= set(links)
    browser.screenshot(SHOTS/"lab_tour.png")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["30_tokenizer", "35_ngram"])
def test_run_all_runs_a_stage_into_a_scratch_folder(browser, lab, name):
    before = digest(lab.copy)
    show(browser, lab, f"nbs/{name}.ipynb")
    outputs = run_all(browser)
    assert any("by hand: outputs go to runs/lab/" in "".join(o.get("text", "")) for o in outputs)
    assert digest(lab.copy) == before and list((lab.copy.root/"runs"/"lab"/name[3:]/"artifacts").rglob("*.json"))
    browser.screenshot(SHOTS/f"lab_{name}.png")


@pytest.mark.slow
def test_chat_answers_with_sources_and_alternatives(browser, lab):
    show(browser, lab, "nbs/chat.ipynb")
    run_all(browser)
    browser.wait("document.querySelectorAll('.widget-text input').length")
    browser.evaluate("""(() => {
      const field = document.querySelector('.widget-text input');
      field.value = 'What is the default value of DEBUG?';
      for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}));
      document.querySelector('.widget-button').click(); })()""")
    turn = "document.querySelector('.widget-html .forge-turn')"
    browser.wait(f"!!{turn} && !!{turn}.querySelector('.forge-answer span[title]') && !document.querySelector('.widget-button').disabled")
    assert "DEBUG" in browser.evaluate(f"{turn}.textContent") and browser.evaluate(f"{turn}.querySelectorAll('.forge-passages li').length")
    assert "%" in browser.evaluate(f"{turn}.querySelector('.forge-answer span').title")
    browser.screenshot(SHOTS/"lab_chat.png")


@pytest.mark.slow
def test_nothing_was_complained_of(browser):
    assert not browser.faults
