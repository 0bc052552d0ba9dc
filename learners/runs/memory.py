"""Memory peaks of an iteration, and what the memory held at the highest one.

On a CPU the peak is that of the process's resident set, which Linux counts and resets. On CUDA it
is what PyTorch's allocator handed out. The sizes of weights, gradients and caches are added up from
their tensors; the rest is the interpreter, its libraries, indices and temporary buffers.
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

ONLY_IN = {
    "the sampler's keys and values": ("sample",),
    "gradients": ("update",),
    "kept for the backward pass": ("update",),
}
"""Phases at whose peak a part can be in memory; parts not listed always are."""

ADVICE = {
    "kept for the backward pass": "--microbatch-tokens, --gradient-checkpointing or --autocast",
    "the optimiser's state": "--lora-rank",
    "gradients": "--lora-rank",
    "the sampler's keys and values": "--sampler-rows",
    "the sampler's own weights": "no --autocast",
}
"""Options that make a part smaller."""


class Meter(Protocol):
    """Measures a memory peak."""

    def peak(self) -> int:
        """Return the peak since the last reset, in bytes."""
        ...

    def reset(self) -> None:
        """Forget the peak."""
        ...


def make_meter(device: torch.device) -> Meter:
    """Make the meter for work on a device."""
    return CudaMeter() if device.type == "cuda" else ProcessMeter()


class ProcessMeter:
    """Peak of the process's resident set. Mutates Linux's counter of it.

    On a system that cannot reset the counter, the peak is that since the process began.
    """

    def peak(self) -> int:
        """Return the peak since the last reset, in bytes."""
        with suppress(OSError):
            for line in STATUS.read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
        return getrusage(RUSAGE_SELF).ru_maxrss * 1024

    def reset(self) -> None:
        """Forget the peak."""
        with suppress(OSError):
            RESET.write_text("5")


class CudaMeter:
    """Peak of what PyTorch's allocator handed out on CUDA."""

    def peak(self) -> int:
        """Return the peak since the last reset, in bytes."""
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        """Forget the peak."""
        torch.cuda.reset_peak_memory_stats()


class IterationMeter:
    """A meter that also remembers the peak since `begin`, across resets. Mutated by both."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._highest = meter, 0

    def begin(self) -> None:
        """Start a new iteration."""
        self._meter.reset()
        self._highest = 0

    def peak(self) -> int:
        """Return the peak since the last reset, in bytes."""
        return self._meter.peak()

    def reset(self) -> None:
        """Forget the peak; `iteration_peak` still knows it."""
        self._highest = self.iteration_peak()
        self._meter.reset()

    def iteration_peak(self) -> int:
        """Return the peak since `begin`, in bytes."""
        return max(self._highest, self._meter.peak())


class MemoryProfile:
    """The peak of each phase of an iteration. Mutated by `phase`, which the ledger calls."""

    def __init__(self, meter: Meter) -> None:
        self.peaks: dict[str, int] = {}
        """Bytes by phase."""
        self._meter = meter
        self._inner_peaks: list[int] = []
        """For each open phase, outermost first, the highest peak of the phases inside it."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the peak inside the block; it counts for the enclosing phases as well."""
        before = self._meter.peak()
        self._meter.reset()
        self._inner_peaks.append(0)
        try:
            yield
        finally:
            peak = max(self._inner_peaks.pop(), self._meter.peak())
            self.peaks[name] = max(self.peaks.get(name, 0), peak)
            if self._inner_peaks:  # `before` is the outer phase's: its counter was reset above
                self._inner_peaks[-1] = max(self._inner_peaks[-1], before, peak)


@contextmanager
def profile_memory(
    policy: Policy, sampler: Sampler, ledger: Ledger, meter: Meter
) -> Iterator[None]:
    """Print where the memory of the block peaked, and what it held."""
    profile = MemoryProfile(meter)
    saved = policy.saved_tensors = SavedTensors()
    ledger.watch = profile.phase
    try:
        yield
    finally:
        policy.saved_tensors, ledger.watch = None, nullcontext
    sizes = measure_contents(policy, sampler, saved)
    if profile.peaks:
        print(format_report(profile.peaks, sizes, saved.tokens))  # noqa: T201


def measure_contents(policy: Policy, sampler: Sampler, saved: SavedTensors) -> dict[str, int]:
    """Bytes by the part that takes them; the maximum if a part comes and goes."""
    sampling = sampler.stats()
    return {
        "weights": tensor_bytes(policy.model.parameters()),
        "the optimiser's state": tensor_bytes(iter_tensors(policy.optimizer.state_dict())),
        "the sampler's own weights": sampling.weight_bytes,
        "the sampler's keys and values": sampling.cache_bytes,
        "gradients": tensor_bytes(p for p in policy.model.parameters() if p.requires_grad),
        "kept for the backward pass": saved.bytes,
    }


def format_report(peaks: Mapping[str, int], sizes: Mapping[str, int], tokens: int) -> str:
    """Format where the peak was, what the memory held, and how to make the largest part smaller.

    Args:
        peaks: bytes by phase, not empty.
        sizes: bytes by part.
        tokens: tokens of the update's largest forward and backward pass.
    """
    phase = max(peaks, key=lambda name: peaks[name])
    parts = {n: size for n, size in sizes.items() if size and phase in ONLY_IN.get(n, (phase,))}
    rest = max(0, peaks[phase] - sum(parts.values()))
    largest = max(parts, key=lambda name: parts[name])
    others = ", ".join(f"{n} {format_bytes(peak)}" for n, peak in peaks.items() if n != phase)
    first_line = f"peak memory {format_bytes(peaks[phase])} in {phase}"
    lines = [first_line + (f" ({others})" if others else "")]
    for name, size in sorted(parts.items(), key=lambda part: -part[1]):
        lines.append(f"  {format_bytes(size):>9}  {name}")
    lines.append(f"  {format_bytes(rest):>9}  the rest: Python, libraries, temporary buffers")
    if phase == "update":
        lines.append(f"  the largest forward and backward pass computed {tokens} tokens")
    if largest in ADVICE:
        lines.append(f"  less of {largest}: {ADVICE[largest]}")
    return "\n".join(lines)


def format_bytes(count: int) -> str:
    """Format a number of bytes in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """The size of tensors; those that share a storage count once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def iter_tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested dictionaries and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from iter_tensors(inner)
