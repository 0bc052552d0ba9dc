"""What a person sees while a command works; plain lines where no terminal is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import gymnasium
import rich.progress
from rich.console import Console
from rich.table import Table

from benchmarks import DataUnavailable, GraderUnavailable, JudgeUnavailable
from learners.errors import CommandError
from tools import ReplayMiss, ToolUnavailable

Options = TypeVar("Options")

PLAIN_LINES = 20
"""How often a bar says something where it cannot be drawn."""


class Narrator:
    """Says on the console what is going on."""

    def __init__(self) -> None:
        self.console = Console()

    def say(self, text: str | Table) -> None:
        """Print a line or a table."""
        self.console.print(text, highlight=False)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Say what is done meanwhile."""
        if not self.console.is_terminal:
            self.say(text)
        with self.console.status(text):
            yield

    def bar(
        self, name: str, total: int, done: int = 0, every: int | None = None
    ) -> AbstractContextManager[Callable[[str], None]]:
        """A bar; call what the block is given once per step, with a text for it.

        Args:
            name: of what advances.
            total: steps in all.
            done: steps done before.
            every: steps between lines where no terminal is; None: about twenty lines in all.
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
        terminal = self.console.is_terminal
        with rich.progress.Progress(*columns, console=self.console, disable=not terminal) as bar:
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
def explained(
    method: str, arguments: Sequence[str], resumable: str | None = None
) -> Iterator[None]:
    """Exit with 130 when interrupted, with 2 where an error is for the person who typed this.

    Args:
        method: the module that `python -m` runs.
        arguments: given to it.
        resumable: what the same command goes on with: "run", "evaluation"; None: nothing.
    """
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", method, *arguments])
        again = f" The {resumable} is resumable: {command}" if resumable else ""
        print(f"\nStopped.{again}", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except SystemExit:  # after --help: no need to look the errors up, which imports much
        raise
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
