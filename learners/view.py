"""python -m learners.view RUN: a run's rollout trees as one HTML page, or served while it runs.

The page answers "where did this agent decide, and was it rewarded for it?". It needs no network
and holds what a run said only as escaped data, under a content security policy that admits nothing
but the page's own script and style.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.rollout_files import RolloutFileError, list_iterations
from learners.view_data import page_data

HERE = Path(__file__).parent
SCRIPTS = ("view_model.js", "view_tree.js", "view_text.js", "view_decide.js", "view_app.js")
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Options:
    """What is shown."""

    run: Path
    """Folder of a run."""
    iterations: tuple[int, ...] = ()
    """Iterations whose trees are shown; none: the last one."""
    out: Path | None = None
    """The page; None: RUN/view.html."""
    megabytes: float = 4.0
    """Most of trees in a page; what is beyond is left out and counted in it."""
    live: bool = False
    """Serve the run while it trains, in place of writing a page."""
    host: str = "127.0.0.1"
    """Address to serve at; others than this machine's let everyone see what the run said."""
    port: int = 8765
    """Port to serve at; 0 takes a free one."""


def page(data: dict[str, Any] | None) -> str:
    """One self-contained HTML page.

    Args:
        data: of `page_data`; None: the page asks the server that it came from.
    """
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n{script}'
    style = (HERE / "view_page.css").read_text(encoding="utf-8")
    html = (HERE / "view_page.html").read_text(encoding="utf-8")
    parts = {
        "{{POLICY}}": policy(script, style, live=data is None),
        "{{STYLE}}": style,
        "{{SCRIPT}}": script,
        "{{DATA}}": escaped(data),
    }
    for mark, text in parts.items():  # the run's own text last: it may look like a mark
        html = html.replace(mark, text, 1)
    return html


def policy(script: str, style: str, live: bool) -> str:
    """The content security policy: this script, this style, and nothing else."""
    asked = "; connect-src 'self'" if live else ""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        f"base-uri 'none'; form-action 'none'{asked}"
    )


def escaped(data: object) -> str:
    """JSON that no HTML parser reads as anything but text."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or serve it until Ctrl-C."""
    import tyro

    options = tyro.cli(
        tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(Options),
        args=arguments,
        prog="python -m learners.view",
        description=__doc__,
    )
    try:
        if options.live:
            from learners.view_server import serve

            serve(options.run, options.host, options.port, int(options.megabytes * MEGABYTE))
            return
        path = write_page(options)
    except RolloutFileError as error:
        print(f"RolloutFileError: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    print(f"{path} ({path.stat().st_size / MEGABYTE:.1f} MB); open it in a browser")  # noqa: T201


def write_page(options: Options) -> Path:
    """Write the page of a run; returns where it lies.

    Raises:
        RolloutFileError: there is no such run or iteration.
    """
    numbers = options.iterations or (list_iterations(options.run)[-1],)
    data = page_data(options.run, numbers, int(options.megabytes * MEGABYTE))
    path = options.out or options.run / "view.html"
    path.write_text(page(data), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
