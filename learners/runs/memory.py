"""Where the memory of an iteration peaks, and what it holds there.

On a CPU the peak is the process's resident set, which Linux counts and resets; on CUDA it is what
PyTorch's allocator handed out. What tensors hold is added up from the tensors themselves; the rest
is the interpreter, its libraries, indices, and what a pass needs for a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Protocol

import torch
from torch import Tensor

from learners.ledger import Ledger
from learners.policy import Policy, SavedTensors
from learners.sampling import Sampler

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


ADVICE = {
    "kept for the backward pass": "--microbatch-tokens, --gradient-checkpointing or --autocast",
    "the optimiser's state": "--lora-rank",
    "gradients": "--lora-rank",
    "the sampler's keys and values": "--sampler-rows",
    "the sampler's own weights": "no --autocast",
}
"""What makes the largest part smaller."""


class Meter(Protocol):
    """Tells a peak."""

    def peak(self) -> int:
        """Bytes, since the last reset."""
        ...

    def reset(self) -> None:
        """Forget the peak."""
        ...


class Resident:
    """The process's resident set. Mutates what Linux remembers of it.

    A system that forgets no peak tells the one since the process began.
    """

    def peak(self) -> int:
        """Bytes, since the last reset."""
        with suppress(OSError):
            for line in STATUS.read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
        return getrusage(RUSAGE_SELF).ru_maxrss * 1024

    def reset(self) -> None:
        """Forget the peak."""
        with suppress(OSError):
            RESET.write_text("5")


class Allocated:
    """What PyTorch's allocator handed out on CUDA."""

    def peak(self) -> int:
        """Bytes, since the last reset."""
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        """Forget the peak."""
        torch.cuda.reset_peak_memory_stats()


class IterationPeak:
    """A meter that knows the peak since `begin` whoever resets it since. Mutated by both."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._highest = meter, 0

    def begin(self) -> None:
        """Forget everything."""
        self._meter.reset()
        self._highest = 0

    def peak(self) -> int:
        """Bytes, since the last reset."""
        return self._meter.peak()

    def reset(self) -> None:
        """Let others forget the peak."""
        self._highest = self.most()
        self._meter.reset()

    def most(self) -> int:
        """Bytes, since `begin`."""
        return max(self._highest, self._meter.peak())


def meter_of(device: torch.device) -> Meter:
    """What tells the peak of work on a device."""
    return Allocated() if device.type == "cuda" else Resident()


class MemoryProfile:
    """The peak of each phase of an iteration. Mutated by `phase`, which the ledger calls."""

    def __init__(self, meter: Meter) -> None:
        self.peaks: dict[str, int] = {}
        """Bytes by phase."""
        self._meter = meter
        self._inner: list[int] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note the peak inside the block; blocks inside it count for both."""
        before = self._meter.peak()
        self._meter.reset()
        self._inner.append(0)
        try:
            yield
        finally:
            own = max(self._inner.pop(), self._meter.peak())
            self.peaks[name] = max(self.peaks.get(name, 0), own)
            if self._inner:
                self._inner[-1] = max(self._inner[-1], before, own)


@contextmanager
def profiled(policy: Policy, sampler: Sampler, ledger: Ledger, meter: Meter) -> Iterator[None]:
    """Say where the memory of the block peaked, and why."""
    profile = MemoryProfile(meter)
    kept = policy.saved_tensors = SavedTensors()
    ledger.watch = profile.phase
    try:
        yield
    finally:
        policy.saved_tensors, ledger.watch = None, nullcontext
    found = contents(policy, sampler, kept)
    if profile.peaks:
        print(report(profile.peaks, found, kept.tokens))  # noqa: T201


def contents(policy: Policy, sampler: Sampler, kept: SavedTensors) -> dict[str, int]:
    """Bytes by what holds them; of what comes and goes, the most there was."""
    sampling = sampler.stats()
    return {
        "weights": held(policy.model.parameters()),
        "the optimiser's state": held(tensors_in(policy.optimizer.state_dict())),
        "the sampler's own weights": sampling.weight_bytes,
        "the sampler's keys and values": sampling.cache_bytes,
        "gradients": held(p for p in policy.model.parameters() if p.requires_grad),
        "kept for the backward pass": kept.bytes,
    }


ONLY_IN = {
    "the sampler's keys and values": ("sample",),
    "gradients": ("update",),
    "kept for the backward pass": ("update",),
}
"""Phases at whose peak something is there; other things always are."""


def report(peaks: Mapping[str, int], found: Mapping[str, int], tokens: int) -> str:
    """Where the peak was, what was held there, and what makes the largest part smaller.

    Args:
        peaks: bytes by phase, not empty.
        found: bytes by what holds them.
        tokens: that the update's largest pass computed.
    """
    phase = max(peaks, key=lambda name: peaks[name])
    there = {n: size for n, size in found.items() if size and phase in ONLY_IN.get(n, (phase,))}
    rest = max(0, peaks[phase] - sum(there.values()))
    largest = max(there, key=lambda name: there[name])
    others = ", ".join(f"{name} {size_of(peak)}" for name, peak in peaks.items() if name != phase)
    lines = [f"peak memory {size_of(peaks[phase])} in {phase}" + (f" ({others})" if others else "")]
    lines += [f"  {size_of(size):>9}  {name}" for name, size in by_size(there)]
    lines.append(f"  {size_of(rest):>9}  the rest: Python, libraries, what is needed for a moment")
    if phase == "update":
        lines.append(f"  the largest forward and backward pass computed {tokens} tokens")
    if largest in ADVICE:
        lines.append(f"  less of {largest}: {ADVICE[largest]}")
    return "\n".join(lines)


def by_size(found: Mapping[str, int]) -> list[tuple[str, int]]:
    """Largest first."""
    return sorted(found.items(), key=lambda pair: -pair[1])


def size_of(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; those that share a storage count once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def tensors_in(found: object) -> Iterator[Tensor]:
    """The tensors of nested dictionaries and lists."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict | list):
        for inner in found.values() if isinstance(found, dict) else found:
            yield from tensors_in(inner)
