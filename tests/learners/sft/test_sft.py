"""The cold start: demonstrations become what rollouts would have made; actions alone train."""

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
from learners.sft import __main__
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
    (shown,) = played(rollouts_of(tokenizer), [SCRIPT])
    rollouts = rollouts_of(tokenizer, turns=[render(step) for step in SCRIPT.steps])
    tree = rollouts.tree(TASK)
    sampled = tree.root()
    rollouts.run([tree], "0")
    assert shown.prompt_ids == sampled.prompt_ids
    assert shown.response_ids == sampled.response_ids
    assert shown.response_mask == sampled.response_mask
    assert shown.state == sampled.state


def test_an_action_ends_with_its_closing_tag_and_no_end_token_follows(tokenizer):
    (shown,) = played(rollouts_of(tokenizer), [SCRIPT])
    ends = [tokenizer.decode(turn.action.token_ids[-1:]) for turn in shown.turns]
    assert ends == ["</search>", "</python>", "</answer>"]
    assert tokenizer.eos_token_id not in shown.response_ids


def test_the_loss_is_on_actions_only(tokenizer):
    """Minus the mean log-probability of what the script says; of nothing else."""
    loaded = load_model("tiny", dtype=torch.float64)
    policy = Policy(loaded, learning_rate=1e-3)
    shown = played(rollouts_of(tokenizer), [SCRIPT, SCRIPT._replace(steps=SCRIPT.steps[2:])])
    stats = policy.token_stats(shown)
    said = [s.logprobs[torch.tensor(t.response_mask)] for t, s in zip(shown, stats, strict=True)]
    loss = __main__._update(policy, shown, observation_weight=0.0)
    assert loss == pytest.approx(-float(torch.cat(said).mean()), abs=1e-5)


def test_new_weights_learn_to_read_as_well(tokenizer):
    """Plus the mean over prompts and results, the first token of each row left out."""
    loaded = load_model("tiny", dtype=torch.float64)
    (shown,) = played(rollouts_of(tokenizer), [SCRIPT])
    whole = torch.tensor([[*shown.prompt_ids, *shown.response_ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(loaded.model(whole).logits[0], -1)
    each = logprobs[:-1].gather(1, whole[0, 1:, None])[:, 0]
    own = torch.tensor([*[False] * (len(shown.prompt_ids) - 1), *shown.response_mask])
    read = len(whole[0]) - int(own.sum())
    expected = -each[own].mean() - each[~own].sum() / read
    loss = __main__._update(Policy(loaded, learning_rate=1e-3), [shown], observation_weight=1.0)
    assert loss == pytest.approx(float(expected), abs=1e-5)


def test_scripts_that_leave_the_rules_are_left_out(tokenizer):
    """No answer, a turn after the answer, and more tokens than a response may have."""
    answer = SCRIPT.steps[2:]
    unfinished = SCRIPT._replace(steps=SCRIPT.steps[:2])
    beyond = SCRIPT._replace(steps=(*answer, *answer))
    long = SCRIPT._replace(steps=(Step("x" * 900, "answer", "2"),))
    reading = play(rollouts_of(tokenizer), [unfinished, beyond, long, SCRIPT])
    assert len(reading.trajectories) == 1
    assert reading.left_out == {
        "its script ends without an answer": 1,
        "its script goes on after its answer": 1,
        "longer than --max-response-tokens": 1,
    }


def test_demonstrations_without_their_tools_are_an_error(tokenizer):
    """Not a smaller training set."""
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
    """Two time-outs leave no trace in it."""
    (undisturbed,) = played(rollouts_of(tokenizer), [SCRIPT])
    slow = rollouts_of(tokenizer, EchoTool("search"), SlowTool("python", 2))
    reading = play(slow, [SCRIPT])
    assert [t.response_ids for t in reading.trajectories] == [undisturbed.response_ids]
    assert reading.left_out == {}


def test_a_demonstration_whose_tool_fails_to_the_end_is_left_out_and_counted(tokenizer):
    slow = rollouts_of(tokenizer, EchoTool("search"), SlowTool("python", 99))
    reading = play(slow, [SCRIPT, SCRIPT._replace(steps=SCRIPT.steps[2:])])
    assert len(reading.trajectories) == 1
    assert reading.left_out == {"a call of python failed, 3 times over": 1}


def test_batches_are_the_same_for_the_same_seed(tokenizer):
    scripts = [
        SCRIPT._replace(steps=(Step("x" * n, "answer", "2"),)) for n in (1, 50, 7, 80, 20, 3)
    ]
    shown = played(rollouts_of(tokenizer), scripts)
    first = __main__._batches(shown, 200, "0/0")
    assert __main__._batches(shown, 200, "0/0") == first
    assert len(first) > 1
    assert sorted(id(t) for batch in first for t in batch) == sorted(id(t) for t in shown)
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
    """A data folder with rows written for this test, enough that some are left for training."""
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
    for trajectory, said in zip(played(rollouts, [pens, cow]), (["24", "72"], ["21"]), strict=True):
        results = trajectory.state.transcript[1:-1:2]
        assert [float(text.split("\n")[1]) for text in results] == [float(one) for one in said]
        assert trajectory.reward == 1.0


def test_a_cold_start_writes_a_model_and_goes_on_where_it_was(tmp_path, capsys):
    """A second call evaluates nothing anew and trains nothing: the run is over."""
    config = __main__.Config.of(
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
    folder = __main__.cold_start(config)
    written = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert json.loads((folder / "config.json").read_text())["demonstrations"] == 4
    assert __main__.cold_start(config) == folder
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == written
    loaded = load_model(str(folder))
    assert loaded.model.num_parameters() == load_model("tiny").model.num_parameters()
    said = capsys.readouterr().out
    assert "playing 4 demonstrations" in said
    assert re.search(r"fine-tuning 1/1 +loss [\d.]+ +read \d+%, (packed|padded)", said)
