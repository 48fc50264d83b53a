"The reports as pages in a real browser, Debian's Chromium without a window: wide and narrow, in both themes"
import json, re

import pytest
from browser import SHOTS
from copies import FORGE, sibling


# What the page looks like: its width, its pictures, what stands beyond its edge, and the lowest contrast of a text with what lies behind it (WCAG 2.2, 1.4.3)
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
  const lowest = texts.reduce((low, n) => { const c = contrast(n); return c < low[0] ? [c, n] : low; }, [21, texts[0]]);
  const cut = [...document.querySelectorAll("table")].filter(t => t.scrollWidth > t.clientWidth + 1 && t.rows[0].cells.length < 12);
  return {width: document.documentElement.scrollWidth, texts: texts.length, lowest: [lowest[0], lowest[1].outerHTML.slice(0, 90)],
          background: getComputedStyle(document.body).backgroundColor, cut: cut.length,
          drawn: [...document.querySelectorAll(".drawing")].filter(d => d.scrollWidth > d.clientWidth + 1).length,
          broken: [...document.images].filter(i => !i.naturalWidth).length, images: document.images.length,
          dead: [...document.links].filter(a => a.hash && a.href.split("#")[0] == location.href.split("#")[0] && ![a.hash.slice(1), decodeURIComponent(a.hash.slice(1))].some(id => document.getElementById(id))).length,
          home: [...document.links].some(a => a.href.endsWith("/html/index.html")) || location.pathname.endsWith("/html/index.html")}; })()"""


RELEASED = """from pathlib import Path; from forge_nb.ops.served import ReleaseRow; from forge_nb.ops.site import render_releases, render_page
row = ReleaseRow(date="2026-11-30T14:20:11+00:00", version="v1.0.0", event="release", stage="", who="Kim", because="first", is_revoked=False, serves_in=["staging"])
folder = Path("reports/html"); folder.mkdir(parents=True, exist_ok=True)
(folder/"releases.html").write_text(render_page("Releases", [("all stages", "index.html")], render_releases([row])), encoding="utf-8")"""


@pytest.fixture(scope="module")
def reports(chain, tmp_path_factory):
    "The reports of a finished project, as `make report` writes them"
    copy = sibling(chain, tmp_path_factory.mktemp("reports")/"project")
    copy(f"{FORGE} papers && python -c '{RELEASED}' && python -m forge_nb.ops.site", rc=0)
    return copy.root/"reports"/"html"


def check_page(browser, page, width: int, theme: str):
    "What a page must show in a window of this width, in this theme; its ground"
    browser.resize(width, theme)
    seen, where = browser.evaluate(MEASURE), f"{page.parent.name}/{page.stem}, {width} pixels, {theme}"
    assert seen["width"] <= width, f"{where}: {seen['width']} pixels wide"
    assert width < 1280 or not seen["cut"] + seen["drawn"], f"{where}: {seen['cut']} tables and {seen['drawn']} drawings are cut"
    assert not seen["broken"], f"{where}: {seen['broken']} of {seen['images']} pictures are broken"
    assert seen["texts"] > 3 and seen["lowest"][0] >= 4.5, f"{where}: {seen['lowest']}"
    assert seen["home"] and not seen["dead"], f"{where}: no way back to the index, or {seen['dead']} links lead nowhere"
    return seen["background"]


@pytest.mark.parametrize("folder", [".", "full"])
def test_reports_read_well_wide_and_narrow_in_both_themes(browser, reports, folder):
    "Proves: no page scrolls sideways at 390 or 1,280 pixels, no table of less than 12 columns and no drawing is cut at 1,280, no picture is broken, every text has a contrast of 4.5 in both themes; every page leads back to the index; no page asks for another or complains"
    pages, grounds = sorted((reports/folder).glob("*.html")), set()
    assert {"assess", "evaluate", "card"} <= {p.stem for p in pages}
    assert folder == "full" or {"index", "lineage", "papers", "releases"} <= {p.stem for p in pages}
    browser.faults.clear(), browser.requests.clear()
    for page in pages:
        browser.open(page.as_uri(), 390, "light")
        for width, theme in ((390, "light"), (390, "dark"), (1280, "dark"), (1280, "light")):
            grounds.add((theme, check_page(browser, page, width, theme)))
            if folder == ".": browser.screenshot(SHOTS/f"{page.stem}_{width}_{theme}.png")
    assert len(grounds) == 2, f"the themes are one: {grounds}"
    assert not browser.faults and {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}
    assert {url for url in browser.requests if url.startswith("file:")} == {p.as_uri() for p in pages}


def test_the_index_says_what_came_out_when_how_long_and_where(browser, reports):
    "Proves: the index has the results, the drawing with every stage leading to its page, and when, how long and on what machine the stages ran"
    browser.open((reports/"index.html").as_uri(), 1280, "light")
    assert "questions" in browser.evaluate("document.querySelector('.finding').textContent")
    drawn = browser.evaluate("[...document.querySelectorAll('.drawing a')].map(a => a.getAttribute('href'))")
    listed = browser.evaluate("[...document.querySelectorAll('.stages .name')].map(a => a.getAttribute('href'))")
    assert len(drawn) > 15 and set(drawn) <= set(listed) and all((reports/name).exists() for name in listed)
    text = browser.evaluate("document.querySelector('main').textContent")
    assert re.search(r"in all, the last run of each of \d+ stages, up to \d{4}-\d\d-\d\d \d\d:\d\d UTC, on \d+ × ", text)
    stages = browser.evaluate("[...document.querySelectorAll('.stages')].map(part => part.textContent).join(' ')")
    assert len(re.findall(r"Last run here: .*? UTC, .*? GiB at most, on ", stages)) == len(listed)


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


def test_search_finds_sections_and_leads_to_them(browser, reports):
    "Proves: words find the section that holds them all, what is not there finds nothing, and a hit is text, never HTML"
    browser.open((reports/"index.html").as_uri(), 390, "dark")
    browser.evaluate("document.querySelector('.search input').focus()")
    def type_in(words):
        browser.evaluate("document.querySelector('.search input').select()")
        browser.do("Input.insertText", text=words) if words else browser.do("Input.dispatchKeyEvent", type="keyDown", key="Delete", code="Delete", windowsVirtualKeyCode=46)
    hits = "[...document.querySelectorAll('.found a')].map(a => a.getAttribute('href'))"
    type_in("what to check adversarial")
    found = browser.evaluate(hits)
    assert found and all((reports/place.partition("#")[0]).exists() for place in found)
    browser.screenshot(SHOTS/"search_390_dark.png")
    type_in("<script> zyx")
    assert browser.evaluate(hits) == [] and "Nothing found" in browser.evaluate("document.querySelector('.found').textContent")
    type_in("")
    assert browser.evaluate("document.querySelector('.found').textContent") == "" and not browser.faults
    boxes = browser.evaluate("[...document.querySelectorAll('.drawing text')].map(t => t.getBoundingClientRect().height)")
    assert len(boxes) > 20 and max(boxes) > 10, "the drawing shrank beyond reading"
    for place in found:
        browser.open((reports/place).as_uri().replace("%23", "#"), 390, "dark")
        name = place.partition("#")[2]
        assert not name or browser.evaluate(f"!!document.getElementById(decodeURIComponent({json.dumps(name)}))"), f"{place} is nowhere"
