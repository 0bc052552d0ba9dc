"""What an optional tool needs beyond the installation, asked for when the tool is made."""

from __future__ import annotations

from importlib.util import find_spec


def require(extra: str, *modules: str) -> None:
    """Nothing if the modules can be imported.

    Args:
        extra: of this distribution, which installs them.
        modules: names to import.

    Raises:
        ModuleNotFoundError: one cannot; the message has the command.
    """
    for name in modules:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"{name} is not installed; get it with `pip install 'appo-gym[{extra}]'`", name=name
            )
