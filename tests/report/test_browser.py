"The reports as pages in a real browser, Debian's Chromium without a window: wide and narrow, in both themes"
import json

import pytest
from browser import SHOTS
from copies import sibling

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


@pytest.fixture(scope="module")
def reports(chain, tmp_path_factory):
    "The reports of a finished project, as `make report` writes them"
    copy = sibling(chain, tmp_path_factory.mktemp("reports")/"project")
    copy("python -m forge_nb.ops.site")
    return copy.root/"reports"/"html"


@pytest.mark.slow
def test_reports_read_well_wide_and_narrow_in_both_themes(browser, reports):
    "Proves: no page scrolls sideways at 390 or 1,280 pixels, no table is cut at 1,280, no picture is broken, every text has a contrast of 4.5 in both themes; no page asks for another or complains"
    pages, backgrounds = sorted(reports.glob("*.html")), set()
    assert {"index", "assess", "evaluate", "card", "lineage"} <= {p.stem for p in pages}
    browser.faults.clear(), browser.requests.clear()
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
    assert not browser.faults and {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}


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


@pytest.mark.slow
def test_search_finds_sections_and_leads_to_them(browser, reports):
    "Proves: words find the section that holds them all, what is not there finds nothing, and a hit is text, never HTML"
    browser.open((reports/"index.html").as_uri(), 390, "dark")
    type_in = lambda words: browser.evaluate("(() => { const field = document.querySelector('.search input'); field.value = " + json.dumps(words) + "; field.dispatchEvent(new Event('input')); })()")
    hits = "[...document.querySelectorAll('.found a')].map(a => a.getAttribute('href'))"
    type_in("what to check adversarial")
    found = browser.evaluate(hits)
    assert found and all((reports/place.partition("#")[0]).exists() for place in found)
    type_in("<script> zyx")
    assert browser.evaluate(hits) == [] and "Nothing found" in browser.evaluate("document.querySelector('.found').textContent")
    type_in("")
    assert browser.evaluate("document.querySelector('.found').textContent") == "" and not browser.faults
    boxes = browser.evaluate("[...document.querySelectorAll('.drawing text')].map(t => t.getBoundingClientRect().height)")
    assert len(boxes) > 20 and max(boxes) > 10, "the drawing shrank beyond reading"
