"""Errors of commands: each message tells the person what was wrong and what to do."""

from __future__ import annotations


class CommandError(Exception):
    """An error whose message is for the person who typed the command."""


class UsageError(CommandError):
    """Options that cannot be used; the message says what to change."""


class RunFolderError(CommandError):
    """A run folder that cannot be used; the message says why and what to do."""


class RolloutFileError(CommandError):
    """Rollouts that are missing or cannot be read; the message says why."""


class RunStopped(CommandError):
    """A run that must not continue as it is; its checkpoints are intact."""


class ModelNotFound(CommandError):
    """A model that does not exist; the message says where it was looked for and what to do."""


class EndpointUnavailable(CommandError):
    """An endpoint that answers no request; the message says what to check."""
