"""Every request to a judge is counted, from any thread, and every verdict is paid once."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks import Score, Task
from benchmarks.judge import Endpoint, JudgeUnavailable
from envs import ToolEnv
from learners.config import JudgeOptions, RunConfig
from learners.errors import RunStopped, UsageError
from learners.evaluate.__main__ import evaluate
from learners.evaluate.config import Config
from learners.ledger import Budget, Ledger, RunUsage
from learners.policy.loading import tiny_tokenizer
from learners.rollouts.rollout import Rollouts
from learners.runs.environments import TaskMixture
from learners.runs.evaluation import evaluate as play_all
from learners.runs.judging import CountedJudge, install_judge
from tests.fakes import TOY, EchoTool, answer
from tests.learner_fakes import ScriptedSampler
from tests.learners.evaluate.test_evaluate import config_of

TASK = Task("t", "Which river runs through Oldtown?", ("the Elda",), "free")
FAULTS = {"broken": (500, b"{}"), "no completion": (200, b"[]")}


class Court(ThreadingHTTPServer):
    """A judge behind HTTP that counts its requests; first it fails with its list of faults."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock, self.requests, self.faults = threading.Lock(), 0, []
        self.base = f"http://127.0.0.1:{self.server_port}/v1"
        self.endpoint = Endpoint(self.base, "judge-1", tries=3, backoff=0)


class _Handler(BaseHTTPRequestHandler):
    """Says correct if the candidate names the Elda; gives no verdict if it says hush."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests += 1
            fault = self.server.faults.pop(0) if self.server.faults else None
        status, raw = FAULTS[fault] if fault else (200, self._reply(body))
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _reply(self, body):
        asked = json.loads(body["messages"][1]["content"])
        verdict = "correct" if "Elda" in asked["candidate_answer"] else "incorrect"
        said = json.dumps({"check": asked["check"], "verdict": verdict})
        if "hush" in asked["candidate_answer"]:
            said = "I would rather not say"
        return json.dumps({"choices": [{"message": {"content": said}}]}).encode()

    def log_message(self, *args):
        pass


@pytest.fixture
def court():
    with Court() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def counted(ledger):
    return {n.removeprefix("ledger/judge_"): v for n, v in ledger.take().items() if "judge" in n}


def unjudged(answer_text, task):
    """A score that only a judge could decide, except for the word empty."""
    if answer_text == "empty":
        return Score(0.0, "empty", answer_text)
    return Score(0.0, "not judged", answer_text, False)


FREE = replace(TOY, score=unjudged)


def free_env(benchmark=FREE, **options):
    return ToolEnv(benchmark, tools=(EchoTool("search"),), **options)


def test_calls_cached_verdicts_and_faults_add_up_to_the_requests(court):
    """Five verdicts: two new ones, one of them after two faults, one unreadable, two known."""
    ledger = Ledger(RunUsage(Budget(prices=(("judge", 0.1),))))
    judge = CountedJudge(court.endpoint, ledger)
    court.faults = ["broken", "no completion"]
    said = [judge.verdict(TASK, text).correct for text in ("Elda", "Elda", "Ostra", "hush", "Elda")]
    assert said == [True, True, False, None, True]
    assert court.requests == 5
    assert ledger.take() == {
        "ledger/judge_calls": 5,
        "ledger/judge_cached": 2,
        "ledger/judge_faults": 2,
        "ledger/cost": 0.3,
    }
    assert ledger.usage.totals() == {"judge_calls": 5, "judge_cached": 2, "judge_faults": 2}


def test_a_verdict_that_never_came_is_no_call_but_its_requests_are_counted(court):
    ledger = Ledger()
    court.faults = ["broken"] * 3
    with pytest.raises(JudgeUnavailable):
        CountedJudge(court.endpoint, ledger).verdict(TASK, "Elda")
    assert counted(ledger) == {"faults": 3} == {"faults": court.requests}


def test_threads_that_ask_at_once_are_counted_exactly(court):
    ledger = Ledger()
    patient = replace(court.endpoint, tries=11)  # one thread may meet all ten faults
    judge = CountedJudge(patient, ledger)
    court.faults = ["broken", "no completion"] * 5

    def ask(number):
        for turn in range(5):
            judge.verdict(TASK, f"Elda {number} {turn % 3}")

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = counted(ledger)
    assert (found["calls"], found["cached"], found["faults"]) == (40, 16, 10)
    assert court.requests == 40 - 16 + 10


def test_a_run_stops_before_a_verdict_that_its_budget_does_not_cover(court):
    ledger = Ledger(RunUsage(Budget(cost=0.25, prices=(("judge", 0.1),))))
    judge = CountedJudge(court.endpoint, ledger)
    judge.verdict(TASK, "Elda")
    judge.verdict(TASK, "Ostra")
    with pytest.raises(RunStopped, match=r"a call of judge costs 0.1, and 0.2 of --run-cost 0.25"):
        judge.verdict(TASK, "Skel")
    assert court.requests == 2


def test_verdicts_are_no_tool_calls(court):
    """`--run-calls` bounds tools alone."""
    ledger = Ledger(RunUsage(Budget(calls=0)))
    assert CountedJudge(court.endpoint, ledger).verdict(TASK, "Elda").correct
    assert "ledger/tool_calls" not in ledger.take()


def config(court, **fields):
    known = {"judge_base": court.base, "judge_model": "judge-1"}
    return RunConfig.of(**known | {"prices": (("judge", 0.5),)} | fields)


def rollouts_of(env, ledger, turns):
    tokenizer = tiny_tokenizer()
    return Rollouts(env, ScriptedSampler(tokenizer, turns), tokenizer, 200, ledger=ledger)


def test_an_evaluation_in_training_asks_the_judge_and_pays_in_its_ledger(court, tmp_path):
    ledger = Ledger(RunUsage(Budget(prices=(("judge", 0.5),))))
    env = free_env(split="test")
    install_judge(env, config(court).judge, tmp_path, ledger)
    rollouts = rollouts_of(env, ledger, {"0": [answer("3"), answer("3")]})
    found = play_all(rollouts, env.tasks)
    assert [(row["score"], row["judged"]) for row in found["tasks"]] == [(0.0, True)] * 2
    assert found["ledger/judge_calls"] == court.requests == 2
    assert found["ledger/cost"] == 1.0
    rollouts = rollouts_of(env, ledger, {"0": [answer("3"), answer("3")]})
    found = play_all(rollouts, env.tasks)
    assert (found["ledger/judge_calls"], found["ledger/judge_cached"]) == (2, 2)
    assert found["ledger/cost"] == 0.0
    assert (tmp_path / "judge.jsonl").read_text().count("\n") == court.requests == 2


def test_a_reward_that_a_judge_decides_is_paid_by_the_iteration(court, tmp_path):
    """With the reward `correctness` every answer is scored officially."""
    ledger = Ledger()
    env = free_env(split="train", reward="correctness")
    install_judge(env, config(court).judge, tmp_path, ledger)
    rollouts = rollouts_of(env, ledger, {"0": [answer("4")], "1": [answer("empty")]})
    tree = rollouts.tree(env.tasks[0])
    tree.root()
    tree.root()
    rollouts.run([tree], key="0")
    assert ledger.take()["ledger/judge_calls"] == court.requests == 1


def test_every_environment_of_a_mixture_has_the_judge(court, tmp_path):
    ledger = Ledger()
    parts = [free_env(replace(FREE, name=name), split="test") for name in ("A", "B")]
    mixture = TaskMixture(parts)
    install_judge(mixture, config(court).judge, tmp_path, ledger)
    scores = [mixture.benchmark.score("the Elda", task) for task in mixture.tasks]
    assert [score.value for score in scores] == [1.0] * 4
    assert ledger.take()["ledger/judge_calls"] == 4


def test_without_a_judge_nothing_is_asked(tmp_path):
    env = free_env()
    install_judge(env, RunConfig().judge, tmp_path, Ledger())
    assert env.benchmark is FREE
    with pytest.raises(UsageError, match="--judge-base needs --judge-model"):
        install_judge(env, JudgeOptions("http://judge.test/v1"), tmp_path, Ledger())


def graded(folder):
    lines = (folder / "WebWalker.graded.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_results_count_the_requests_of_all_processes_of_an_evaluation(court, taught, tmp_path):
    """Graded by the judge, then from its stored verdicts: no request is sent twice."""
    rows = tmp_path / "rows/benchmarks/webwalker"
    rows.mkdir(parents=True)
    asked = [{"question": f"Which gate? {i}", "answer": f"The old gate {i}"} for i in range(3)]
    (rows / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), "utf-8")
    out = tmp_path / "out"
    judge = {"judge_base": court.base, "judge_model": "judge-1", "judge_price": 0.25}
    known = {"env": ("appo/WebWalker-v0",), "data_dir": str(tmp_path / "rows"), "tasks": 2}
    evaluate(config_of(taught, out, **known | {"tools": ("calculator",)}))
    answered(out, ("Elda", "the Ostra"))
    first = evaluate(Config(regrade=True, out=str(out), **judge)).to_json()
    assert first["judge"] | {"model": "", "fingerprint": ""} == {
        "model": "",
        "fingerprint": "",
        "calls": 2,
        "cached": 0,
        "faults": 0,
        "cost": 0.5,
    }
    assert first["environments"]["appo/WebWalker-v0"]["judge"]["calls"] == court.requests == 2
    assert sum(row["method"] == "judge" for row in graded(out)) == 2  # counted again from the file
    again = evaluate(Config(regrade=True, out=str(out), **judge)).to_json()
    assert again["environments"]["appo/WebWalker-v0"]["judge"] == {
        "calls": 2,
        "cached": 2,
        "faults": 0,
        "cost": 0.0,
    }
    assert (again["judge"]["calls"], again["judge"]["cached"]) == (4, 2)
    assert again["judge"]["cost"] == 0.5
    assert court.requests == 2


def answered(folder, texts):
    """Put answers into episodes that a model has played."""
    path = folder / "WebWalker.episodes.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, text in zip(lines, texts, strict=True):
        line |= {"answer": f"\\boxed{{{text}}}", "stop": "answered"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
