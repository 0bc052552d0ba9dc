"""The house: imports point one way, files and functions stay small, names collide with nothing."""

import ast
import sys

import pytest

from tests.conftest import ROOT

BELOW = {
    "learners": {"learners", "envs", "tools", "benchmarks"},
    "envs": {"envs", "tools", "benchmarks"},
    "tools": {"tools"},
    "benchmarks": {"benchmarks"},
}
"""Which of our packages each package may import."""
ONLY_IN = {
    "torch": "learners/",
    "transformers": "learners/",
    "docker": "tools/docker_sandbox.py",
    "sandlock": "tools/",
    "ddgs": "tools/",
}
"""Dependencies that only some files may import."""
FILE_LINES, FUNCTION_LINES = 300, 50
FILES = sorted(path for package in BELOW for path in (ROOT / package).rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def imported(tree):
    """Every absolute module name that a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            yield node.module


def functions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def body_lines(function):
    """Lines of a function without its decorators, signature and docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.partition(".")[0] for name in imported(parsed(path))} & set(BELOW)
    assert ours <= BELOW[package], f"{name_of(path)} imports {sorted(ours - BELOW[package])}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_shipped_imports_a_test(path):
    assert "tests" not in {name.partition(".")[0] for name in imported(parsed(path))}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_dependency_is_imported_where_it_belongs(path):
    for name in imported(parsed(path)):
        place = ONLY_IN.get(name.partition(".")[0], "")
        assert name_of(path).startswith(place), f"{name_of(path)} imports {name}, not in {place}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_stays_under_300_lines(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < FILE_LINES, f"{name_of(path)} has {lines} lines: what is it about? Split it."


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_stays_under_50_lines(path):
    long = {
        f.name: body_lines(f) for f in functions(parsed(path)) if body_lines(f) > FUNCTION_LINES
    }
    assert not long, f"{name_of(path)} has long functions: {long}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_is_named_like_one_of_the_standard_library_or_a_dependency(path):
    taken = {"datasets", "docker", "gymnasium", "numpy", "pyarrow", "ray", "rich", "sandlock"}
    taken |= {"sympy", "torch", "transformers", "tyro", "vllm", *sys.stdlib_module_names}
    assert path.stem not in taken - {"__init__", "__main__"}


TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path.name != "needs.py")


def skips(tree):
    """Lines that skip by pytest's own words."""
    words = {"skip", "skipif", "importorskip", "xfail"}
    named = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in words]
    return sorted(n.lineno for n in named if ast.unparse(n.value) in ("pytest", "pytest.mark"))


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_a_skip_says_what_to_install_and_where_the_test_runs(path):
    assert not skips(parsed(path)), "skip by tests/needs.py, which asks for both"


def test_there_are_four_packages_and_no_nested_ones():
    assert {path.parent for path in FILES} == {ROOT / package for package in BELOW}


def test_the_rules_see_what_they_forbid():
    """The checks above on a file that breaks them: a check that finds nothing proves nothing."""
    tree = ast.parse("def f():\n    import learners.appo\n" + "    x = 1\n" * 51)
    assert list(imported(tree)) == ["learners.appo"]
    assert [body_lines(function) for function in functions(tree)] == [52]
    assert skips(ast.parse('import pytest\npytest.skip("no")\n@pytest.mark.xfail\ndef f(): 0')) == [
        2,
        3,
    ]
