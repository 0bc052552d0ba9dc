"""How the scripts beside it measure: all ways in turn, round after round, by one clock.

A busy machine then slows all ways alike, and the median round counts. `--clock cpu` counts the
seconds that this process computed, which others on the machine hardly change.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Said = TypeVar("Said")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measuring_parser(doc: str, rounds: int = 5) -> argparse.ArgumentParser:
    """What every script takes; the first line of `doc` says what it does."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: where others use the machine too"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def seconds_of(work: Callable[[], object], clock: str) -> float:
    begun = CLOCKS[clock]()
    work()
    return CLOCKS[clock]() - begun


def in_turn(
    ways: Mapping[str, Callable[[], Said]], rounds: int, warm_up: bool = True
) -> dict[str, list[Said]]:
    """What each way says of each round; a round more, at the start, warms up."""
    found: dict[str, list[Said]] = {way: [] for way in ways}
    for number in range(rounds + warm_up):
        for way, measured in ways.items():
            said = measured()
            if number >= warm_up:
                found[way].append(said)
    return found


def spread(found: Sequence[float], digits: int = 3) -> str:
    return f"{min(found):.{digits}f}-{max(found):.{digits}f}"


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """What two ways said in the same round, divided."""
    return [a / b for a, b in zip(over, under, strict=True)]


def ratio(over: Sequence[float], under: Sequence[float], digits: int = 2) -> str:
    """The median of what two ways said in the same round, divided, with its spread."""
    each = ratios(over, under)
    return f"{statistics.median(each):.{digits}f} ({spread(each, digits)})"
