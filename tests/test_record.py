"What is on record about the slow tier, and whether the environment is what its packages ask for"
import ast, subprocess, sys, warnings

from conftest import code_hash, read_record
from copies import ROOT


def is_slow(decorator) -> bool: return "mark.slow" in ast.unparse(decorator)


def slow_tests() -> set:
    "Functions of tests/ that `make test-slow` runs"
    found = set()
    for path in (ROOT/"tests").rglob("test_*.py"):
        for f in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(f, ast.FunctionDef) and any(map(is_slow, f.decorator_list)):
                found.add(f"{path.relative_to(ROOT).as_posix()}::{f.name}")
    return found


def test_the_record_of_the_slow_tier_says_what_it_proves():
    "Stale rows and tests that were never run are a warning, since the slow tier belongs to a release; a failure on record is not"
    record, known = read_record(), slow_tests()
    gone = sorted(test for test in record if test.split("[")[0] not in known)
    assert known and not gone, f"results/slow.csv names tests that are no longer there: {gone}; remove their rows"
    failed = [test for test, row in record.items() if row["outcome"] != "passed"]
    assert not failed, f"results/slow.csv holds failures: {failed}; mend them, then `make test-slow`"
    never = sorted(known - {test.split("[")[0] for test in record})
    stale = sorted(test for test, row in record.items() if row["code"] != code_hash(test))
    if never or stale: warnings.warn(f"results/slow.csv: {len(stale)} of {len(record)} rows prove other code than this, {len(never)} "
                                     f"slow tests were never recorded ({', '.join(never[:3])} …); `make test-slow` before a release", stacklevel=2)


def test_packages_agree():
    "The lock is installed with --no-deps, so nothing else would notice a clash; of reasoning-gym the lock has one task alone"
    told = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, encoding="utf-8").stdout
    clashes = [line for line in told.splitlines() if not line.startswith(("reasoning-gym ", "No broken"))]
    assert not clashes, "\n".join(clashes)
