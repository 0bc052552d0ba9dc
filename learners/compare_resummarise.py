"""Kept summaries written anew from their runs, for what summaries have come to hold since.

Nothing is run. What a summary tells of its origin stays, and so must every other field that it had,
to the byte: else it is left as it is, and what differs is named.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from learners.checkpoint import write_text
from learners.compare_config import Config
from learners.compare_material import chosen_rates
from learners.compare_plan import (
    Trial,
    evaluation_folder,
    final_trials,
    start_trials,
    tuning_trials,
)
from learners.compare_summary import ORIGIN, as_text, read_summary, summarised


class Anew(NamedTuple):
    """What became of the summaries that there are."""

    written: int
    """How many were written anew."""
    gone: list[str]
    """Titles of trials of whose run a folder is not there."""
    left: dict[str, list[str]]
    """By title the fields that came out otherwise; these summaries are as they were."""


def resummarise(config: Config, tasks: Mapping[str, Any]) -> Anew:
    """Write the summaries of a comparison anew whose runs are there.

    Args:
        config: of the comparison.
        tasks: what tasks.json holds.
    """
    found = Anew(0, [], {})
    rates = chosen_rates(config)
    trials = [*start_trials(config), *tuning_trials(config)]
    for trial in trials + ([] if rates is None else final_trials(config, rates)):
        old = read_summary(trial.summary)
        if old is None:
            continue
        if not _is_there(trial, old):
            found.gone.append(trial.title)
        elif other := rewrite(trial, tasks):
            found.left[trial.title] = other
        else:
            found = found._replace(written=found.written + 1)
    return found


def rewrite(trial: Trial, tasks: Mapping[str, Any]) -> list[str]:
    """Write one summary anew, unless fields that it has came out otherwise; those."""
    text = trial.summary.read_text()
    old = json.loads(text)
    new = summarised(trial, tasks, {name: old[name] for name in ORIGIN})
    same = _restricted(new, old)
    if as_text(same) != text:
        return _differing(old, same) or ["the order of its fields"]
    write_text(trial.summary, as_text(new))
    return []


def _is_there(trial: Trial, old: Mapping[str, Any]) -> bool:
    splits = [split for split in ("test", "validation") if split in old]
    folders = [trial.folder] if trial.train else []
    folders += [evaluation_folder(trial.folder, split) for split in splits]
    return all(folder.is_dir() for folder in folders)


def _restricted(new: Any, old: Any) -> Any:  # noqa: ANN401 - of JSON
    """The new value without what the old one does not have."""
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: _restricted(value, old[key]) for key, value in new.items() if key in old}
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return [_restricted(a, b) for a, b in zip(new, old, strict=True)]
    return new


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> list[str]:
    """Fields of the old value that are other ones in the new, as in `spent.tokens`."""
    found = []
    for key, value in old.items():
        if isinstance(value, dict) and isinstance(new.get(key), dict):
            found += _differing(value, new[key], f"{above}{key}.")
        elif key not in new or json.dumps(value) != json.dumps(new[key]):
            found.append(above + key)
    return found
