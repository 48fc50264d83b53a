"The reports as pages in a real browser, Debian's Chromium without a window: wide and narrow, in both themes"
import base64, json, shutil, subprocess
from itertools import count
from urllib.request import Request, urlopen

import pytest
import websocket
from copies import ENV, ROOT, sibling, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --remote-debugging-port=0 --remote-allow-origins=*".split()
SHOTS = ROOT/".cache"/"screenshots"  # for a look by eye; nothing compares them

# What the page looks like: its overflow, its pictures, and the lowest contrast of a text with what lies behind it (WCAG 2.2, 1.4.3)
MEASURE = """(() => {
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = node => { for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$|transparent/.test(colour)) return colour; } return "rgb(255, 255, 255)"; };
  const contrast = node => {
    const [a, b] = [getComputedStyle(node).color, behind(node)].map(luminance).sort((x, y) => y - x);
    return (a + .05) / (b + .05); };
  const texts = [...document.querySelectorAll("main *")].filter(n => [...n.childNodes].some(c => c.nodeType == 3 && c.data.trim()) && n.offsetParent);
  const lowest = texts.map(n => [contrast(n), n.outerHTML.slice(0, 90)]).sort((x, y) => x[0] - y[0])[0];
  return {width: document.documentElement.scrollWidth, texts: texts.length, lowest, background: getComputedStyle(document.body).backgroundColor,
          cut: [...document.querySelectorAll('table')].filter(t => t.scrollWidth > t.clientWidth + 1).length,
          broken: [...document.images].filter(i => !i.naturalWidth).length, images: document.images.length}; })()"""


class Browser:
    "One page of Chromium, driven over its DevTools protocol"

    def __init__(self, profile):
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        place = profile/"DevToolsActivePort"
        wait_for(lambda: place.exists() and place.read_text(encoding="utf-8").count("\n"), self.process)
        port = place.read_text(encoding="utf-8").split()[0]
        with urlopen(Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")) as answer: url = json.load(answer)["webSocketDebuggerUrl"]
        self.socket, self.numbers = websocket.create_connection(url, timeout=300), count(1)
        self.do("Page.enable")

    def do(self, method: str, **params) -> dict:
        "Send a command; what it answers"
        number = next(self.numbers)
        self.socket.send(json.dumps(dict(id=number, method=method, params=params)))
        while (message := json.loads(self.socket.recv())).get("id") != number: pass
        assert "error" not in message, message
        return message["result"]

    def open(self, url: str, width: int, theme: str):
        "Show a page in a window of this width, in this theme"
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self.do("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value=theme)])
        self.do("Page.navigate", url=url)
        while json.loads(self.socket.recv()).get("method") != "Page.loadEventFired": pass

    def evaluate(self, code: str):
        "Value of a JavaScript expression on the page"
        return self.do("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def screenshot(self, path):
        "The whole page as PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self):
        self.socket.close(); self.process.terminate(); self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM: pytest.skip("no Chromium on this machine; on Debian, `apt install chromium`")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def reports(chain, tmp_path_factory):
    "The reports of a finished project, as `make report` writes them"
    copy = sibling(chain, tmp_path_factory.mktemp("reports")/"project")
    copy("python -m forge_nb.report.pages html")
    return copy.root/"reports"/"html"


@pytest.mark.slow
def test_reports_read_well_wide_and_narrow_in_both_themes(browser, reports):
    "Proves: no page scrolls sideways at 390 or 1,280 pixels, no table is cut at 1,280, no picture is broken, every text has a contrast of 4.5 in both themes"
    pages, backgrounds = sorted(reports.glob("*.html")), set()
    assert {"index", "assess", "evaluate", "card"} <= {p.stem for p in pages}
    for page in pages:
        for width in (390, 1280):
            for theme in ("light", "dark"):
                browser.open(page.as_uri(), width, theme)
                seen, where = browser.evaluate(MEASURE), f"{page.stem}, {width} pixels, {theme}"
                browser.screenshot(SHOTS/f"{page.stem}_{width}_{theme}.png")
                assert seen["width"] <= width, f"{where}: {seen['width']} pixels wide"
                assert width < 1280 or not seen["cut"], f"{where}: {seen['cut']} tables are cut"
                assert not seen["broken"], f"{where}: {seen['broken']} of {seen['images']} pictures are broken"
                assert seen["texts"] > 3 and seen["lowest"][0] >= 4.5, f"{where}: {seen['lowest']}"
                backgrounds.add((theme, seen["background"]))
    assert len(backgrounds) == 2, f"the themes are one: {backgrounds}"


@pytest.mark.slow
def test_a_manager_sees_results_and_an_auditor_the_whole_page(browser, reports):
    "Proves: a short report holds no source, its full copy is one click away and holds it, and the way back leads back"
    for stage in ("assess", "sft", "evaluate"):
        browser.open((reports/f"{stage}.html").as_uri(), 1280, "light")
        count_inputs = "document.querySelectorAll('.jp-InputArea, .input_area, .highlight').length"
        short = browser.evaluate(count_inputs)
        link = browser.evaluate("[...document.links].map(a => a.href).find(h => h.includes('/full/'))")
        assert link and link.endswith(f"/full/{stage}.html")
        browser.open(link, 1280, "light")
        assert browser.evaluate(count_inputs) > 5 and not short, f"{stage}: {short} cells of source in the short report"
        assert browser.evaluate(f"[...document.links].some(a => a.href == {json.dumps((reports/f'{stage}.html').as_uri())})")
