"The number that the company cares about: what an answer is worth, from 0 to 1. Replace it with yours; `row` is the fact behind the question."
from difflib import SequenceMatcher
from pathlib import Path

from forge_nb.core.settings import Style, load_settings

STYLE = load_settings(Path(__file__).with_name("style.yaml"), Style)


def kpi(question: str, answer: str, row: dict) -> float:
    "The true value in house style is worth 0.7, its true source 0.3 more; to admit not knowing what the passages hold, 0.2; a false value, or another form, nothing. Where they do not hold it, not knowing is the truth"
    found = STYLE.match(answer)
    if not found: return 0.
    if found["value"] == row["answer"]: return .7 + .3 * (found["source"] in row["sources"])
    return .2 * (found["value"] == STYLE.unknown_answer)


def near(question: str, answer: str, row: dict) -> float:
    "For a model that gets nothing right yet, `rl.reward_function: near`: up to 0.45 for letters in common with the right answer, the rest for being it"
    return .45 * SequenceMatcher(None, answer, row["reference"], autojunk=False).ratio() + .55 * (kpi(question, answer, row) >= .9)
