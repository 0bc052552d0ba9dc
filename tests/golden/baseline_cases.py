"""Golden cases of the rivals' reference implementations: where they are and how they are read."""

import json
from dataclasses import dataclass

import torch

from tests.golden.appo_cases import GOLDEN as APPO_GOLDEN

GOLDEN = APPO_GOLDEN.parent / "baselines"
LITERAL = ("group_ids", "traj_ids", "anchor_obs", "engine_calls", "rows", "pieces", "tools")


@dataclass(frozen=True)
class Case:
    """One case of a file."""

    id: str
    file: str
    kind: str
    scenario: str
    tags: list
    params: dict
    inputs: dict
    outputs: dict
    tolerance: dict

    def close(self, actual, expected, **tolerance):
        expected = torch.as_tensor(expected, dtype=torch.float64)
        given = tolerance or self.tolerance
        torch.testing.assert_close(
            torch.as_tensor(actual).double(), expected, equal_nan=True, **given
        )

    @property
    def mask(self):
        return self.inputs["response_mask"].bool()

    @property
    def groups(self):
        """Row numbers of each group."""
        names = self.inputs["group_ids"]
        return [
            [i for i, name in enumerate(names) if name == group] for group in dict.fromkeys(names)
        ]

    @property
    def trl(self):
        return self.params.get("implementation") == "TRL"

    @property
    def alone(self):
        """Whether a group has one member."""
        return any(len(group) == 1 for group in self.groups)


def read(path):
    """A file's cases; raises on one that is laid out otherwise."""
    text = json.loads(path.read_text("utf-8"))
    assert text["schema"] == "baselines-golden/1"
    plain = ("id", "kind", "scenario", "tags", "params")
    return [
        Case(
            **{name: case[name] for name in plain},
            file=text["algorithm"],
            inputs=_decoded(case["inputs"]),
            outputs=_decoded(case["outputs"]),
            tolerance=text["tolerance"][case["dtype"]],
        )
        for case in text["cases"]
    ]


def _decoded(value, name=""):
    if isinstance(value, dict):
        return {key: _decoded(part, key) for key, part in value.items()}
    if isinstance(value, list) and name not in LITERAL:
        try:
            return torch.tensor(_numbers(value), dtype=torch.float64)
        except (TypeError, ValueError):
            return value
    return float(value) if isinstance(value, str) and value in SPECIAL else value


SPECIAL = ("NaN", "Infinity", "-Infinity")


def _numbers(value):
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return float(value) if value in SPECIAL else value
