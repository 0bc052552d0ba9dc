"""The house: imports point down and go through doors, files stay small, names do not collide."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

from tests.conftest import ROOT

BELOW = {
    "learners": {"learners", "envs", "tools", "benchmarks"},
    "envs": {"envs", "tools", "benchmarks"},
    "tools": {"tools"},
    "benchmarks": {"benchmarks"},
}
"""Which of our packages each package may import."""
FLOORS = (
    {"tree", "config", "errors", "ledger", "metrics", "run_folder", "console", "intervals"}
    | {"plotting"},
    {"policy"},
    {"sampling"},
    {"rl"},
    {"rollouts"},
    {"runs"},
    {"appo_reference"},
    {"appo", "grpo", "arpo", "aepo", "tree_grpo", "reinforce_pp", "dapo", "gppo", "cispo"}
    | {"gigpo", "rloo", "dr_grpo", "gspo"},
    {"evaluate", "sft", "branching_variance", "recount"},
    {"compare", "replay"},
    {"view", "figures"},
)
"""Modules and rooms of learners from the bottom up; a room imports only rooms below its own."""
TOOL_FLOORS = (
    {"tool", "extras", "per_process", "cache", "calculator"},
    {"repl"},
    {"sandbox"},
    {"web"},
    {"search"},
    {"python", "local_index", "dense", "retrieval_server"},
)
"""The same for tools."""
ONLY_IN = {
    "torch": "learners/",
    "transformers": "learners/",
    "docker": "tools/sandbox/docker_engine.py",
    "sandlock": "tools/",
    "ddgs": "tools/",
    "vllm": "learners/sampling/vllm_engine.py",
}
"""Dependencies that only some files may import."""
HEAVY = {
    *("torch", "transformers", "vllm", "peft", "tyro", "rich", "matplotlib", "pyarrow", "datasets"),
    *("huggingface_hub", "math_verify", "sympy", "docker", "sandlock", "httpx", "anyio", "numpy"),
    *("starlette", "uvicorn", "ddgs", "trafilatura", "pypdf", "tantivy", "bm25s"),
}
"""Libraries that may be imported inside a function: they load for long, or may be missing."""
FILE_LINES, FUNCTION_LINES, MODULES = 500, 50, 25
FILES = sorted(path for package in BELOW for path in (ROOT / package).rglob("*.py"))
PACKAGES = sorted({path.parent for path in FILES})


def name_of(path):
    return str(path.relative_to(ROOT))


def dotted(path):
    """The module of a file; a package's for its `__init__.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULE = {dotted(path): path for path in FILES}


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    """Every absolute name that a file imports wherever in the file, as (module, name or None)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            yield from ((node.module, alias.name) for alias in node.names)


def our_imports(tree):
    """Our modules and packages that a file imports, as dotted names."""
    for module, name in imported(tree):
        inner = f"{module}.{name}"
        if inner in MODULE:
            yield inner
        elif module in MODULE:
            yield module


def package_of(module):
    """The package that a module lies in; a package lies in itself."""
    return module if MODULE[module].name == "__init__.py" else module.rpartition(".")[0]


def is_inside(module, package):
    """True where a module lies in a package or below it."""
    return module == package or module.startswith(f"{package}.")


def functions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def body_lines(function):
    """Lines of a function without its decorators, signature and docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def floor(module, floors):
    """The floor of a module of learners or tools; None of the package's own door."""
    room = module.split(".")[1] if "." in module else None
    heights = [height for height, rooms in enumerate(floors) if room in rooms]
    assert room is None or heights, f"{module} stands on no floor: add it to this test"
    return heights[0] if heights else None


def rises(module, tree):
    """Imports of a module that point to a higher floor, or to another room of its own floor."""
    package = module.split(".")[0]
    floors = {"learners": FLOORS, "tools": TOOL_FLOORS}.get(package)
    own = floor(module, floors) if floors else None
    if own is None:  # a flat package, or the package's door
        return []
    targets = {name for name in our_imports(tree) if name.split(".")[0] == package}
    room = module.split(".")[1]
    others = [name for name in targets if "." in name and name.split(".")[1] != room]
    # Ground floor modules may use each other: the test of circles keeps their order.
    return [name for name in others if floor(name, floors) >= max(own, 1)]


def is_behind_a_door(name, module):
    """True for a file of ours that lies outside the package of the module that imports it."""
    is_file = name in MODULE and MODULE[name].name != "__init__.py"
    return is_file and not is_inside(module, package_of(name))


def unnamed_modules(module, tree):
    """Modules imported by name from a package whose `__all__` does not list them."""
    for name in our_imports(tree):
        package, _, inner = name.rpartition(".")
        if is_behind_a_door(name, module) and inner not in exports(parsed(MODULE[package])):
            yield name


def exports(tree):
    """Names of a module's `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def bypassed_doors(module, tree):
    """Names imported past a door: from a module instead of its package."""
    return [name for name, _ in imported(tree) if is_behind_a_door(name, module)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name, _ in imported(parsed(path))} & set(BELOW)
    assert ours <= BELOW[package], f"{name_of(path)} imports {sorted(ours - BELOW[package])}"
    above = rises(dotted(path), parsed(path))
    assert not above, f"{name_of(path)} imports from a floor above: {sorted(above)}"


def test_no_imports_form_a_circle():
    """Local imports and those for type checkers count. A package's door is no part of a circle
    inside it: it is loaded first by whatever enters."""
    graph = {
        name: {other for other in our_imports(parsed(path)) if other != name}
        for name, path in MODULE.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_other_rooms_are_entered_by_their_doors(path):
    module, tree = dotted(path), parsed(path)
    assert not bypassed_doors(module, tree), "import from the package instead"
    assert not list(unnamed_modules(module, tree)), "list the module in its package's __all__"


@pytest.mark.parametrize("folder", PACKAGES, ids=name_of)
def test_a_door_has_a_line_for_every_module(folder):
    text = ast.get_docstring(parsed(folder / "__init__.py"))
    words = set(text.replace(",", " ").replace(";", " ").replace(".", " ").split())
    inside = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    inside |= {path.name for path in folder.iterdir() if (path / "__init__.py").exists()}
    assert not inside - words, f"{name_of(folder)}/__init__.py says nothing of {inside - words}"


@pytest.mark.parametrize("folder", PACKAGES, ids=name_of)
def test_a_folder_holds_at_most_25_modules(folder):
    inside = [path.stem for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(inside) <= MODULES, f"{name_of(folder)} holds {len(inside)}: which rooms are these?"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_shipped_imports_a_test(path):
    assert "tests" not in {name.split(".")[0] for name, _ in imported(parsed(path))}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_dependency_is_imported_where_it_belongs(path):
    for name, _ in imported(parsed(path)):
        place = ONLY_IN.get(name.split(".")[0], "")
        assert name_of(path).startswith(place), f"{name_of(path)} imports {name}, not in {place}"


def is_guard(node):
    """True of `if TYPE_CHECKING:` and `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and ast.unparse(node.test).startswith(("TYPE_CH", "__name__"))


def late_imports(tree):
    """Lines of imports that are neither at the top of a file nor of a heavy library."""
    top = [*tree.body, *chain.from_iterable(node.body for node in tree.body if is_guard(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in top:
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            if module.split(".")[0] not in HEAVY:
                yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_stand_at_the_top(path):
    """Commands may import late: their help and their usage errors come before heavy work."""
    if path.name != "__main__.py":
        assert not list(late_imports(parsed(path)))


def quoted_annotations(tree):
    """Lines of annotations that are strings, or hold one outside Literal."""
    for node in ast.walk(tree):
        annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for annotation in filter(None, annotations):
            literal = [n for n in ast.walk(annotation) if isinstance(n, ast.Subscript)]
            literal = [n for n in literal if ast.unparse(n.value).endswith("Literal")]
            allowed = set(chain.from_iterable(map(ast.walk, literal)))
            for inner in ast.walk(annotation):
                text = isinstance(inner, ast.Constant) and isinstance(inner.value, str)
                if text and inner not in allowed:
                    yield inner.lineno


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_annotation_is_quoted(path):
    tree = parsed(path)
    future = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    only_text = all(isinstance(node, ast.Expr) for node in tree.body)
    assert future or only_text, "begin with `from __future__ import annotations`"
    assert not list(quoted_annotations(tree))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_stays_under_500_lines(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{name_of(path)} has {lines} lines: what is it about? Split it."


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
    assert dotted(path).split(".")[0] not in taken


def test_the_ground_floor_loads_no_torch():
    """Commands that train nothing answer in a fraction of a second."""
    code = "".join(f"import learners.{name}\n" for name in sorted(FLOORS[0]))
    code += "import learners.evaluate.__main__, learners.compare.__main__, learners.sft.__main__\n"
    code += "import sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"


TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path.name != "needs.py")


def skips(tree):
    """Lines that skip by pytest's own words."""
    words = {"skip", "skipif", "importorskip", "xfail"}
    named = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in words]
    return sorted(n.lineno for n in named if ast.unparse(n.value) in ("pytest", "pytest.mark"))


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_a_skip_says_what_to_install_and_where_the_test_runs(path):
    assert not skips(parsed(path)), "skip by tests/needs.py, which asks for both"


def test_the_rules_see_what_they_forbid():
    """The checks above on files that break them: a check that finds nothing proves nothing."""
    tree = ast.parse("def f():\n    import learners.appo\n" + "    x = 1\n" * 51)
    assert list(our_imports(tree)) == ["learners.appo"]
    assert [body_lines(function) for function in functions(tree)] == [52]
    assert list(late_imports(tree)) == [2]
    assert skips(ast.parse('import pytest\npytest.skip("no")\n@pytest.mark.xfail\ndef f(): 0')) == [
        2,
        3,
    ]
    upward = ast.parse("if TYPE_CHECKING:\n    from learners.runs import Run")
    assert rises("learners.rl.kl", upward) == ["learners.runs"]
    assert rises("learners.appo", upward) == []
    assert rises("tools.repl.hub", ast.parse("from tools.sandbox import Limits")) != []
    past = ast.parse("from learners.policy.batch import Batch")
    assert bypassed_doors("learners.grpo", past) == ["learners.policy.batch"]
    assert bypassed_doors("learners.policy.policy", past) == []
    unlisted = ast.parse("from learners.policy import batch")
    assert list(unnamed_modules("learners.grpo", unlisted)) == ["learners.policy.batch"]
    assert list(quoted_annotations(ast.parse('def f(a: "int", b: Literal["x"]) -> int: ...'))) == [
        1
    ]
    assert Path(__file__) in TESTS
