"""What a person sees while a run goes on."""

from contextlib import AbstractContextManager
from typing import Any, Self

import rich.progress
from rich.console import Console

from learners.training import Session


class Progress:
    """A header, a bar, a line per iteration on a plain output. Mutated by `iteration`."""

    def __init__(self, method: str, session: Session, resumed: int | None) -> None:
        self.console = Console()
        run = session.run
        config = run.config
        self._total = config.iterations
        rate = run.policy.optimizer.param_groups[0]["lr"]
        size = run.policy.model.num_parameters() / 1e6
        self.console.print(
            f"[bold]{method}[/] on {config.env}: {config.model} ({size:.1f}M parameters), "
            f"scale {config.scale}, {config.prompts} prompts x {getattr(config, 'rollouts', 1)} "
            f"rollouts, learning rate {rate:g}, {config.iterations} iterations",
            highlight=False,
        )
        self.console.print(
            f"training on the {config.train_split} split: {len(session.tasks)} tasks from "
            f"{run.rollouts.env.benchmark.train_source}; evaluating on "
            f"{config.eval_tasks} test tasks; run folder {session.folder}",
            highlight=False,
        )
        if resumed is not None:
            self.console.print(f"resuming after iteration {resumed}")
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=self._total, completed=run.iteration)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def status(self, text: str) -> AbstractContextManager[Any]:
        """Say what is done meanwhile."""
        if not self.console.is_terminal:
            self.console.print(text)
        return self.console.status(text)

    def iteration(self, metrics: dict[str, Any]) -> None:
        """An iteration is done."""
        text = (
            f"reward {metrics.get('reward/mean', 0):+.3f}  "
            f"answered {metrics.get('stop/answered', 0):.2f}  "
            f"calls {metrics.get('response/tool_calls', 0):.1f}  "
            f"{metrics['seconds/iteration']:.1f} s"
        )
        self._bar.update(self._task, completed=metrics["iteration"] + 1, description=text)
        if not self.console.is_terminal:
            done = metrics["iteration"] + 1
            self.console.print(f"iteration {done}/{self._total}  {text}", highlight=False)
