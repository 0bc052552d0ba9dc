"""Checks at the construction of an optional tool that its packages are installed."""

from __future__ import annotations

from importlib.util import find_spec


def require(extra: str, *modules: str) -> None:
    """Check that modules can be imported.

    Args:
        extra: extra of this distribution that installs them.
        modules: names to import.

    Raises:
        ModuleNotFoundError: a module is missing; the message has the command that installs it.
    """
    for name in modules:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"{name} is not installed; get it with `pip install 'appo-gym[{extra}]'`", name=name
            )
