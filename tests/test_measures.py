"The measures that keep pages readable: columns, tokens on a line, lines in a cell, lessons beside definitions"
import ast, io, tokenize

import nbformat
import pytest
from forge_nb.core.project import ROOT
from forge_nb.core.tangle import is_exported, list_notebooks, notebook_paths

COLUMNS, TOKENS, BODY, ROW = 120, 30, 25, 2
PAGES = list(list_notebooks().values())
QUIET = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}
DEFINITION = (ast.FunctionDef, ast.ClassDef)


def cells(path): return nbformat.read(path, 4).cells


def head(node) -> set:
    "Lines of a definition's signature and docstring"
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    last = node.body[0].end_lineno if ast.get_docstring(node) else max(node.lineno, node.body[0].lineno - 1)
    return set(range(first, last + 1))


def body_lines(source: str) -> dict:
    "Tokens on each line that is neither signature, docstring nor import"
    tree, skip, count = ast.parse(source), set(), {}
    for node in ast.walk(tree):
        if isinstance(node, DEFINITION): skip |= head(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)): skip |= set(range(node.lineno, node.end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in QUIET and token.start[0] not in skip: count[token.start[0]] = count.get(token.start[0], 0) + 1
    return count


@pytest.mark.parametrize("path", notebook_paths())
def test_no_line_is_wider_than_120_columns(path):
    wide = [(n, line) for n, c in enumerate(cells(ROOT/path), 1) if c.cell_type == "code"
            for line in c.source.splitlines() if len(line) > COLUMNS]
    assert not wide, f"{path}: {len(wide)} lines, the first in cell {wide[0][0]}: {wide[0][1]}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_cells_are_short(path):
    long = {n: len(count) for n, c in enumerate(cells(path), 1) if is_exported(c)
            and len(count := body_lines(c.source)) > BODY}
    assert not long, f"{path.name}: cells with more than {BODY} body lines: {long}"


def test_lines_hold_few_tokens():
    "At most so many tokens on 99 of 100 body lines of the package"
    counts = sorted(k for path in PAGES for c in cells(path) if is_exported(c) for k in body_lines(c.source).values())
    assert counts[int(len(counts) * .99)] <= TOKENS, f"99th percentile {counts[int(len(counts) * .99)]}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_definitions_have_a_lesson_or_prose_beside_them(path):
    row = []
    for n, c in enumerate(cells(path), 1):
        if not is_exported(c): row = []
        elif names := [s.name for s in ast.parse(c.source).body if isinstance(s, DEFINITION)]: row += names
        assert len(row) <= ROW, f"{path.name}, cell {n}: {', '.join(row)} follow one another without lesson or prose"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_each_parameter_has_a_line_and_a_docment(path):
    for c in filter(is_exported, cells(path)):
        lines = c.source.splitlines()
        for f in [s for s in ast.parse(c.source).body if isinstance(s, ast.FunctionDef) and s.name[0] != "_"]:
            arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            assert len({a.lineno for a in arguments}) == len(arguments), f"{path.name}: {f.name}: one parameter a line"
            bare = [a.arg for a in arguments if "#" not in lines[(a.end_lineno or a.lineno) - 1]]
            assert not bare, f"{path.name}: {f.name}: no docment for {', '.join(bare)}"
