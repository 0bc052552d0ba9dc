"""The reward of the published ARPO and APPO code, to the letter, defects included.

It pays token F1 for mathematics too (-5 equals 5), and 0.1 for merely writing closing tags; what is
better is in `benchmarks.scoring`. It is here so that numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.text import token_f1


class ArpoReward(NamedTuple):
    """What the reference returns for one response."""

    reward: float
    """-1 for a bad format, else in [0, 1.1]."""
    reason: str
    answer: str
    f1: float


def arpo_reward(response_text: str, answers: Sequence[str]) -> ArpoReward:
    """-1 for a bad format, else the best token F1, plus 0.1 if both closing tool tags occur."""
    fault = _format_fault(response_text)
    if fault is not None:
        return ArpoReward(-1.0, f"bad format: {fault}", "", 0.0)
    block = response_text.partition("<answer>")[2].partition("</answer>")[0]
    answer = _reference_box(block)
    if answer is None:
        reason = "find box error: argument of type 'NoneType' is not iterable"
        return ArpoReward(-1.0, reason, "", 0.0)
    f1 = max((token_f1(answer, gold) for gold in answers), default=0.0)
    if f1 == 0:
        return ArpoReward(0.0, f"wrong answer but good format: {answer}", answer, 0.0)
    if "</search>" in response_text and "</python>" in response_text:
        reward = f1 + 0.1
        reason = "correct answer and calling search and python at the same time, get score: "
        return ArpoReward(reward, f"{reason}{reward}", answer, f1)
    return ArpoReward(f1, f"correct answer, get f1 score: {f1}", answer, f1)


def _format_fault(text: str) -> str | None:
    if text.count("<think>") != text.count("</think>") or "<think>" not in text:
        return "<think> or </think> not found"
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return "<answer> or </answer> not found"
    for tool in ("search", "python"):
        fault = _tool_fault(text, tool)
        if fault is not None:
            return fault
    start, end = text.index("<answer>"), text.index("</answer>")
    if start > end:
        return "<answer> must be before </answer>"
    if "\\boxed{" not in text[start:end] or "}" not in text[start:end]:
        return "answer is missing \\boxed{} format"
    return None


def _tool_fault(text: str, tool: str) -> str | None:
    position = text.find(f"<{tool}>")
    while position >= 0:
        marks = (f"</{tool}>", "<result>", "</result>")
        found = [position, *(text.find(mark, position) for mark in marks)]
        if -1 in found:
            return f"{tool}/result tags are incomplete"
        if found != sorted(found):
            return f"{tool}/result tags are nested in the wrong order"
        position = text.find(f"<{tool}>", found[-1])
    return None


def _reference_box(block: str) -> str | None:
    """The reference's own extraction, which differs from `last_boxed` in its edge cases."""
    if "\\boxed " in block:
        return block.rpartition("\\boxed ")[2].partition("$")[0]
    start, depth = block.rfind("\\boxed"), 0
    for position in range(start, len(block)):
        if block[position] == "{":
            depth += 1
        elif block[position] == "}":
            depth -= 1
            if depth == 0:
                boxed = block[start : position + 1]
                return boxed[len("\\boxed{") : -1] if boxed.startswith("\\boxed{") else None
    return None
