"""The samplers around vLLM's engine, with a fake engine and a fake process in its place.

The real engine is tested in test_vllm_engine.py.
"""

import json
import math
import os
import signal
import socket
import sys
import threading
from queue import SimpleQueue

import pytest
import torch

from learners.config import RunConfig
from learners.errors import RunStopped, UsageError
from learners.policy import lora
from learners.policy.loading import load_model, save_model, tiny_tokenizer
from learners.sampling import opening
from learners.sampling.opening import open_sampler, resolve_turns
from learners.sampling.sampler import Request, SamplerStats, StopCriteria
from learners.sampling.transformers_sampler import TransformersSampler
from learners.sampling.vllm_sampler import (
    Piece,
    VllmSampler,
    derive_seed,
    entropy_lower_bound,
    export_weights,
)
from learners.sampling.vllm_server import MAX_FAILURES, Settings, VllmServer, _answer

TAGS = ("</echo>",)
TURN = "<think> 🦊 is a fox </think><echo> 🦊</echo>"
SCRIPT = TURN + " and more that nobody asked for </echo>"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


class ScriptedEngine:
    """Continues the script after any prefix of it, `pace` tokens a step."""

    def __init__(self, script, pace=1, context=10_000):
        self.script, self.pace, self.context = list(script), pace, context
        self.under_way, self.log, self.added = {}, [], []
        self.version = "first"

    def add(self, name, prefix_ids, max_tokens, seed, temperature, end_ids):
        assert self.script[: len(prefix_ids)] == list(prefix_ids), "no such prefix"
        self.added.append((max_tokens, seed, temperature, end_ids))
        self.under_way[name] = [len(prefix_ids), max_tokens, end_ids]
        self.log.append("add")

    def step(self):
        self.log.append("step")
        for name, at in list(self.under_way.items()):
            start, left, end_ids = at
            said = self.script[start : start + min(self.pace, left, self.context - start)]
            at[0], at[1] = start + len(said), left - len(said)
            ended = at[1] == 0 or at[0] >= self.context or bool({*said} & {*end_ids})
            if ended:
                del self.under_way[name]
            yield Piece(name, said, [-0.5] * len(said), [0.25] * len(said), ended)

    def abort(self, names):
        for name in names:
            self.under_way.pop(name, None)

    def load(self, weights):
        assert not self.under_way, "weights under a running request"
        self.version = weights
        self.log.append("load")

    def sleep(self):
        self.log.append("sleep")

    def wake(self):
        self.log.append("wake")


def scripted(tokenizer, text=SCRIPT, **options):
    script = [61, *tokenizer.encode(text, add_special_tokens=False)]
    engine = ScriptedEngine(script, **options)
    end = StopCriteria(tokenizer, TAGS, frozenset({tokenizer.eos_token_id}))
    return engine, VllmSampler(engine, end, lambda: "newest")


def request(prefill=(), *, most=60, key="k", position=0, temperature=1.0):
    return Request((61,), tuple(prefill), most, key, position, temperature)


def serve(sampler, *requests):
    for one in requests:
        sampler.submit(one)
    found = {r.key: said for r, said in sampler.completed()}
    return [found[r.key] for r in requests]


@pytest.mark.parametrize("pace", [1, 3])
def test_a_tag_is_found_across_prefill_and_output_wherever_the_turn_was_cut(tokenizer, pace):
    """At every token of the turn; tokens that the engine draws beyond the tag are dropped."""
    ids = tokenizer.encode(TURN, add_special_tokens=False)
    for cut in range(len(ids)):
        engine, sampler = scripted(tokenizer, pace=pace)
        (said,) = serve(sampler, request(ids[:cut]))
        assert (list(said.token_ids), said.stop) == (ids[cut:], "tag"), f"cut at {cut}"
        assert len(said.logprobs) == len(said.entropies) == len(ids) - cut
        assert engine.under_way == {}


def test_an_end_token_ends_the_turn_and_is_part_of_it(tokenizer):
    _, sampler = scripted(tokenizer, f"<think> done{tokenizer.eos_token} and on", pace=50)
    (said,) = serve(sampler, request())
    assert (said.stop, said.token_ids[-1]) == ("eos", tokenizer.eos_token_id)


def test_every_request_has_its_own_limit(tokenizer):
    _, sampler = scripted(tokenizer)
    said = serve(sampler, *(request(most=n, key=str(n)) for n in (5, 1, 3)))
    assert [(len(c.token_ids), c.stop) for c in said] == [(n, "length") for n in (5, 1, 3)]


def test_a_model_without_room_ends_the_turn_by_length(tokenizer):
    _, sampler = scripted(tokenizer, context=4)
    (said,) = serve(sampler, request())
    assert (len(said.token_ids), said.stop) == (3, "length")


def test_every_request_has_a_seed_of_its_own(tokenizer):
    engine, sampler = scripted(tokenizer)
    serve(sampler, request(most=1, key="a"), request(most=1, key="b", temperature=0.0))
    end = [tokenizer.eos_token_id]
    assert engine.added == [(1, derive_seed("a", 0), 1.0, end), (1, derive_seed("b", 0), 0.0, end)]
    seeds = {
        derive_seed(key, at) for key in ("0/0/a/0", "1/0/a/0", "0/0/a/0/3/0") for at in range(9)
    }
    assert len(seeds) == 27
    assert all(0 <= number < 2**63 for number in seeds)


def test_a_request_that_joins_is_in_the_next_step(tokenizer):
    engine, sampler = scripted(tokenizer)
    sampler.submit(request(most=1, key="a"))
    sampler.submit(request(most=3, key="b"))
    ended = []
    for one, _ in sampler.completed():
        ended.append(one.key)
        if one.key == "a":
            sampler.submit(request(most=1, key="c"))
    assert ended == ["a", "c", "b"]
    assert engine.log == ["add", "add", "step", "add", "step", "step"]


def test_weights_are_pushed_once_before_the_next_token_however_often_they_changed(tokenizer):
    engine, sampler = scripted(tokenizer)
    serve(sampler, request(most=1))
    for _ in range(3):
        sampler.sync()
    assert engine.version == "first"
    serve(sampler, request(most=1))
    serve(sampler, request(most=1))
    assert engine.log == ["add", "step", "load", "add", "step", "add", "step"]
    assert engine.version == "newest"


def test_weights_that_change_meanwhile_wait_for_what_is_under_way(tokenizer):
    """The scripted engine raises if weights are pushed while a request is running."""
    engine, sampler = scripted(tokenizer)
    sampler.submit(request(most=1, key="a"))
    sampler.submit(request(most=3, key="b"))
    for one, _ in sampler.completed():
        if one.key == "a":
            sampler.sync()
            sampler.submit(request(most=1, key="c"))
    assert engine.log == ["add", "add", "step", "step", "step", "load", "add", "step"]


def test_an_engine_sleeps_between_rollouts_and_wakes_with_the_new_weights(tokenizer):
    engine, sampler = scripted(tokenizer)
    serve(sampler, request(most=1))
    sampler.rest()
    sampler.rest()
    sampler.sync()
    serve(sampler, request(most=1))
    assert engine.log == ["add", "step", "sleep", "wake", "load", "add", "step"]


def test_the_engine_drops_abandoned_requests(tokenizer):
    engine, sampler = scripted(tokenizer)
    sampler.submit(request(most=1, key="a"))
    sampler.submit(request(most=30, key="b"))
    completed = sampler.completed()
    next(completed)
    completed.close()
    assert engine.under_way == {}


@pytest.mark.parametrize(("prefix", "room"), [((), 4), ((61,), 0)])
def test_a_request_that_cannot_be_served_is_refused_at_once(tokenizer, prefix, room):
    _, sampler = scripted(tokenizer)
    with pytest.raises(ValueError, match=f"{len(prefix)} prefix tokens and max_tokens={room}$"):
        sampler.submit(Request(prefix, (), room, "k", 0))


def test_vllm_samplers_take_no_keys_and_report_no_numbers(tokenizer):
    """So the ledger of a run has no prefilled tokens, and scoring need not record keys."""
    _, sampler = scripted(tokenizer)
    settings = Settings("nowhere", "float32", 8, 1, TAGS, (0,))
    for one in (sampler, VllmServer(settings, lambda _: None)):
        assert one.keep is None
        assert one.stats() == SamplerStats(prefilled_tokens=None, weight_bytes=0, cache_bytes=0)


def test_an_entropy_of_the_likeliest_by_hand():
    """Two halves: ln 2. A half, a quarter and a rest of a quarter: 1.5 ln 2. Certainty: 0."""
    half, quarter = math.log(0.5), math.log(0.25)
    assert entropy_lower_bound([half, half, -math.inf]) == pytest.approx(math.log(2))
    assert entropy_lower_bound([half, quarter]) == pytest.approx(1.5 * math.log(2))
    assert entropy_lower_bound([0.0]) == 0.0
    four = [quarter] * 4
    assert entropy_lower_bound(four[:2]) < entropy_lower_bound(four) == pytest.approx(math.log(4))


def test_the_weights_of_an_adapted_policy_are_merged():
    loaded = load_model("tiny")
    plain = {name: value.clone() for name, value in export_weights(loaded.model)}
    lora.add_adapters(loaded.model, 2, None, 0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(1.0)
    merged = dict(export_weights(loaded.model))
    assert plain.keys() <= merged.keys()
    assert not any("lora" in name or "base_layer" in name for name in merged)
    moved = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert "model.layers.0.mlp.up_proj.weight" in moved
    assert "model.embed_tokens.weight" not in moved


def test_an_adapted_policy_is_saved_for_vllm_with_merged_weights_alone(tmp_path):
    loaded = load_model("tiny")
    lora.add_adapters(loaded.model, 2, None, 0)
    opening._save_merged(loaded, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["vllm", "vllm-server"])
def test_without_vllm_the_message_says_how_to_install_it(monkeypatch, name):
    loaded = load_model("tiny")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'appo-gym\[vllm\]'.*make \.venv-vllm"):
        open_sampler(RunConfig.of(sampler=name), loaded, TAGS)


def test_turns_overlap_unless_bit_exact_reruns_are_promised(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_turns(RunConfig()) == "lockstep"
    assert (
        resolve_turns(RunConfig.of(sampler="vllm"))
        == resolve_turns(RunConfig.of(turns="overlap"))
        == "overlap"
    )
    assert resolve_turns(RunConfig.of(sampler="vllm", turns="lockstep")) == "lockstep"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_turns(RunConfig()) == "overlap"


@pytest.fixture
def server_of(tmp_path):
    """Makes servers whose process behaves as the mode says; closes all in the end."""
    made = []

    def make(loaded, mode):
        folder = tmp_path / f"model-{len(made)}"
        folder.mkdir()
        settings = Settings(str(folder), "float32", 8, 1, TAGS, (0,))
        lives = str(folder / "lives")
        command = (sys.executable, "-m", "tests.vllm_stand_in", mode, lives)
        made.append(VllmServer(settings, lambda where: save_model(loaded, where), command))
        return made[-1], folder / "lives"

    yield make
    for server in made:
        server.close()


def said_by(sampler, *requests):
    """Return ids alone: log-probabilities differ by rounding with the rest of the batch."""
    return [said.token_ids for said in serve(sampler, *requests)]


def three(most=6):
    return [Request((61, 70 + n), (), most, str(n), 0, 0.0) for n in range(3)]


@pytest.mark.slow
def test_a_process_that_ends_is_started_again_and_every_request_is_answered(server_of):
    """It kills itself at the second request, before it has read the third."""
    loaded = load_model("tiny")
    expected = said_by(TransformersSampler(*loaded, TAGS), *three())
    server, lives = server_of(loaded, "dies once")
    assert said_by(server, *three()) == expected
    assert (server.restarts, lives.read_text()) == (1, "xx")


@pytest.mark.slow
def test_a_process_that_is_killed_between_rollouts_is_started_again(server_of):
    loaded = load_model("tiny")
    server, lives = server_of(loaded, "lives")
    first = said_by(server, *three())
    os.kill(server.process_id, signal.SIGKILL)
    assert said_by(server, *three()) == first
    assert (server.restarts, lives.read_text()) == (1, "xx")


@pytest.mark.slow
def test_a_process_that_always_ends_stops_the_run_with_the_end_of_its_log(server_of):
    server, lives = server_of(load_model("tiny"), "dies")
    with pytest.raises(RunStopped, match=r"ended 3 times.*\n(.*\n)*no memory left\n.*resumes"):
        serve(server, *three())
    assert lives.read_text() == "x" * MAX_FAILURES


@pytest.mark.slow
def test_a_process_gets_new_weights_before_the_next_token(server_of):
    loaded = load_model("tiny")
    server, lives = server_of(loaded, "lives")
    before = said_by(server, *three())
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight.mul_(-1)
    assert said_by(server, *three()) == before
    server.sync()
    after = said_by(server, *three())
    assert after != before
    assert after == said_by(TransformersSampler(*loaded, TAGS), *three())
    assert lives.read_text() == "x"


@pytest.mark.slow
def test_a_process_has_come_to_rest_before_the_run_goes_on(server_of):
    """The process records its rest before it answers; without any sampling there is no process."""
    server, lives = server_of(load_model("tiny"), "lives")
    server.rest()
    assert not lives.exists()
    first = said_by(server, *three())
    server.rest()
    assert lives.read_text() == "xr"
    assert said_by(server, *three()) == first
    assert (server.restarts, lives.read_text()) == (0, "xr")


@pytest.mark.slow
def test_a_process_that_ends_instead_of_resting_is_reported_and_started_again(server_of, caplog):
    server, lives = server_of(load_model("tiny"), "dies resting")
    first = said_by(server, *three())
    server.rest()
    assert "no sleep tonight" in caplog.text
    assert server.process_id is None
    assert said_by(server, *three()) == first
    assert (server.restarts, lives.read_text()) == (1, "xx")


@pytest.mark.slow
def test_a_process_ends_with_the_run(server_of):
    server, _ = server_of(load_model("tiny"), "lives")
    serve(server, *three())
    popen = server._process.popen
    server.close()
    assert popen.poll() == -signal.SIGKILL


def test_the_process_answers_that_it_rests_once_its_engine_sleeps(tokenizer):
    engine, sampler = scripted(tokenizer)
    ours, theirs = socket.socketpair()
    woken = SimpleQueue()
    threading.Thread(target=_answer, args=(theirs, sampler, woken), daemon=True).start()
    with ours, theirs, ours.makefile() as heard:
        sampler.submit(request(most=1))
        woken.put("submit")
        assert "completed" in json.loads(heard.readline())
        woken.put("rest")
        assert json.loads(heard.readline()) == {"rested": True}
    assert engine.log == ["add", "step", "sleep"]


def test_a_request_survives_the_socket():
    """To JSON and back, with a key that needs escapes."""
    ours, theirs = socket.socketpair()
    sent = Request((1, 2), (3,), 4, 'task "é"\n/0', 5, 0.5)
    ours.sendall(json.dumps({"submit": sent}).encode() + b"\n")
    prefix, prefill, *rest = json.loads(theirs.makefile().readline())["submit"]
    assert Request(tuple(prefix), tuple(prefill), *rest) == sent
    ours.close()
    theirs.close()
