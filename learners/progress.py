"""What a person sees while a command works; plain lines where no terminal is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import rich.progress
from rich.console import Console
from rich.table import Table

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
