"""The console of every command: lines, tables, progress bars, options, errors and exit codes.

If the output is not a terminal, everything is printed as plain lines.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import gymnasium
import rich.console
import rich.progress

from benchmarks import DataUnavailable, GraderUnavailable, JudgeUnavailable
from learners.errors import CommandError
from tools import ReplayMiss, ToolUnavailable

Options = TypeVar("Options")

PLAIN_LINES = 20
"""Lines that a progress bar prints in all if the output is not a terminal."""


class Console:
    """Prints lines, tables and progress to the standard output."""

    def __init__(self) -> None:
        self._console = rich.console.Console()

    def set_plain_width(self, width: int) -> None:
        """Set the width in characters if the output is not a terminal, which has no width."""
        if not self._console.is_terminal:
            self._console.width = width

    def say(self, text: rich.console.RenderableType) -> None:
        """Print a line, a table or another renderable of rich."""
        self._console.print(text, highlight=False)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show a text while the block runs."""
        if not self._console.is_terminal:
            self.say(text)
        with self._console.status(text):
            yield

    def bar(
        self, name: str, total: int, done: int = 0, every: int | None = None
    ) -> AbstractContextManager[Callable[[str], None]]:
        """Show a progress bar; the block calls the yielded function once per step, with a text.

        Args:
            name: label of the bar.
            total: number of steps.
            done: steps that are already done.
            every: steps between two lines if the output is not a terminal; None: about twenty
                lines in all.
        """
        return self._bar(name, total, done, every or max(1, total // PLAIN_LINES))

    @contextmanager
    def _bar(self, name: str, total: int, done: int, every: int) -> Iterator[Callable[[str], None]]:
        columns = (
            rich.progress.TextColumn(name),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.description}"),
        )
        terminal = self._console.is_terminal
        with rich.progress.Progress(*columns, console=self._console, disable=not terminal) as bar:
            task = bar.add_task("", total=total, completed=done)
            count = done

            def advance(text: str) -> None:
                nonlocal count
                count += 1
                bar.update(task, completed=count, description=text)
                if not terminal and count % every == 0:
                    self.say(f"{name} {count}/{total}  {text}")

            yield advance


def parse_options(
    method: str, default: Options, arguments: Sequence[str], doc: str | None = None, prog: str = ""
) -> Options:
    """Parse a command line into a config whose groups add nothing to the names of options.

    Args:
        method: the module that `python -m` runs.
        default: the config to start from.
        arguments: the command line.
        doc: the module's docstring; its first paragraph opens the help text.
        prog: text in front of the command in help and errors.
    """
    import tyro  # slow to load

    return tyro.cli(
        type(default),
        args=arguments,
        default=default,
        prog=f"{prog}python -m {method}",
        description=(doc or "").split("\n\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )


@contextmanager
def report_errors(
    method: str, arguments: Sequence[str], resumable: str | None = None
) -> Iterator[None]:
    """Turn an interrupt into exit code 130, and an expected error into a line and exit code 2.

    Args:
        method: the module that `python -m` runs.
        arguments: the command line.
        resumable: "run" or "evaluation" if the same command resumes it; None: nothing to resume.
    """
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", method, *arguments])
        hint = f" The {resumable} is resumable: {command}" if resumable else ""
        print(f"\nStopped.{hint}", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except expected_errors() as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is for the person who typed the command."""
    return (
        CommandError,
        ReplayMiss,
        DataUnavailable,
        ToolUnavailable,
        GraderUnavailable,
        JudgeUnavailable,
        gymnasium.error.Error,
    )
