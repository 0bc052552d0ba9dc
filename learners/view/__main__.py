"""python -m learners.view RUN: a run's rollout trees as one HTML page, or served while it runs.

The page answers "where did this agent decide, and was it rewarded for it?". It needs no network
and holds what a run said only as escaped data, under a content security policy that admits nothing
but the page's own script and style.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learners.errors import RolloutFileError
from learners.rollouts import list_iterations
from learners.view.data import page_data
from learners.view.page import page

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
            from learners.view.server import serve

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
