"""How a command ends that did not end well: an interrupt and errors as a line, not a traceback."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


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
    import gymnasium

    from benchmarks import DataUnavailable, GraderUnavailable
    from benchmarks.judge import JudgeUnavailable
    from learners.checkpoint import RunFolderError
    from learners.endpoint import EndpointUnavailable
    from learners.models import ModelNotFound
    from learners.rollout_files import RolloutFileError
    from learners.run_config import UsageError
    from learners.spending import RunStopped
    from tools import ToolUnavailable
    from tools.cache import ReplayMiss

    return (
        UsageError,
        RunFolderError,
        RolloutFileError,
        RunStopped,
        ReplayMiss,
        ModelNotFound,
        DataUnavailable,
        ToolUnavailable,
        GraderUnavailable,
        JudgeUnavailable,
        EndpointUnavailable,
        gymnasium.error.Error,
    )
