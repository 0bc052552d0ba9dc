"""Golden cases of APPO's published code: where they are and how they are read."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
GOLDEN = Path(os.environ.get("APPO_GOLDEN", ROOT.parent / "shared" / "golden")) / "appo"


@dataclass(frozen=True)
class Case:
    """One file."""

    stem: str
    function: str
    tags: list
    params: dict
    inputs: dict
    outputs: dict
    tolerance: dict

    def close(self, actual, expected):
        torch.testing.assert_close(
            actual, expected, check_dtype=False, equal_nan=True, **self.tolerance
        )


def read(path):
    """A file as a case; raises on one that is laid out otherwise."""
    text = json.loads(path.read_text("utf-8"))
    plain = {name: text[name] for name in ("function", "tags", "params", "tolerance")}
    return Case(
        path.stem, **plain, inputs=_decoded(text["inputs"]), outputs=_decoded(text["outputs"])
    )


def _decoded(value):
    if isinstance(value, dict) and {"dtype", "shape", "data"} <= value.keys():
        if value["dtype"] == "object":
            return value["data"]
        data = torch.tensor(_numbers(value["data"]), dtype=getattr(torch, value["dtype"]))
        return data.reshape(value["shape"])
    if isinstance(value, dict):
        return {name: _decoded(part) for name, part in value.items()}
    return value


def _numbers(value):
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return float(value) if isinstance(value, str) else value  # "inf", "-inf", "nan"
