"""Turns written transcripts and scripted demonstrations into trajectories to train on.

A row of transcripts holds a question and the text of an episode, with `<search>`, `<python>`,
`<result>` and `<answer>` in it (the form of ARPO-SFT-54K), in one of three spellings:

- instruction, input, output: the question is `input`, or `instruction` if that is empty;
- conversations of {from, value} (the published rows), or messages of {role, content}: the first
  user message is the question; results stand inside `<result>` or in messages of their own (tool,
  observation).

The environment's instructions replace a system message or field. A program whose line breaks were
written as two characters gets real ones. Every piece between two results must be one turn of an
episode: one call, and the answer last. Results are taken as written, no tool is run.

A demonstration is played through its environment with real tools. Either way the text becomes ids
by the same encode calls as a rollout's, segment by segment, and no observation is trained on.
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
"""The speaker that a message's role stands for."""

TOO_LONG = "longer than --max-response-tokens"
"""The reason for which an episode that does not fit into a response is left out."""


class Transcript(NamedTuple):
    """A written episode."""

    question: str
    turns: tuple[tuple[str, str | None], ...]
    """The model's text and the result it got; None after the answer."""


class TrainingSet(NamedTuple):
    """Trajectories to train on, and the number of episodes left out, by reason."""

    trajectories: list[Trajectory]
    left_out: Counter[str]


class Unusable(ValueError):
    """Raised for an episode that cannot be trained on; the message is the reason."""


def read_transcripts(
    source: str, rollouts: Rollouts, evaluated: Collection[str] = (), limit: int | None = None
) -> TrainingSet:
    """Read the trajectories of a source's rows, as rollouts of the same texts would have made them.

    Args:
        source: see `load_rows`.
        rollouts: has the environment, the tokenizer and the maximum length.
        evaluated: keys of questions that must not be trained on.
        limit: maximum number of trajectories.

    Raises:
        UsageError: no row can be used; the message says why.
    """
    trajectories, left_out = list[Trajectory](), Counter[str]()
    tools = [tool.name for tool in rollouts.env.tools]
    for row in load_rows(source):
        if limit is not None and len(trajectories) >= limit:
            break
        try:
            transcript = parse_row(row, tools)
            if question_key(transcript.question) in evaluated:
                raise Unusable("its question is evaluated on")
            trajectories.append(encode_transcript(rollouts, transcript))
        except Unusable as error:
            left_out[str(error)] += 1
    if not trajectories:
        reasons = "; ".join(f"{count} x {why}" for why, count in left_out.most_common())
        raise UsageError(f"--transcripts {source}: no row can be used: {reasons or 'it is empty'}")
    return TrainingSet(trajectories, left_out)


def load_rows(source: str) -> Iterable[Mapping[str, Any]]:
    """Load the rows of a .json, .jsonl or .parquet file, or of a data set on the hub.

    Raises:
        UsageError: the file does not exist, or is of another kind.
        DataUnavailable: it cannot be read.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet", ".json") or path.exists():
        if not path.is_file() or path.suffix not in (".jsonl", ".parquet", ".json"):
            raise UsageError(
                f"--transcripts {source}: expected an existing file that ends in .jsonl, .json or "
                ".parquet, or the id of a data set on the hub"
            )
        return _load_json(path) if path.suffix == ".json" else local_rows(path.parent, path.stem)
    return fetch_from_hub(HubTable(source, "main", "train"))


def _load_json(path: Path) -> list[Mapping[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"--transcripts {path} is not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"--transcripts {path}: expected a list of objects")
    return rows


def parse_row(row: Mapping[str, Any], tools: Sequence[str]) -> Transcript:
    """Parse a row as an episode.

    Args:
        row: in one of the spellings above.
        tools: names of the tools that the episode may call.

    Raises:
        Unusable: the row is no such episode.
    """
    question, pieces = _split_row(row)
    if not question.strip():
        raise Unusable("no question")
    turns: list[tuple[str, str | None]] = []
    for is_model, text in pieces:
        if is_model:
            # In the published rows the \b of \boxed became a backspace.
            text = text.replace("\x08oxed", "\\boxed").strip()
            turns.append((_restore_line_breaks(text, tools), None))
        elif not turns or turns[-1][1] is not None:
            raise Unusable("a result before a call")
        else:
            turns[-1] = (turns[-1][0], text.strip("\n"))
    for index, (text, result) in enumerate(turns):
        action = parse(text, tools)
        is_last = index == len(turns) - 1
        if action is None:
            raise Unusable("a turn without exactly one action of the environment")
        if isinstance(action, Answer) != is_last or (result is None) != is_last:
            raise Unusable("an answer before the end, or no answer at the end")
    if not turns:
        raise Unusable("no text of the model")
    cut = tuple((_cut_after_tag(text, tools), result) for text, result in turns)
    return Transcript(question.strip(), cut)


def _split_row(row: Mapping[str, Any]) -> tuple[str, list[tuple[bool, str]]]:
    """Split a row into its question and its texts: True with the model's, False with a tool's."""
    messages = row.get("conversations") or row.get("messages")
    if messages is None:
        if row.get("output") is None:
            raise Unusable("no field output, conversations or messages")
        question = str(row.get("input") or row.get("instruction") or "")
        return question, list(_split_at_results(str(row["output"])))
    question, pieces = "", list[tuple[bool, str]]()
    for message in messages:
        role = str(message.get("from", message.get("role")))
        text = str(message.get("value", message.get("content")))
        speaker = SPEAKERS.get(role)
        if speaker is None:
            raise Unusable(f"the unknown role {role}")
        if speaker == "user" and not question:
            question = text
        elif speaker == "tool" or (speaker == "user" and "<result>" in text):
            inner = RESULT.search(text)
            pieces.append((False, inner.group(1) if inner else text))
        elif speaker == "model":
            pieces += _split_at_results(text)
        elif speaker == "user":
            raise Unusable("a second question")
    return question, pieces


def _split_at_results(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the model's texts (True) and the results (False), in order."""
    for index, piece in enumerate(RESULT.split(text)):
        is_result = index % 2 == 1  # the pattern has one group, so every second piece is its match
        if is_result or piece.strip():
            yield not is_result, piece


def _restore_line_breaks(text: str, tools: Sequence[str]) -> str:
    r"""Replace \n by line breaks in a turn's one-line program, if only that makes it a program."""
    action = parse(text, tools)
    if not isinstance(action, ToolCall) or action.tool != "python" or "\n" in action.argument:
        return text
    program = action.argument.replace("\\n", "\n")
    if _is_program(action.argument) or not _is_program(program):
        return text
    return text.replace(action.argument, program)


def _is_program(text: str) -> bool:
    """True if Python can parse it; nothing is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _cut_after_tag(text: str, tools: Sequence[str]) -> str:
    """Cut a turn after its first closing tag, at which a sampler would have stopped."""
    ends = [text.find(tag) + len(tag) for tag in stop_tags(tools) if tag in text]
    return text[: min(ends)]


def encode_transcript(rollouts: Rollouts, transcript: Transcript) -> Trajectory:
    """Encode a transcript as the trajectory that sampling its turns would have made.

    Raises:
        Unusable: it is longer than a response may be.
    """
    env, max_tokens = rollouts.env, rollouts.max_response_tokens
    tools = [tool.name for tool in env.tools]
    task = question_id(transcript.question)
    state = EnvState(env.benchmark.name, env.benchmark.revision, "transcripts", task)
    prompt_ids = rollouts.encode_question(env.instructions, transcript.question)
    trajectory = Trajectory(prompt_ids, state, path=(0,))
    for text, result in transcript.turns:
        action = _encode_action(rollouts, text)
        room = max_tokens - len(trajectory) - len(action.token_ids)
        observed = (
            () if result is None else rollouts.encode_observation(observation(result, tools), room)
        )
        if observed is None:
            raise Unusable(TOO_LONG)
        trajectory.turns.append(Turn(state, action, observed))
    if len(trajectory) > max_tokens:
        raise Unusable(TOO_LONG)
    trajectory.state, trajectory.done = replace(state, stop="answered"), True
    return trajectory


def _encode_action(rollouts: Rollouts, text: str) -> Completion:
    """Encode a written turn as if it had been sampled."""
    ids = encode(rollouts.tokenizer, text)
    unknown = (0.0,) * len(ids)  # log-probabilities and entropies: the loss needs neither
    return Completion(ids, unknown, unknown, "tag")


def play(rollouts: Rollouts, demonstrations: Sequence[Demonstration]) -> TrainingSet:
    """Play each demonstration into the trajectory that sampling its turns would have made.

    Raises:
        ToolUnavailable: a tool's machinery still failed after retries.
    """
    with ThreadPoolExecutor(rollouts.tool_threads) as pool:
        outcomes = list(pool.map(lambda one: _play_with_retries(rollouts, one), demonstrations))
    rollouts.ledger.take()  # the calls of demonstrations are no part of the run's ledger
    reasons = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
    return TrainingSet([one for one in outcomes if isinstance(one, Trajectory)], reasons)


def _play_with_retries(rollouts: Rollouts, demonstration: Demonstration) -> Trajectory | str:
    """Return the trajectory, or the reason why there is none.

    Scripted calls work: one that fails has most likely timed out, so it is retried.
    """
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            trajectory = _play_once(rollouts, demonstration)
        except Unusable as error:
            return str(error)
        failed = [turn.call.tool for turn in trajectory.turns if turn.call and not turn.call.ok]
        if not failed:
            return trajectory
        reason = f"a call of {failed[0]} failed in each of {ATTEMPTS} attempts"
    return reason


def _play_once(rollouts: Rollouts, demonstration: Demonstration) -> Trajectory:
    """Play the script through its environment.

    Raises:
        Unusable: it is longer than a response may be, or ends outside the rules of the episode.
        ToolUnavailable: a tool's machinery failed.
    """
    tree = rollouts.tree(demonstration.task)
    trajectory = tree.root()
    for step in demonstration.steps:
        action = _encode_action(rollouts, render(step))
        if trajectory.done:
            raise Unusable(_describe_end(trajectory))
        if len(trajectory) + len(action.token_ids) > rollouts.max_response_tokens:
            raise Unusable(TOO_LONG)
        rollouts.advance(tree, trajectory, action)
        if tree.unavailable is not None:
            raise ToolUnavailable(tree.unavailable)
    if trajectory.state.stop != "answered":
        raise Unusable(_describe_end(trajectory))
    return trajectory


def _describe_end(trajectory: Trajectory) -> str:
    """Describe how a script ended that did not end with its answer."""
    stop = trajectory.state.stop
    if stop == "length":
        return TOO_LONG
    if stop == "answered":
        return "its script continues after its answer"
    return "its script ends without an answer" if stop is None else f"its script ends in {stop}"
