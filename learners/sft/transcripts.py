"""Written transcripts of tool use as trajectories to train on: the cold start of the papers.

A row holds a question and what was said about it, with `<search>`, `<python>`, `<result>` and
`<answer>` in the text (the form of ARPO-SFT-54K), in one of three spellings:

- instruction, input, output: the question is `input`, or `instruction` where that is empty;
- conversations of {from, value} (that of the published rows), messages of {role, content}: the
  first user message is the question; tools speak inside `<result>` or as messages of their own
  (tool, observation).

A system message or field is replaced by the environment's instructions; a program whose line breaks
were written as two characters gets real ones. Every piece between two results must
be one turn of an episode: one call, and the answer last. Results are as written, no tool is run;
they are encoded as a rollout's observations are, and nothing of them is trained on.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import (
    Demonstration,
    HubTable,
    fetch_from_hub,
    local_rows,
    question_id,
    question_key,
)
from envs import Answer, EnvState, ToolCall, observation, parse, render, stop_tags
from learners.errors import UsageError
from learners.rollouts import ATTEMPTS, Rollouts, encode
from learners.tree import Completion, Trajectory, Turn
from tools import ToolUnavailable

RESULT = re.compile(r"<result>(.*?)</result>", re.DOTALL)


SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "model",
    "gpt": "model",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""What a message's role means."""


class Transcript(NamedTuple):
    """An episode that somebody wrote down."""

    question: str
    turns: tuple[tuple[str, str | None], ...]
    """What the model said, and the result it got; none after the answer."""


class Unusable(ValueError):
    """A row that is no episode here; the message says why."""


class Reading(NamedTuple):
    """What became of the rows of a source."""

    trajectories: list[Trajectory]
    left_out: Counter[str]
    """Rows by the reason they were left out for."""


def rows_of(source: str) -> Iterable[Mapping[str, Any]]:
    """The rows of a .json, .jsonl or .parquet file, or of a data set on the hub.

    Raises:
        UsageError: there is no such file, or it is of another kind.
        DataUnavailable: it cannot be read.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet", ".json") or path.exists():
        if not path.is_file() or path.suffix not in (".jsonl", ".parquet", ".json"):
            raise UsageError(
                f"--transcripts {source}: expected a file that is there and ends in .jsonl, .json "
                "or .parquet, or the id of a data set on the hub"
            )
        return _json_rows(path) if path.suffix == ".json" else local_rows(path.parent, path.stem)
    return fetch_from_hub(HubTable(source, "main", "train"))


def _json_rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"--transcripts {path} is not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"--transcripts {path}: expected a list of objects")
    return rows


def transcript(row: Mapping[str, Any], tools: Sequence[str]) -> Transcript:
    """A row as an episode.

    Args:
        row: in one of the spellings above.
        tools: that the episode may call.

    Raises:
        Unusable: it cannot be read so.
    """
    question, said = _spoken(row)
    if not question.strip():
        raise Unusable("no question")
    turns: list[tuple[str, str | None]] = []
    for own, text in said:
        if own:
            turns.append((_program(text.replace("\x08oxed", "\\boxed").strip(), tools), None))
        elif not turns or turns[-1][1] is not None:
            raise Unusable("a result before a call")
        else:
            turns[-1] = (turns[-1][0], text.strip("\n"))
    for place, (text, result) in enumerate(turns):
        action = parse(text, tools)
        last = place == len(turns) - 1
        if action is None:
            raise Unusable("a turn without exactly one action of the environment's")
        if isinstance(action, Answer) != last or (result is None) != last:
            raise Unusable("an answer before the end, or none there")
    if not turns:
        raise Unusable("nothing said")
    return Transcript(question.strip(), tuple((_until_tag(t, tools), r) for t, r in turns))


def _spoken(row: Mapping[str, Any]) -> tuple[str, list[tuple[bool, str]]]:
    """The question; then texts, True where the model said them and False where a tool did."""
    messages = row.get("conversations") or row.get("messages")
    if messages is None:
        if row.get("output") is None:
            raise Unusable("no field output, conversations or messages")
        question = str(row.get("input") or row.get("instruction") or "")
        return question, list(_pieces(str(row["output"])))
    question, said = "", list[tuple[bool, str]]()
    for message in messages:
        role = str(message.get("from", message.get("role")))
        text = str(message.get("value", message.get("content")))
        speaker = SPEAKERS.get(role)
        if speaker is None:
            raise Unusable(f"the role {role}")
        if speaker == "user" and not question:
            question = text
        elif speaker == "tool" or (speaker == "user" and "<result>" in text):
            inner = RESULT.search(text)
            said.append((False, inner.group(1) if inner else text))
        elif speaker == "model":
            said += _pieces(text)
        elif speaker == "user":
            raise Unusable("a second question")
    return question, said


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    """What the model wrote and what it read, in order."""
    for place, piece in enumerate(RESULT.split(text)):
        if place % 2 or piece.strip():
            yield place % 2 == 0, piece


def _program(text: str, tools: Sequence[str]) -> str:
    """A turn; the one-line program in it with real line breaks, where only that makes it one."""
    action = parse(text, tools)
    if not isinstance(action, ToolCall) or action.tool != "python" or "\n" in action.argument:
        return text
    real = action.argument.replace("\\n", "\n")
    if _is_program(action.argument) or not _is_program(real):
        return text
    return text.replace(action.argument, real)


def _is_program(text: str) -> bool:
    """Whether Python reads it; nothing is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _until_tag(text: str, tools: Sequence[str]) -> str:
    """A turn up to its closing tag: where a sampler would have stopped."""
    ends = [text.find(tag) + len(tag) for tag in stop_tags(tools) if tag in text]
    return text[: min(ends)]


def read(
    source: str, rollouts: Rollouts, evaluated: Collection[str] = (), limit: int | None = None
) -> Reading:
    """Trajectories of a source's rows, as rollouts of the same texts would have made them.

    Args:
        source: see `rows_of`.
        rollouts: has the environment, the tokenizer and the room.
        evaluated: keys of questions that must not be trained on.
        limit: most trajectories.

    Raises:
        UsageError: no row can be used; the message says why.
    """
    found, left_out = list[Trajectory](), Counter[str]()
    tools = [tool.name for tool in rollouts.env.tools]
    for row in rows_of(source):
        if limit is not None and len(found) >= limit:
            break
        try:
            one = transcript(row, tools)
            if question_key(one.question) in evaluated:
                raise Unusable("its question is evaluated on")
            found.append(trajectory(rollouts, one))
        except Unusable as error:
            left_out[str(error)] += 1
    if not found:
        reasons = "; ".join(f"{count} x {why}" for why, count in left_out.most_common())
        raise UsageError(f"--transcripts {source}: no row can be used: {reasons or 'it is empty'}")
    return Reading(found, left_out)


def trajectory(rollouts: Rollouts, one: Transcript) -> Trajectory:
    """The trajectory that sampling these turns would have made.

    Raises:
        Unusable: it is longer than a response may be.
    """
    env, encode = rollouts.env, rollouts.tokenizer.encode
    tools = [tool.name for tool in env.tools]
    task = question_id(one.question)
    state = EnvState(env.benchmark.name, env.benchmark.revision, "transcripts", task)
    made = Trajectory(rollouts.encode_question(env.instructions, one.question), state, path=(0,))
    for text, result in one.turns:
        ids = tuple(encode(text, add_special_tokens=False))
        nothing = (0.0,) * len(ids)
        read_ids: tuple[int, ...] = ()
        if result is not None:
            room = rollouts.max_response_tokens - len(made) - len(ids)
            seen = rollouts.encode_observation(observation(result, tools), room)
            if seen is None:
                raise Unusable("longer than --max-response-tokens")
            read_ids = seen
        made.turns.append(Turn(state, Completion(ids, nothing, nothing), read_ids))
    if len(made) > rollouts.max_response_tokens:
        raise Unusable("longer than --max-response-tokens")
    made.state, made.done = replace(state, stop="answered"), True
    return made


TOO_LONG = "longer than --max-response-tokens"


def play(rollouts: Rollouts, demonstrations: Sequence[Demonstration]) -> Reading:
    """Each demonstration as the trajectory that sampling its turns would have made.

    Raises:
        ToolUnavailable: a tool's machinery stayed broken.
    """
    with ThreadPoolExecutor(rollouts.tool_threads) as pool:
        found = list(pool.map(lambda one: _tried(rollouts, one), demonstrations))
    rollouts.ledger.take()
    reasons = Counter(one for one in found if isinstance(one, str))
    return Reading([one for one in found if isinstance(one, Trajectory)], reasons)


def _tried(rollouts: Rollouts, demonstration: Demonstration) -> Trajectory | str:
    """The trajectory, or why there is none."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            trajectory = _played(rollouts, demonstration)
        except Unusable as error:
            return str(error)
        failed = [turn.call.tool for turn in trajectory.turns if turn.call and not turn.call.ok]
        if not failed:
            return trajectory
        reason = f"a call of {failed[0]} failed, {ATTEMPTS} times over"
    return reason


def _played(rollouts: Rollouts, demonstration: Demonstration) -> Trajectory:
    """The scripted trajectory.

    Raises:
        Unusable: it is longer than a response may be, or ends outside the rules of the episode.
        ToolUnavailable: its tools are.
    """
    tree = rollouts.tree(demonstration.task)
    trajectory = tree.root()
    for step in demonstration.steps:
        ids = encode(rollouts.tokenizer, render(step))
        if trajectory.done:
            raise Unusable(_ended(trajectory))
        if len(trajectory) + len(ids) > rollouts.max_response_tokens:
            raise Unusable(TOO_LONG)
        nothing = (0.0,) * len(ids)
        rollouts.advance(tree, trajectory, Completion(ids, nothing, nothing, "tag"))
        if tree.unavailable is not None:
            raise ToolUnavailable(tree.unavailable)
    if trajectory.state.stop != "answered":
        raise Unusable(_ended(trajectory))
    return trajectory


def _ended(trajectory: Trajectory) -> str:
    stop = trajectory.state.stop
    if stop == "length":
        return TOO_LONG
    return (
        "its script goes on after its answer"
        if stop == "answered"
        else ("its script ends without an answer" if stop is None else f"its script ends in {stop}")
    )
