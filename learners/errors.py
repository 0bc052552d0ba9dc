"""TODO."""

from __future__ import annotations


class UsageError(RuntimeError):
    """What a person asked for cannot be done; the message says what to change."""


class RunFolderError(RuntimeError):
    """The folder cannot be used; the message says why and what to do."""


class ModelNotFound(ValueError):
    """No such model; the message says what was looked for and what to do."""


class RunStopped(RuntimeError):
    """A run must not go on as it is. Its checkpoints are whole; the message says what to change."""


class EndpointUnavailable(RuntimeError):
    """The endpoint gives no reply to anything; the message says what to check."""


class RolloutFileError(RuntimeError):
    """There are no rollouts to read; the message says why."""
