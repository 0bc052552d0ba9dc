"""The tag language of an episode: instructions, the model's turns, and observations.

A turn is free text with exactly one action at its end: a tool call `<search> ... </search>`, or
`<answer> ... </answer>`. The environment answers a call with ` <result> ... </result>`. This module
knows tags and text only; it runs nothing and scores nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from benchmarks import Step, last_boxed
from tools import TOOLS, Tool

ANSWER, RESULT, THINK = "answer", "result", "think"


LONGEST_OBSERVATION = 20_000
"""Characters of a tool's text; the middle of a longer one is left out, and it says so."""


class ToolCall(NamedTuple):
    """A complete call found in a turn."""

    tool: str
    argument: str


class Answer(NamedTuple):
    """A complete answer found in a turn."""

    text: str


def stop_tags(tools: Sequence[str]) -> tuple[str, ...]:
    """The closing tags that end a turn; a sampler stops at the first it sees."""
    return tuple(f"</{name}>" for name in (*tools, ANSWER))


def parse(turn: str, tools: Sequence[str]) -> ToolCall | Answer | None:
    """Return the one action of a turn, or None if the turn is malformed.

    The action is the first closing tag of a tool or of the answer, with the last opening tag of
    that name before it; blanks around the argument are stripped. Malformed are: no such pair, a
    second action after the first, and a `<result>` written by the model. Other text after the
    action is ignored: a sampled token may end beyond the tag.
    """
    if f"<{RESULT}>" in turn or f"</{RESULT}>" in turn:
        return None
    names = (*tools, ANSWER)
    ends = {turn.find(f"</{name}>"): name for name in names if f"</{name}>" in turn}
    if not ends:
        return None
    end = min(ends)
    name = ends[end]
    opening, closing = f"<{name}>", f"</{name}>"
    start = turn.rfind(opening, 0, end)
    rest = turn[end + len(closing) :]
    if start < 0 or any(f"<{other}>" in rest or f"</{other}>" in rest for other in names):
        return None
    text = turn[start + len(opening) : end].strip()
    return Answer(text) if name == ANSWER else ToolCall(name, text)


def observation(text: str, tools: Sequence[str] = ()) -> str:
    """Wrap a tool's text for the model: bounded in length and harmless.

    The text can neither open nor close a tag of any tool, nor hold a chat template's mark such as
    `<|im_end|>`.

    Args:
        text: the tool's result.
        tools: names in addition to those of `tools.TOOLS`.
    """
    if len(text) > LONGEST_OBSERVATION:
        half = LONGEST_OBSERVATION // 2
        left_out = len(text) - 2 * half
        text = f"{text[:half]}\n... {left_out} characters left out ...\n{text[-half:]}"
    harmless = _marks(tuple(tools)).sub("&lt;", encodable(text))
    return f" <{RESULT}>\n{harmless}\n</{RESULT}>"


@cache
def _marks(tools: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the first character of every tag and of every chat template's mark."""
    names = "|".join((*TOOLS, *tools, ANSWER, RESULT, THINK))
    return re.compile(rf"<(?=/?(?:{names})>|\|[^|<>]*\|>)")


def encodable(text: str) -> str:
    """Replace every lone surrogate by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def render(step: Step) -> str:
    """Write a scripted step as a model's turn."""
    argument = f"\\boxed{{ {step.argument}}}" if step.act == ANSWER else f" {step.argument}"
    return f"<{THINK}> {step.thought}</{THINK}><{step.act}>{argument}</{step.act}>"


def boxed(text: str) -> str:
    r"""Content of the last balanced `\boxed{}` of an answer, or the whole answer without one."""
    content = last_boxed(text)
    return (text if content is None else content).strip()


def instructions(tools: Sequence[Tool[Any]], answer_format: str = "") -> str:
    """Write the system prompt from the tools and the answer format of the benchmark."""
    lines = [
        "You answer the user's question step by step, with the help of tools.",
        "Think between <think> and </think>. Then do exactly one of the following:",
        *(f"- <{tool.name}> ... </{tool.name}>: {tool.description}" for tool in tools),
        "- <answer> ... </answer>: give the final answer, the exact answer inside \\boxed{}.",
        "What a tool returns stands between <result> and </result>; never write these yourself.",
    ]
    if answer_format:
        lines.append(answer_format)
    if tools:
        name = tools[0].name
        lines.append(
            f"Example: <think> what I need </think> <{name}> ... </{name}> <result> ... </result> "
            "<think> what I learned </think> <answer> The answer is \\boxed{...} </answer>"
        )
    return "\n".join(lines)
