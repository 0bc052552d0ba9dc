"""A model behind an endpoint as the player of an evaluation.

`chat`: every turn is an assistant message and every result a user message; this is not the form
that training uses, so such scores are marked. `completions`: the chat template of a tokenizer at
hand writes the prompt, and turns and results follow in one message, as in training. Tokens are the
endpoint's own counts.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs import ToolEnv
from learners import attempts
from learners.attempts import UNAVAILABLE
from learners.endpoint import Client, NoRoom, Reply, RequestFailed
from learners.episodes import Episode, Job, ended
from learners.rollout import RESERVED_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    tokenizer: "PreTrainedTokenizerBase | None" = None
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
            outcome = attempts.step(env, text, pause_s=self.pause_s, patience_s=self.patience_s)
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
