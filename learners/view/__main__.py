"""python -m learners.view RUN: show a run's rollout trees as one HTML page, or serve them live.

The page answers "where did this agent decide, and was it rewarded for it?". It needs no network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learners.errors import RolloutFileError
from learners.rollouts import list_iterations
from learners.view.data import collect_page_data
from learners.view.page import build_page
from learners.view.server import serve

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Options:
    """Options of the viewer."""

    run: Path
    """Folder of a run."""
    iterations: tuple[int, ...] = ()
    """Iterations whose trees are shown; none: the last one."""
    out: Path | None = None
    """File to write the page to; None: RUN/view.html."""
    megabytes: float = 4.0
    """Maximum size of the trees in a page; it says how many it leaves out."""
    live: bool = False
    """Serve the run while it trains, instead of writing a page."""
    host: str = "127.0.0.1"
    """Address to serve at; beyond loopback addresses, other machines can read the run too."""
    port: int = 8765
    """Port to serve at; 0: any free port."""

    @property
    def max_bytes(self) -> int:
        """Maximum size of the trees as JSON."""
        return int(self.megabytes * MEGABYTE)


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
            serve(options.run, options.host, options.port, options.max_bytes)
            return
        path = write_page(options)
    except RolloutFileError as error:
        print(f"RolloutFileError: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    print(f"{path} ({path.stat().st_size / MEGABYTE:.1f} MB); open it in a browser")  # noqa: T201


def write_page(options: Options) -> Path:
    """Write the page of a run.

    Returns:
        The page's path.

    Raises:
        RolloutFileError: there is no such run or iteration.
    """
    iterations = options.iterations or (list_iterations(options.run)[-1],)
    data = collect_page_data(options.run, iterations, options.max_bytes)
    path = options.out or options.run / "view.html"
    path.write_text(build_page(data), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
