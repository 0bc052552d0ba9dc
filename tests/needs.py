"""What a test may lack: every skip says what to install or set, and where the test does run.

Nothing else skips (test_architecture.py); `pytest -rs` lists what was.
"""

import importlib.util

import pytest

SET_UP = "wherever `make setup` was run, CI included"
SANDBOX = (
    "a local sandbox",
    "Linux 6.12 with Landlock and seccomp, see docs/sandbox.md",
    "on such kernels, CI included",
)
BFLOAT16 = (
    "products of bfloat16 on the processor",
    "run on x86 with avx512_bf16 or amx_bf16 (`lscpu`), with the torch of `make setup`",
    "on such processors, CI's where it has one",
)
ROUNDED_FACTORS = (
    "float32 products whose factors the processor rounds to bfloat16",
    "run on x86 with amx_bf16 (`lscpu`), with the torch of `make setup`; avx512_bf16 rounds none",
    "on such processors, CI's where it has one",
)
ROWS = (
    "the benchmarks' rows",
    "set APPO_DATA to their folder, see docs/benchmarks.md",
    "where it is set or ../shared/data is there",
)
GOLDEN = (
    "numbers of the reference implementations",
    "set APPO_GOLDEN to their folder",
    "where it is set or ../shared/golden is there",
)


def reason(what: str, remedy: str, where: str) -> str:
    return f"needs {what}: {remedy}; runs {where}"


def lacking(what: str, remedy: str, where: str) -> None:
    """Skip the test, or with its fixture all that use it."""
    pytest.skip(reason(what, remedy, where))


def unless(there: bool, what: str, remedy: str, where: str) -> pytest.MarkDecorator:
    """Mark what skips unless something is there."""
    return pytest.mark.skipif(not there, reason=reason(what, remedy, where))


def packages(*names: str, remedy: str = "`make setup`", where: str = SET_UP) -> None:
    """Skip the test, or the module at its top, where a package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:  # importing it here would be slow
            pytest.skip(reason(f"the package {name}", remedy, where), allow_module_level=True)
