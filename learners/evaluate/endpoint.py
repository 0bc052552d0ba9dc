"""A client of OpenAI-compatible endpoints: one reply at a time, retried where that can help.

Only the standard library. Endpoints differ in what they take: a parameter that one refuses by name
is left out, or spelled anew, from then on, and `left_out` says so beside the results.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchmarks import Endpoint, Post, http_post
from envs import ToolEnv
from learners.errors import EndpointUnavailable
from learners.evaluate.episodes import Episode, Job, ended
from learners.rollouts import RESERVED_TOKENS, UNAVAILABLE, step_with_retries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Protocol = Literal["chat", "completions"]


FATAL = frozenset({401, 403, 404, 405})
"""HTTP statuses that no request to this endpoint will escape."""


LONGEST_PAUSE = 60.0
"""Seconds that an endpoint may ask to be left alone for."""


LEAST_TOKENS = 32
"""Of a reply that is worth asking for."""


_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size)|maximum.{0,40}(length|tokens)|too (large|long)|at most \d",
    re.I,
)


_OPTIONAL = ("stop", "temperature", "seed")


class RequestFailed(RuntimeError):
    """This request got no reply; others may."""


class NoRoom(RuntimeError):
    """The conversation is longer than the endpoint takes."""


class Reply(NamedTuple):
    """What the model wrote, and what the endpoint counted."""

    text: str
    finish: str
    """stop or length; whatever the endpoint says."""
    prompt_tokens: int
    completion_tokens: int
    stopped_at: str | None = None
    """The stop text that ended it, where the endpoint cuts it off and says which it was."""


class Client:
    """Thread-safe. Mutated by what the endpoint turns out not to take."""

    def __init__(self, endpoint: Endpoint, protocol: Protocol, post: Post = http_post) -> None:
        """Ask nothing yet.

        Args:
            endpoint: where, which model, and how patiently.
            protocol: chat takes messages, completions a text.
            post: sends a request; a test passes its own.
        """
        self._endpoint, self._post = endpoint, post
        self.protocol = protocol
        self.left_out: set[str] = set()
        """Parameters that the endpoint refused."""
        self._slots = threading.BoundedSemaphore(endpoint.concurrency)

    def ask(
        self,
        conversation: Sequence[Mapping[str, str]] | str,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop: Sequence[str],
    ) -> Reply:
        """One reply.

        Args:
            conversation: messages, or the text to go on with, as the protocol has it.
            max_tokens: of the reply.
            temperature: 0 is greedy.
            seed: of the draws, where the endpoint takes one.
            stop: texts that end the reply; whether it then holds them differs between endpoints.

        Raises:
            EndpointUnavailable: wrong address, model or key.
            RequestFailed: no reply to this one, after all tries.
            NoRoom: the conversation is too long.
        """
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages" if self.protocol == "chat" else "prompt": conversation,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stop": list(stop),
        }
        if temperature > 0:
            body["seed"] = seed
        with self._slots:
            while True:
                try:
                    return self._reply(self._ask(body))
                except NoRoom:
                    if body["max_tokens"] < 2 * LEAST_TOKENS:
                        raise
                    body["max_tokens"] //= 2  # prompt and reply share what the model can hold

    def _ask(self, body: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
        path = "/chat/completions" if self.protocol == "chat" else "/completions"
        url = self._endpoint.base_url.rstrip("/") + path
        headers = {"Content-Type": "application/json"}
        if self._endpoint.api_key:
            headers["Authorization"] = f"Bearer {self._endpoint.api_key}"
        fault, tried = "", 0
        while tried < self._endpoint.tries:
            pause = self._endpoint.backoff * 2**tried
            sent = json.dumps(self._taken(body)).encode()
            try:
                return json.loads(self._post(url, headers, sent, self._endpoint.timeout))
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(10_000).decode("utf-8", "replace")
                fault = f"HTTP {error.code}: {said[:300]}"
                asked = str(error.headers.get("Retry-After", ""))
                pause = max(pause, min(float(asked), LONGEST_PAUSE)) if asked.isdigit() else pause
                if error.code in FATAL:
                    raise EndpointUnavailable(self._message(fault)) from error
                if error.code in (400, 422):
                    if _TOO_LONG.search(said):
                        raise NoRoom(fault) from error
                    if not self._leave_out(said, body):
                        raise RequestFailed(fault) from error
                    continue
            except OSError as error:
                fault = f"{type(error).__name__}: {error}"
            except ValueError as error:
                fault = f"not JSON ({error})"
            tried += 1
            if tried < self._endpoint.tries:
                time.sleep(pause)
        raise RequestFailed(self._message(fault))

    def _taken(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body without what the endpoint refused."""
        taken = {name: value for name, value in body.items() if name not in self.left_out}
        if "max_tokens" in self.left_out:
            taken["max_completion_tokens"] = body["max_tokens"]
        return taken

    def _leave_out(self, said: str, body: dict[str, Any]) -> bool:
        """Note which optional parameter a refusal is about; whether it is news."""
        try:
            error = json.loads(said)["error"]
            named = str(error.get("param") or error.get("message"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if named == "max_tokens" or "max_completion_tokens" in named:
            found = "max_tokens"
        else:
            found = next((name for name in _OPTIONAL if re.search(rf"\b{name}\b", named)), "")
        news = found in body and found not in self.left_out
        if news:
            self.left_out.add(found)
        return news

    def _reply(self, found: Any) -> Reply:  # noqa: ANN401 - JSON
        try:
            (choice, *_), usage = found["choices"], found["usage"]
            text = choice["message"]["content"] if self.protocol == "chat" else choice["text"]
            counts = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
            stopped_at = choice.get("stop_reason")  # vLLM's own; a token's id or a stop text
            if not isinstance(stopped_at, str):
                stopped_at = None
            return Reply(str(text or ""), str(choice.get("finish_reason")), *counts, stopped_at)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            shown = json.dumps(found)[:200]
            raise RequestFailed(self._message(f"no reply with its usage in {shown}")) from error

    def _message(self, fault: str) -> str:
        return (
            f"{self._endpoint.model} at {self._endpoint.base_url} gave no reply ({fault}); check "
            "--api-base (up to and with /v1), --model and the variable of --api-key-variable"
        )


CHARACTERS_PER_TOKEN = 3
"""Guessed when a result is cut to the room that is left; what it really took is counted after."""


Message = dict[str, str]


@dataclass(frozen=True)
class EndpointPlayer:
    """Plays episodes side by side, as many as the endpoint may be asked at once."""

    client: Client
    temperature: float
    seed: int
    concurrency: int
    tokenizer: PreTrainedTokenizerBase | None = None
    """Whose chat template writes the prompt; for completions only."""
    pause_s: float = 0.2
    """Before a failed call of a tool is made again; doubles from attempt to attempt."""
    patience_s: float = 600.0
    """For one step of the environment; see `Rollouts`."""

    @property
    def left_out(self) -> frozenset[str]:
        """Parameters of a request that the endpoint did not take."""
        return frozenset(self.client.left_out)

    def play(
        self, env: ToolEnv, jobs: Sequence[Job], most_tokens: int, keep: Callable[[Episode], None]
    ) -> None:
        """Play the jobs; every episode is kept as soon as it ends.

        Args:
            env: forked for every episode.
            jobs: what to play.
            most_tokens: of one episode: the model's own, and what stood between its turns.
            keep: takes each episode.

        Raises:
            EndpointUnavailable: the endpoint answers nothing.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._play, env.fork(), job, most_tokens) for job in jobs]
            try:
                for future in as_completed(futures):
                    keep(future.result())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _play(self, env: ToolEnv, job: Job, most_tokens: int) -> Episode:
        question, info = env.reset(options={"task": job.task.id})
        messages = [
            {"role": "system", "content": info["instructions"]},
            {"role": "user", "content": question},
        ]
        said: list[str] = []
        tokens, room, before = 0, most_tokens, None
        while True:
            try:
                reply = self._ask(messages, said, room, job, env.stop_tags)
            except NoRoom:
                env.truncate("length")
                return ended(job, env.snapshot(), tokens)
            except RequestFailed as error:
                return Episode(job.task.id, job.sample, tokens=tokens, error=str(error))
            before = reply.prompt_tokens if before is None else before
            tokens += reply.completion_tokens
            room = most_tokens - (reply.prompt_tokens + reply.completion_tokens - before)
            text = first_turn(reply, env.stop_tags)
            state = env.snapshot()
            if _cut_off(reply, env.stop_tags):
                env.truncate("length", text)
                return ended(job, env.snapshot(), tokens)
            outcome = step_with_retries(env, text, pause_s=self.pause_s, timeout_s=self.patience_s)
            if isinstance(outcome, UNAVAILABLE):
                return Episode(job.task.id, job.sample, tokens=tokens, error=str(outcome))
            observation, _, terminated, truncated, _ = outcome
            left = room - min(RESERVED_TOKENS, most_tokens // 4)
            if not (terminated or truncated) and left < 8:
                env.restore(state)  # no room for what the tool said, as in a rollout
                env.truncate("length", text)
                terminated = True
            if terminated or truncated:
                return ended(job, env.snapshot(), tokens)
            said += [text, fitted(observation, left * CHARACTERS_PER_TOKEN)]

    def _ask(
        self,
        messages: list[Message],
        said: list[str],
        room: int,
        job: Job,
        stop: Sequence[str],
    ) -> Reply:
        digest = hashlib.sha256(f"{self.seed}/{job.task.id}/{job.sample}/{len(said)}".encode())
        seed = int.from_bytes(digest.digest()[:4], "big") >> 1
        draws = (room, self.temperature, seed, stop)
        if self.client.protocol == "completions":
            return self.client.ask(self._prompt(messages, said), *draws)
        roles = ("assistant", "user")
        turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
        return self.client.ask([*messages, *turns], *draws)

    def _prompt(self, messages: list[Message], said: list[str]) -> str:
        assert self.tokenizer is not None, "completions need a tokenizer's chat template"
        prompt = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        # The endpoint's own tokenizer puts this token first.
        start = self.tokenizer.bos_token or ""
        return str(prompt).removeprefix(start) + "".join(said)


def first_turn(reply: Reply, stop_tags: Sequence[str]) -> str:
    """A reply up to and with its first closing tag, which ends a turn in every sampler of ours.

    Most endpoints cut the stop text off, and few say which it was. Where none is said, a reply that
    stopped inside an open tag is taken to have closed it.
    """
    text = reply.text
    ends = [text.find(tag) + len(tag) for tag in stop_tags if tag in text]
    if ends:
        return text[: min(ends)]
    if reply.finish == "length":
        return text
    if reply.stopped_at is not None and reply.stopped_at in stop_tags:
        return text + reply.stopped_at
    opened = {text.rfind(tag.replace("/", "", 1)): tag for tag in stop_tags}
    last = max(opened)
    return text + opened[last] if last >= 0 else text


def _cut_off(reply: Reply, stop_tags: Sequence[str]) -> bool:
    return reply.finish == "length" and not any(tag in reply.text for tag in stop_tags)


def fitted(text: str, most: int) -> str:
    """Text of at most so many characters, its middle left out."""
    if len(text) <= most:
        return text
    return text[: most - most // 4] + text[len(text) - most // 4 :]
