"""The reward of the published ARPO and APPO code, to the letter, defects included.

It pays token F1 for mathematics too (-5 equals 5), and 0.1 for merely writing closing tags. It is
here so that results can be compared; better scorers are in `benchmarks.scoring`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.text import token_f1


class ArpoReward(NamedTuple):
    """The reward of one response, as the reference reports it."""

    reward: float
    """-1 for a bad format, else in [0, 1.1]."""
    reason: str
    answer: str
    f1: float


def arpo_reward(response_text: str, answers: Sequence[str]) -> ArpoReward:
    """Reward a response: -1 for a bad format, else the best token F1.

    A right answer earns 0.1 more if both closing tool tags occur in the response.
    """
    error = _find_format_error(response_text)
    if error is not None:
        return ArpoReward(-1.0, f"bad format: {error}", "", 0.0)
    block = response_text.partition("<answer>")[2].partition("</answer>")[0]
    answer = _extract_box(block)
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


def _find_format_error(text: str) -> str | None:
    if text.count("<think>") != text.count("</think>") or "<think>" not in text:
        return "<think> or </think> not found"
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return "<answer> or </answer> not found"
    for tool in ("search", "python"):
        error = _find_tool_error(text, tool)
        if error is not None:
            return error
    start, end = text.index("<answer>"), text.index("</answer>")
    if start > end:
        return "<answer> must be before </answer>"
    if "\\boxed{" not in text[start:end] or "}" not in text[start:end]:
        return "answer is missing \\boxed{} format"
    return None


def _find_tool_error(text: str, tool: str) -> str | None:
    position = text.find(f"<{tool}>")
    while position >= 0:
        tags = (f"</{tool}>", "<result>", "</result>")
        positions = [position, *(text.find(tag, position) for tag in tags)]
        if -1 in positions:
            return f"{tool}/result tags are incomplete"
        if positions != sorted(positions):
            return f"{tool}/result tags are nested in the wrong order"
        position = text.find(f"<{tool}>", positions[-1])
    return None


def _extract_box(block: str) -> str | None:
    """Extract the last box as the reference does, which differs from `last_boxed` in edge cases."""
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
