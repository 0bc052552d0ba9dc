"""A client of OpenAI-compatible endpoints: one reply at a time, retried where that can help.

Only the standard library. Endpoints differ in what they take: a parameter that one refuses by name
is left out, or spelled anew, from then on, and `left_out` says so beside the results.
"""

import json
import re
import threading
import time
import urllib.error
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.judge import Endpoint, Post, http_post

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


class EndpointUnavailable(RuntimeError):
    """The endpoint gives no reply to anything; the message says what to check."""


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
