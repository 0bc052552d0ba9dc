"""Client and backend of OpenAI-compatible endpoints, with the standard library alone.

Endpoints differ in the parameters they take. One that an endpoint refuses by name is left out, or
spelled differently, from then on; `left_out` lists them for results.json.
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
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import Endpoint, Post, http_post
from envs import ToolEnv
from learners.errors import EndpointUnavailable
from learners.evaluate.config import EndpointProtocol
from learners.evaluate.episodes import Episode, Job, to_episode
from learners.rollouts import RESERVED_TOKENS, UNAVAILABLE, step_with_retries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FATAL = frozenset({401, 403, 404, 405})
"""HTTP statuses that every request to this endpoint would get."""

MAX_PAUSE = 60.0
"""Seconds that an endpoint's Retry-After may ask for, at most."""

MIN_TOKENS = 32
"""Shortest reply that is worth asking for."""

MIN_RESULT_TOKENS = 8
"""Shortest room that a result is shown in; an episode with less ends by length."""

CHARACTERS_PER_TOKEN = 3
"""Estimate for cutting a result to the room that is left; its true tokens are counted later."""

_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size)|maximum.{0,40}(length|tokens)|too (large|long)|at most \d",
    re.I,
)

_OPTIONAL = ("stop", "temperature", "seed")

ChatMessage = dict[str, str]


class RequestFailed(RuntimeError):
    """This request got no reply; others may."""


class NoRoom(RuntimeError):
    """The conversation is longer than the endpoint takes."""


class EndpointReply(NamedTuple):
    """A text by the model, with the endpoint's counts."""

    text: str
    finish: str
    """stop or length, or another word of the endpoint."""
    prompt_tokens: int
    completion_tokens: int
    stopped_at: str | None = None
    """Stop text that ended the reply, if the endpoint cuts it off and names it."""


class EndpointClient:
    """Sends requests, with retries. Thread-safe; mutated when the endpoint refuses a parameter."""

    def __init__(
        self, endpoint: Endpoint, protocol: EndpointProtocol, post: Post = http_post
    ) -> None:
        """Make a client; sends nothing yet.

        Args:
            endpoint: address, model, retries and timeout.
            protocol: chat takes messages, completions a text.
            post: sends a request; tests pass their own.
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
    ) -> EndpointReply:
        """Ask for one reply.

        Args:
            conversation: messages, or the text to continue, by protocol.
            max_tokens: of the reply.
            temperature: 0 is greedy.
            seed: of sampling, if the endpoint takes one.
            stop: texts that end the reply; endpoints differ in whether it includes them.

        Raises:
            EndpointUnavailable: wrong address, model or key.
            RequestFailed: no reply to this request, after all retries.
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
                    return self._parse(self._send(body))
                except NoRoom:
                    if body["max_tokens"] < 2 * MIN_TOKENS:
                        raise
                    body["max_tokens"] //= 2  # prompt and reply share the model's context

    def _send(self, body: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
        path = "/chat/completions" if self.protocol == "chat" else "/completions"
        url = self._endpoint.base_url.rstrip("/") + path
        headers = {"Content-Type": "application/json"}
        if self._endpoint.api_key:
            headers["Authorization"] = f"Bearer {self._endpoint.api_key}"
        fault, tries = "", 0
        while tries < self._endpoint.tries:
            pause = self._endpoint.backoff * 2**tries
            data = json.dumps(self._without_refused(body)).encode()
            try:
                return json.loads(self._post(url, headers, data, self._endpoint.timeout))
            except urllib.error.HTTPError as error:
                with error:
                    answer = error.read(10_000).decode("utf-8", "replace")
                fault = f"HTTP {error.code}: {answer[:300]}"
                wait = str(error.headers.get("Retry-After", ""))
                pause = max(pause, min(float(wait), MAX_PAUSE)) if wait.isdigit() else pause
                if error.code in FATAL:
                    raise EndpointUnavailable(self._describe(fault)) from error
                if error.code in (400, 422):
                    if _TOO_LONG.search(answer):
                        raise NoRoom(fault) from error
                    if not self._leave_out(answer, body):
                        raise RequestFailed(fault) from error
                    continue  # at once, and not counted: each parameter is refused once only
            except OSError as error:
                fault = f"{type(error).__name__}: {error}"
            except ValueError as error:
                fault = f"not JSON ({error})"
            tries += 1
            if tries < self._endpoint.tries:
                time.sleep(pause)
        raise RequestFailed(self._describe(fault))

    def _without_refused(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body without the parameters that the endpoint refused."""
        accepted = {name: value for name, value in body.items() if name not in self.left_out}
        if "max_tokens" in self.left_out:
            accepted["max_completion_tokens"] = body["max_tokens"]
        return accepted

    def _leave_out(self, answer: str, body: dict[str, Any]) -> bool:
        """Leave out the optional parameter that a refusal names; True if it is a new one."""
        try:
            error = json.loads(answer)["error"]
            text = str(error.get("param") or error.get("message"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if text == "max_tokens" or "max_completion_tokens" in text:
            parameter = "max_tokens"
        else:
            parameter = next((name for name in _OPTIONAL if re.search(rf"\b{name}\b", text)), "")
        is_new = parameter in body and parameter not in self.left_out
        if is_new:
            self.left_out.add(parameter)
        return is_new

    def _parse(self, content: Any) -> EndpointReply:  # noqa: ANN401 - JSON
        try:
            (choice, *_), usage = content["choices"], content["usage"]
            text = choice["message"]["content"] if self.protocol == "chat" else choice["text"]
            counts = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
            stopped_at = choice.get("stop_reason")  # vLLM's own: a token's id or a stop text
            if not isinstance(stopped_at, str):
                stopped_at = None
            finish = str(choice.get("finish_reason"))
            return EndpointReply(str(text or ""), finish, *counts, stopped_at)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            start = json.dumps(content)[:200]
            raise RequestFailed(self._describe(f"no reply with its usage in {start}")) from error

    def _describe(self, fault: str) -> str:
        return (
            f"{self._endpoint.model} at {self._endpoint.base_url} gave no reply ({fault}); check "
            "--api-base (up to and with /v1), --model and the variable of --api-key-variable"
        )


@dataclass(frozen=True)
class EndpointBackend:
    """Plays as many episodes at the same time as the endpoint takes requests."""

    client: EndpointClient
    temperature: float
    seed: int
    concurrency: int
    tokenizer: PreTrainedTokenizerBase | None = None
    """Tokenizer whose chat template writes the prompt; for completions only."""
    pause_s: float = 0.2
    """Pause before a failed tool call is retried; doubles with each retry."""
    patience_s: float = 600.0
    """Timeout of one step of the environment; see `Rollouts`."""

    @property
    def left_out(self) -> frozenset[str]:
        """Parameters of a request that the endpoint refused."""
        return frozenset(self.client.left_out)

    def play(
        self, env: ToolEnv, jobs: Sequence[Job], max_tokens: int, store: Callable[[Episode], None]
    ) -> None:
        """Play the jobs; see `learners.evaluate.backends.Backend`.

        Raises:
            EndpointUnavailable: the endpoint replies to nothing.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._play, env.fork(), job, max_tokens) for job in jobs]
            try:
                for future in as_completed(futures):
                    store(future.result())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _play(self, env: ToolEnv, job: Job, max_tokens: int) -> Episode:
        question, info = env.reset(options={"task": job.task})
        messages = [
            {"role": "system", "content": info["instructions"]},
            {"role": "user", "content": question},
        ]
        turns: list[str] = []  # the model's turn, a result, ...
        tokens, room, prompt_tokens = 0, max_tokens, None
        while True:
            try:
                reply = self._ask(messages, turns, room, job, env.stop_tags)
            except NoRoom:
                env.truncate("length")
                return to_episode(job, env.snapshot(), tokens)
            except RequestFailed as error:
                return Episode(job.task.id, job.sample, tokens=tokens, error=str(error))
            # All that follows the first prompt counts, as in a rollout: turns and results.
            prompt_tokens = reply.prompt_tokens if prompt_tokens is None else prompt_tokens
            tokens += reply.completion_tokens
            room = max_tokens - (reply.prompt_tokens + reply.completion_tokens - prompt_tokens)
            text = first_turn(reply, env.stop_tags)
            state = env.snapshot()
            if _is_cut_off(reply, env.stop_tags):
                env.truncate("length", text)
                return to_episode(job, env.snapshot(), tokens)
            outcome = step_with_retries(env, text, pause_s=self.pause_s, timeout_s=self.patience_s)
            if isinstance(outcome, UNAVAILABLE):
                return Episode(job.task.id, job.sample, tokens=tokens, error=str(outcome))
            observation, _, terminated, truncated, _ = outcome
            left = room - min(RESERVED_TOKENS, max_tokens // 4)
            if not (terminated or truncated) and left < MIN_RESULT_TOKENS:
                env.restore(state)  # the result has no room, so the call does not count
                env.truncate("length", text)
                terminated = True
            if terminated or truncated:
                return to_episode(job, env.snapshot(), tokens)
            turns += [text, shorten(observation, left * CHARACTERS_PER_TOKEN)]

    def _ask(
        self,
        messages: list[ChatMessage],
        turns: list[str],
        room: int,
        job: Job,
        stop: Sequence[str],
    ) -> EndpointReply:
        digest = hashlib.sha256(f"{self.seed}/{job.task.id}/{job.sample}/{len(turns)}".encode())
        seed = int.from_bytes(digest.digest()[:4], "big") >> 1
        options = (room, self.temperature, seed, stop)
        if self.client.protocol == "completions":
            return self.client.ask(self._prompt(messages, turns), *options)
        roles = ("assistant", "user")
        following = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        return self.client.ask([*messages, *following], *options)

    def _prompt(self, messages: list[ChatMessage], turns: list[str]) -> str:
        assert self.tokenizer is not None, "completions need a tokenizer's chat template"
        prompt = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        # The endpoint's tokenizer adds this token itself.
        start = self.tokenizer.bos_token or ""
        return str(prompt).removeprefix(start) + "".join(turns)


def first_turn(reply: EndpointReply, stop_tags: Sequence[str]) -> str:
    """Return a reply up to and with its first closing tag, which ends a turn in all our samplers.

    Most endpoints cut the stop text off, and few name it. If it is not named, a reply that stopped
    inside an open tag is assumed to have closed it.
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


def _is_cut_off(reply: EndpointReply, stop_tags: Sequence[str]) -> bool:
    return reply.finish == "length" and not any(tag in reply.text for tag in stop_tags)


def shorten(text: str, max_characters: int) -> str:
    """Cut the middle out of a text that is too long."""
    if len(text) <= max_characters:
        return text
    end = max_characters // 4
    return text[: max_characters - end] + text[len(text) - end :]
