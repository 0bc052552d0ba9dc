"""The cold start: demonstrations become what rollouts would make; the loss is on actions only."""

import json
import re
from dataclasses import replace

import pytest
import torch

from benchmarks import BENCHMARKS, Demonstration, Step
from envs import ToolEnv
from envs.tags import render
from learners.policy.loading import load_model, tiny_tokenizer
from learners.policy.policy import Policy
from learners.rollouts.rollout import Rollouts
from learners.sft.config import Config
from learners.sft.training import cold_start, make_batches, update
from learners.sft.transcripts import play
from tests import needs
from tests.fakes import EchoTool, toy_env, toy_load
from tests.learner_fakes import FlakyTool, ScriptedSampler
from tools import ToolUnavailable

TASK = toy_load("train")[0]
SCRIPT = Demonstration(
    TASK,
    (
        Step("look 🦊", "search", "a fox"),
        Step("compute", "python", "1 + 1"),
        Step("it is 2", "answer", "2"),
    ),
)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def rollouts_of(tokenizer, *tools, turns=(), room=400):
    env = toy_env(*tools, split="train")
    sampler = ScriptedSampler(tokenizer, {"0": list(turns)})
    return Rollouts(env, sampler, tokenizer, room, pause_s=0.0)


def played(rollouts, demonstrations):
    return play(rollouts, demonstrations).trajectories


def test_demonstrations_become_the_ids_that_a_rollout_of_them_makes(tokenizer):
    (trajectory,) = played(rollouts_of(tokenizer), [SCRIPT])
    rollouts = rollouts_of(tokenizer, turns=[render(step) for step in SCRIPT.steps])
    tree = rollouts.tree(TASK)
    sampled = tree.root()
    rollouts.run([tree], "0")
    assert trajectory.prompt_ids == sampled.prompt_ids
    assert trajectory.response_ids == sampled.response_ids
    assert trajectory.response_mask == sampled.response_mask
    assert trajectory.state == sampled.state


def test_an_action_ends_with_its_closing_tag_and_no_end_token_follows(tokenizer):
    (trajectory,) = played(rollouts_of(tokenizer), [SCRIPT])
    ends = [tokenizer.decode(turn.action.token_ids[-1:]) for turn in trajectory.turns]
    assert ends == ["</search>", "</python>", "</answer>"]
    assert tokenizer.eos_token_id not in trajectory.response_ids


def test_the_loss_is_on_actions_only(tokenizer):
    """The negative mean log-probability of the script's text, and of nothing else."""
    loaded = load_model("tiny", dtype=torch.float64)
    policy = Policy(loaded, learning_rate=1e-3)
    batch = played(rollouts_of(tokenizer), [SCRIPT, SCRIPT._replace(steps=SCRIPT.steps[2:])])
    stats = policy.token_stats(batch)
    logprobs = [
        s.logprobs[torch.tensor(t.response_mask)] for t, s in zip(batch, stats, strict=True)
    ]
    loss = update(policy, batch, observation_weight=0.0)
    assert loss == pytest.approx(-float(torch.cat(logprobs).mean()), abs=1e-5)


def test_new_weights_also_learn_to_predict_prompts_and_results(tokenizer):
    """Adds their mean loss; the first token of a row has no prediction."""
    loaded = load_model("tiny", dtype=torch.float64)
    (trajectory,) = played(rollouts_of(tokenizer), [SCRIPT])
    ids = torch.tensor([[*trajectory.prompt_ids, *trajectory.response_ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(loaded.model(ids).logits[0], -1)
    each = logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0]
    sampled = torch.tensor([*[False] * (len(trajectory.prompt_ids) - 1), *trajectory.response_mask])
    observed = len(ids[0]) - int(sampled.sum())
    expected = -each[sampled].mean() - each[~sampled].sum() / observed
    loss = update(Policy(loaded, learning_rate=1e-3), [trajectory], observation_weight=1.0)
    assert loss == pytest.approx(float(expected), abs=1e-5)


def test_scripts_that_break_the_rules_are_left_out(tokenizer):
    """No answer, a turn after the answer, and more tokens than a response may have."""
    answer = SCRIPT.steps[2:]
    unfinished = SCRIPT._replace(steps=SCRIPT.steps[:2])
    beyond = SCRIPT._replace(steps=(*answer, *answer))
    long = SCRIPT._replace(steps=(Step("x" * 900, "answer", "2"),))
    training_set = play(rollouts_of(tokenizer), [unfinished, beyond, long, SCRIPT])
    assert len(training_set.trajectories) == 1
    assert training_set.left_out == {
        "its script ends without an answer": 1,
        "its script continues after its answer": 1,
        "longer than --max-response-tokens": 1,
    }


def test_demonstrations_without_their_tools_are_an_error(tokenizer):
    """They do not become a smaller training set."""
    with pytest.raises(ToolUnavailable, match="the plug is out"):
        played(rollouts_of(tokenizer, FlakyTool(9), EchoTool("python")), [SCRIPT])


class SlowTool(EchoTool):
    """Its first calls time out; then it answers."""

    def __init__(self, name, failures):
        super().__init__(name)
        self.failures = failures

    def run(self, state, argument):
        following, result = super().run(state, argument)
        if not self.failures:
            return following, result
        self.failures -= 1
        return state, replace(result, text="[stopped: the cell took too long]", ok=False)


def test_a_demonstration_whose_tool_timed_out_is_played_again(tokenizer):
    """Two timeouts leave no trace in it."""
    (undisturbed,) = played(rollouts_of(tokenizer), [SCRIPT])
    slow = rollouts_of(tokenizer, EchoTool("search"), SlowTool("python", 2))
    training_set = play(slow, [SCRIPT])
    assert [t.response_ids for t in training_set.trajectories] == [undisturbed.response_ids]
    assert training_set.left_out == {}


def test_a_demonstration_whose_tool_fails_in_every_attempt_is_left_out_and_counted(tokenizer):
    slow = rollouts_of(tokenizer, EchoTool("search"), SlowTool("python", 99))
    training_set = play(slow, [SCRIPT, SCRIPT._replace(steps=SCRIPT.steps[2:])])
    assert len(training_set.trajectories) == 1
    assert training_set.left_out == {"a call of python failed in each of 3 attempts": 1}


def test_batches_are_the_same_for_the_same_seed(tokenizer):
    scripts = [
        SCRIPT._replace(steps=(Step("x" * n, "answer", "2"),)) for n in (1, 50, 7, 80, 20, 3)
    ]
    trajectories = played(rollouts_of(tokenizer), scripts)
    first = make_batches(trajectories, 200, "0/0")
    assert make_batches(trajectories, 200, "0/0") == first
    assert len(first) > 1
    assert sorted(id(t) for batch in first for t in batch) == sorted(id(t) for t in trajectories)
    for batch in first:
        longest = max(len(t.prompt_ids) + len(t) for t in batch)
        assert len(batch) == 1 or longest * len(batch) <= 200


LOOK_ALIKE = (
    ("Ann has 48 pens and half as many pencils. How many has she?",
     "She has 48/2 = <<48/2=24>>24 pencils.\nTogether 48+24 = <<48+24=72>>72.\n#### 72"),
    ("A cow gives 3 litres a day. How many in a week?",
     "A week has 7 days: 3*7 = <<3*7=21>>21 litres.\n#### 21"),
)  # fmt: skip


@pytest.fixture
def look_alike(tmp_path):
    """A data folder with rows like GSM8K's, enough that some are left for training."""
    (tmp_path / "train").mkdir()
    rows = [
        {"question": f"{question} (No. {n})", "answer": solution}
        for n in range(260)
        for question, solution in LOOK_ALIKE
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "train" / "gsm8k_train.jsonl").write_text(text)
    return tmp_path


def test_gsm8k_annotations_become_python_calls_that_give_what_they_say(
    look_alike, sandboxed_python, tokenizer
):
    if sandboxed_python is None:
        needs.lacking(*needs.SANDBOX)
    scripts = BENCHMARKS["GSM8K"].demonstrations(look_alike)
    pens, cow = scripts[:2]
    assert [step.act for step in pens.steps] == ["python", "python", "answer"]
    assert [step.argument.strip() for step in pens.steps] == ["48/2", "48+24", "72"]
    env = ToolEnv("GSM8K", split="train", data_dir=look_alike, tools=(sandboxed_python,))
    rollouts = Rollouts(env, None, tokenizer, 1000)
    for trajectory, outputs in zip(
        played(rollouts, [pens, cow]), (["24", "72"], ["21"]), strict=True
    ):
        results = trajectory.state.transcript[1:-1:2]
        assert [float(text.split("\n")[1]) for text in results] == [
            float(output) for output in outputs
        ]
        assert trajectory.reward == 1.0


def test_a_cold_start_writes_a_model_and_is_not_repeated(tmp_path, capsys):
    """A second call evaluates and trains nothing: the run is finished."""
    config = Config.of(
        model="tiny",
        demonstrations=4,
        epochs=1,
        tools=("search", "calculator"),
        level="1",
        eval_tasks=0,
        threads=1,
        max_response_tokens=384,
        out=str(tmp_path / "run"),
    )
    folder = cold_start(config)
    written = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert json.loads((folder / "config.json").read_text())["demonstrations"] == 4
    assert cold_start(config) == folder
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == written
    loaded = load_model(str(folder))
    assert loaded.model.num_parameters() == load_model("tiny").model.num_parameters()
    output = capsys.readouterr().out
    assert "playing 4 demonstrations" in output
    assert re.search(r"fine-tuning 1/1 +loss [\d.]+ +computed \d+%, (packed|padded)", output)
