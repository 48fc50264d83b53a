"What is on record about the slow tier, and whether the environment is what its packages ask for"
import ast, subprocess, sys, warnings

from conftest import ROOT, code_hash, read_record


def is_slow(decorator) -> bool: return "mark.slow" in ast.unparse(decorator)


def slow_tests() -> set:
    "Functions of tests/ that `make test-slow` runs"
    found = set()
    for path in (ROOT/"tests").rglob("test_*.py"):
        for f in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(f, ast.FunctionDef) and any(map(is_slow, f.decorator_list)):
                found.add(f"{path.relative_to(ROOT).as_posix()}::{f.name}")
    return found


def test_slow_tests_are_on_record_and_say_which_code_they_prove():
    record = read_record()
    known = {test.split("[")[0] for test in record}
    assert slow_tests() <= known, f"never run: {sorted(slow_tests() - known)}; `make test-slow` before a release"
    failed = [test for test, row in record.items() if row["outcome"] != "passed"]
    assert not failed, f"results/slow.csv holds failures: {failed}; mend them, then `make test-slow`"
    stale = sorted(test for test, row in record.items() if row["code"] != code_hash())
    if stale: warnings.warn(f"results/slow.csv proves other code than this for {len(stale)} of {len(record)} slow tests; "
                            "`make test-slow` before a release")


def test_packages_agree():
    "The lock is installed with --no-deps, so nothing else would notice a clash; of reasoning-gym the lock has one task alone"
    told = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, encoding="utf-8").stdout
    clashes = [line for line in told.splitlines() if not line.startswith(("reasoning-gym ", "No broken"))]
    assert not clashes, "\n".join(clashes)
