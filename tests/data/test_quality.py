"Short, tabular and listed texts that teach something stay; what teaches nothing goes"
import pytest

from forge_nb.core.project import ROOT, load_params
from forge_nb.data.quality import find_quality_fault

RULES = {name: load_params(ROOT/"params.yaml")["curate"][name] for name in ("min_characters", "max_repeated_lines")}
GRID = [[f"{n}.0", f"{n + 2}.5", f"{n * 3}.1", f"{n * n}"] for n in range(10, 60, 7)]


@pytest.mark.parametrize("text", [
    "Pump P-17\n\n| Flow | 12.5 | m3/h |\n|---|---|---|\n| Head | 32.1 | m |\n| Speed | 2900 | rpm |\n",
    "Pump P-17\nFlow rate ............ 12.5 m3/h\nHead ................. 32.1 m\nSpeed ................ 2900 rpm\n",
    "Pump P-17\nFlow: 12.5 m3/h\nHead: 32.1 m\nPower: 4.0 kW\nCurrent: 7.9 A\nVoltage: 400 V\n",
    *("Deflection of beam HEA 200\n\n" + "\n".join(between.join(row) for row in GRID) for between in ("   ", "\t", ";", " | "))])
def test_data_sheets_stay(text): assert find_quality_fault("docs", text, **RULES) == ""


@pytest.mark.parametrize("text", [
    "- [ ] Check oil\n- [ ] Grease arm\n- [x] Tighten belt\n- [ ] Test guard\n", "".join(f"[ ] V{n}\n[x] M{n}\n" for n in range(8)).replace("V", "Valve ").replace("M", "Motor "),
    "☐ Ölstand prüfen\n☐ Arm schmieren\n☑ Riemen spannen\n☐ Schutz testen\n", "- [ ] Oil\n- [ ] Nut\n- [ ] Arm\n- [ ] Pin\n- [ ] Key\n- [ ] Rod\n",
    "".join(f"## Day {n}\n- [ ] Check the oil\n- [ ] Grease the arm\n- [ ] Sign ...\n" for n in range(7))])
def test_task_lists_stay(text): assert find_quality_fault("docs", text, **RULES) == ""


@pytest.mark.parametrize("text", ["安全须知：操作前请切断电源。\n", "ポンプの整備は毎週行います。\n", "ตรวจสอบปั๊มทุกสัปดาห์\n", "ពិនិត្យម៉ាស៊ីនរៀងរាល់សប្តាហ៍\n", "ກວດສອບປໍ້າທຸກໆອາທິດ\n", "စက်ကိုအပတ်တိုင်းစစ်ဆေးပါ\n"])
def test_short_texts_without_blanks_stay(text): assert find_quality_fault("docs", text, **RULES) == ""


@pytest.mark.parametrize("text, fault", [
    ("好的。\n", "too short"), ("Mind the step.\n", "too short"), ("12.5   17.2   99.1\n" * 20, "hardly any words"), ("-- ** --\n" * 30, "hardly any words"),
    ("Accept all cookies now\n" * 20, "repeated lines"), ("".join(f"Teaser number {n} goes on ...\n" for n in range(20)), "cut-off lines"), ("a b c d e f g h " * 20, "not made of words")])
def test_what_teaches_nothing_goes(text, fault): assert find_quality_fault("docs", text, **RULES) == fault
