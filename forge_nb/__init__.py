"What a command says when the package itself cannot start. No notebook makes this file: it must work when they are broken."
import sys, traceback
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _sentence(error: BaseException) -> str:
    "One sentence for a broken module or a wrong folder, or '' for anything else"
    if type(error).__name__ == "Invalid": return str(error)
    places = [error.filename] if isinstance(error, SyntaxError) else [f.filename for f in traceback.extract_tb(error.__traceback__)]
    place = Path(places[-1] or "").resolve() if places else _HERE
    if not isinstance(error, (SyntaxError, ImportError)) or _HERE not in place.parents: return ""
    line = f", line {error.lineno} (`{(error.text or '').strip()[:60]}`)" if isinstance(error, SyntaxError) else ""
    ours = isinstance(error, SyntaxError) or (error.name or "").startswith("forge_nb")
    remedy = "`make export` writes the package anew from the notebooks" if ours else "`make setup` installs what requirements.lock names"
    return f"{place.relative_to(_HERE.parent).as_posix()}{line} cannot be imported: {getattr(error, 'msg', error)}; {remedy}"


def _report(kind, error, trace, other=sys.excepthook):
    "Print the sentence and exit with 2; other errors keep their traceback"
    if not (sentence := _sentence(error)): return other(kind, error, trace)
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


sys.excepthook = _report
