"""Models behind an endpoint as backends: what is sent, what is made of what comes back."""

import io
import json
import shutil
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.judge import Endpoint
from learners.errors import EndpointUnavailable, UsageError
from learners.evaluate.__main__ import evaluate
from learners.evaluate.config import Config
from learners.evaluate.endpoint import (
    EndpointBackend,
    EndpointClient,
    EndpointReply,
    RequestFailed,
    first_turn,
    shorten,
)
from learners.evaluate.episodes import Job
from learners.policy.loading import tiny_tokenizer
from tests import needs, served_model
from tests.fakes import EchoTool, UnplugTool, answer, call, toy_env

ENDPOINT = Endpoint("http://model.test/v1", "m-1", "secret", tries=3, backoff=0)


def reply(text, finish="stop", prompt=50, completion=10):
    """What both forms of endpoint say, together."""
    choice = {"message": {"content": text}, "text": text, "finish_reason": finish}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def refusal(code, message, param=None, **headers):
    body = json.dumps({"error": {"message": message, "param": param}}).encode()
    return urllib.error.HTTPError("http://model.test", code, "no", headers, io.BytesIO(body))


class FakeModel:
    """Says what it was told to, one after the other; keeps what it was sent."""

    def __init__(self, *said):
        self.said = list(said)
        self.urls, self.bodies, self.headers = [], [], []
        self.lock = threading.Lock()

    def __call__(self, url, headers, body, timeout):
        with self.lock:
            self.urls.append(url)
            self.headers.append(dict(headers))
            self.bodies.append(json.loads(body))
            said = self.said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


def played(fake, env=None, protocol="chat", max_tokens=1000, tokenizer=None):
    """The one episode of the toy task t ("What is 4 + 4?")."""
    env = env or toy_env()
    client = EndpointClient(ENDPOINT, protocol, fake)
    backend = EndpointBackend(client, 0.0, 0, 2, tokenizer, pause_s=0)
    kept = []
    backend.play(env, [Job(env.tasks[0], 0)], max_tokens, kept.append)
    (episode,) = kept
    return episode


def test_in_chat_every_turn_is_an_assistant_message_and_every_result_a_user_message():
    fake = FakeModel(reply(call("search", "four") + " and so"), reply(answer("8"), completion=7))
    episode = played(fake)
    assert (episode.answer, episode.stop, episode.calls) == ("8", "answered", ("search",))
    assert episode.tokens == 17
    assert fake.urls == ["http://model.test/v1/chat/completions"] * 2
    first, second = (body["messages"] for body in fake.bodies)
    assert [m["role"] for m in first] == ["system", "user"]
    assert "<search> ... </search>" in first[0]["content"]
    assert first[1]["content"] == "What is 4 + 4?"
    assert [m["role"] for m in second[2:]] == ["assistant", "user"]
    assert second[2]["content"] == call("search", "four")
    assert second[3]["content"].startswith(" <result>\n")
    assert "four" in second[3]["content"]
    assert fake.headers[0]["Authorization"] == "Bearer secret"


def test_in_completions_the_conversation_is_one_message_under_the_chat_template():
    fake = FakeModel(reply(call("search", "four")), reply(answer("8")))
    tokenizer = tiny_tokenizer()
    episode = played(fake, protocol="completions", tokenizer=tokenizer)
    assert episode.answer == "8"
    assert fake.urls == ["http://model.test/v1/completions"] * 2
    first, second = (body["prompt"] for body in fake.bodies)
    assert first == "<|user|>What is 4 + 4?<|assistant|>"
    assert second.startswith(first + call("search", "four") + " <result>\n")


def test_a_start_token_that_the_endpoint_puts_itself_is_not_sent():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|user|>"
    fake = FakeModel(reply(answer("8")))
    played(fake, protocol="completions", tokenizer=tokenizer)
    assert fake.bodies[0]["prompt"] == "What is 4 + 4?<|assistant|>"


def test_what_a_model_makes_up_after_its_turn_is_no_part_of_it():
    made_up = call("search", "x") + " <result> 8 </result> " + answer("9")
    fake = FakeModel(reply(made_up, "length"), reply(answer("8")))
    assert played(fake).answer == "8"
    assert fake.bodies[0]["stop"] == ["</search>", "</python>", "</answer>"]


@pytest.mark.parametrize(
    ("text", "finish", "stopped_at", "turn"),
    [
        ("<x> a </x> b </y>", "stop", None, "<x> a </x>"),
        ("<x> a </x> b", "length", None, "<x> a </x>"),
        ("<x> a ", "stop", "</x>", "<x> a </x>"),
        ("<x> a ", "stop", None, "<x> a </x>"),
        ("<y> b <x> a ", "stop", None, "<y> b <x> a </x>"),
        ("<x> a ", "length", None, "<x> a "),
        ("no tag", "stop", None, "no tag"),
    ],
)
def test_a_turn_ends_with_its_closing_tag_whether_the_endpoint_keeps_it_or_not(
    text, finish, stopped_at, turn
):
    assert first_turn(EndpointReply(text, finish, 1, 1, stopped_at), ("</x>", "</y>")) == turn


def test_a_reply_without_an_action_ends_the_episode_as_in_training():
    assert played(FakeModel(reply("I do not know"))).stop == "malformed"
    assert played(FakeModel(reply("I think that", "length"))).stop == "length"
    assert played(FakeModel(reply(""))).stop == "malformed"


def test_results_count_against_the_tokens_of_an_episode():
    """1000 at first; 10 written and 130 read leave 860; then 7 written leave 853."""
    fake = FakeModel(
        reply(call("search", "a"), prompt=50, completion=10),
        reply(call("search", "b"), prompt=190, completion=7),
        reply(answer("8"), prompt=200),
    )
    played(fake)
    assert [body["max_tokens"] for body in fake.bodies] == [1000, 990, 853]


def test_without_room_for_a_result_the_episode_ends_by_length():
    fake = FakeModel(reply(call("search", "a"), prompt=50, completion=95))
    assert played(fake, max_tokens=120).stop == "length"
    assert shorten("abcdefghij", 4) == "abcj"
    assert shorten("abc", 4) == "abc"


TOO_LONG = (
    "This model's maximum context length is 4096 tokens",
    "'max_tokens' or 'max_completion_tokens' is too large: 1000.",
    "This model supports at most 64 completion tokens",
)


@pytest.mark.parametrize("said", TOO_LONG)
def test_a_shorter_reply_is_asked_for_where_the_model_holds_no_longer_one(said):
    fake = FakeModel(refusal(400, said, "max_tokens"), refusal(400, said), reply(answer("8")))
    assert played(fake).answer == "8"
    assert [body["max_tokens"] for body in fake.bodies] == [1000, 500, 250]


def test_an_endpoint_that_finds_the_conversation_too_long_ends_the_episode_by_length():
    fake = FakeModel(reply(call("search", "a")), *(refusal(400, TOO_LONG[0]) for _ in range(9)))
    episode = played(fake)
    assert (episode.stop, episode.calls, episode.error) == ("length", ("search",), None)
    assert fake.bodies[-1]["max_tokens"] < 64


def test_passing_faults_are_tried_again():
    fake = FakeModel(OSError("reset"), refusal(503, "busy"), reply(answer("8")))
    assert played(fake).answer == "8"


def test_an_endpoint_may_ask_to_be_left_alone_for_a_while(monkeypatch):
    slept = []
    monkeypatch.setattr("learners.evaluate.endpoint.time.sleep", slept.append)
    busy = [refusal(429, "slow down", **{"Retry-After": after}) for after in ("7", "9999")]
    assert played(FakeModel(*busy, reply(answer("8")))).answer == "8"
    assert slept == [7.0, 60.0]


def test_a_request_that_stays_without_a_reply_is_an_error_and_no_wrong_answer():
    for said in ([OSError("reset")] * 3, [refusal(400, "odd")], [b"{}"], [b"[]"]):
        episode = played(FakeModel(*said))
        assert episode.stop == ""
        assert "m-1 at http://model.test/v1" in episode.error or "odd" in episode.error
        assert "secret" not in episode.error


def test_a_wrong_key_ends_the_evaluation():
    with pytest.raises(EndpointUnavailable, match="--api-key-variable") as caught:
        played(FakeModel(refusal(401, "bad key")))
    assert "secret" not in str(caught.value)


def test_parameters_that_an_endpoint_does_not_take_are_left_out_and_named():
    fake = FakeModel(
        refusal(400, "Unsupported parameter: use 'max_completion_tokens' instead", "max_tokens"),
        refusal(400, "Unsupported parameter: 'stop' is not supported with this model.", "stop"),
        refusal(400, "'temperature' does not support 0.0 with this model."),
        reply("well"),
        reply("well"),
    )
    client = EndpointClient(ENDPOINT, "chat", fake)
    for _ in range(2):
        assert client.ask([], 99, 0.0, 1, ["</x>"]).text == "well"
    assert client.left_out == {"max_tokens", "stop", "temperature"}
    assert fake.bodies[4] == {"model": "m-1", "messages": [], "max_completion_tokens": 99}
    with pytest.raises(RequestFailed):
        EndpointClient(ENDPOINT, "chat", FakeModel(refusal(400, "'seed' is wrong"))).ask(
            [], 9, 0.0, 1, ["</x>"]
        )


def test_draws_of_a_sample_are_named_by_a_seed_of_their_own():
    fake = FakeModel(reply(answer("8")), reply(answer("8")))
    env = toy_env()
    backend = EndpointBackend(EndpointClient(ENDPOINT, "chat", fake), 0.7, 0, 1)
    backend.play(env, [Job(env.tasks[0], 0), Job(env.tasks[0], 1)], 100, lambda episode: None)
    assert fake.bodies[0]["temperature"] == 0.7
    assert fake.bodies[0]["seed"] != fake.bodies[1]["seed"]


def test_a_tool_that_stays_unavailable_is_an_error():
    plug = UnplugTool("search")
    plug.plugged = False
    episode = played(FakeModel(reply(call("search", "a"))), toy_env(plug, EchoTool("python")))
    assert (episode.error, episode.tokens) == ("the plug is out", 10)


class Served(BaseHTTPRequestHandler):
    """Answers the backend with the word Gate, and the judge as it asks for."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = answer("Gate")
        if body["model"] == "judge-1":
            asked = json.loads(body["messages"][1]["content"])
            said = json.dumps({"check": asked["check"], "verdict": "correct"})
        raw = reply(said)
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


@pytest.fixture
def served():
    with ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_a_judged_set_has_no_official_number_until_a_judge_has_graded_it(
    served, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    rows = tmp_path / "benchmarks/webwalker"
    rows.mkdir(parents=True)
    row = {"question": "Which gate?", "answer": "The old gate of the mill"}
    (rows / "test.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    known = {"env": ("appo/WebWalker-v0",), "data_dir": str(tmp_path), "tools": ("calculator",)}
    out = str(tmp_path / "out")
    results = evaluate(Config(model="m-1", api_base=served, out=out, **known)).to_json()
    found = results["environments"]["appo/WebWalker-v0"]
    assert results["player"]["protocol"] == "chat"
    assert (found["official"], found["not_judged"]) == (None, 1)
    assert found["training"]["value"] == pytest.approx(0.4)  # 1 of 1 words in 1 of 4
    judge = {"judge_base": served, "judge_model": "judge-1"}
    again = evaluate(Config(regrade=True, out=out, **judge)).to_json()
    found = again["environments"]["appo/WebWalker-v0"]
    assert (found["official"]["value"], found["not_judged"]) == (1.0, 0)
    assert again["player"] == results["player"]
    assert again["judge"]["model"] == "judge-1"
    assert again["judge"]["fingerprint"]
    assert all("sk-secret" not in path.read_text("utf-8") for path in (tmp_path / "out").iterdir())


def test_completions_need_a_tokenizer(tmp_path):
    config = Config(env=("appo/GSM8K-v0",), api_base="http://x/v1", protocol="completions")
    with pytest.raises(UsageError, match="--protocol completions needs --tokenizer"):
        evaluate(Config(**{**config.__dict__, "out": str(tmp_path)}))


@pytest.fixture(scope="module")
def transformers_serve(taught, tmp_path_factory):
    """`transformers serve` with the taught tiny model; its address and the model's name."""
    needs.packages("fastapi", "openai")
    folder = tmp_path_factory.mktemp("served") / "taught"
    shutil.copytree(taught, folder)
    with served_model.served(folder) as base:
        yield base, str(folder)


SERVED = {"env": ("appo/SyntheticQA-v0",), "tools": ("search", "calculator"), "tasks": 4}


@pytest.mark.full
def test_a_real_server_plays_completions_as_the_model_itself_does(transformers_serve, tmp_path):
    """Greedy: what the server writes is what our sampler writes, turn by turn."""
    base, name = transformers_serve
    known = {**SERVED, "max_response_tokens": 200}
    remote = {"api_base": base, "protocol": "completions", "tokenizer": name}
    there = evaluate(Config(model=name, out=str(tmp_path / "there"), **known, **remote))
    here = evaluate(Config(model=name, out=str(tmp_path / "here"), threads=1, **known))
    assert there.backend.protocol == "completions"
    texts = [
        (tmp_path / where / "SyntheticQA.episodes.jsonl").read_text("utf-8").split("\n")[:-1]
        for where in ("there", "here")
    ]
    rows = [[json.loads(line) for line in text] for text in texts]
    by_task = [{row["task"]: row for row in played_rows} for played_rows in rows]
    assert by_task[0].keys() == by_task[1].keys()
    for task, row in by_task[0].items():
        assert row["error"] is None
        assert row["transcript"] == by_task[1][task]["transcript"]
    assert there.environments.keys() == here.environments.keys()


@pytest.mark.full
def test_a_real_server_plays_chat(transformers_serve, tmp_path):
    base, name = transformers_serve
    config = Config(model=name, api_base=base, out=str(tmp_path), **SERVED, max_response_tokens=120)
    results = evaluate(config).to_json()
    found = results["environments"]["appo/SyntheticQA-v0"]
    assert results["player"]["protocol"] == "chat"
    assert found["status"].get("error", 0) == 0
    assert found["episodes"] == 4
    assert found["tokens"] > 0
