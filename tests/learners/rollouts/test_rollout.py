"""Rollouts: tokens are written once, limits end an episode, broken tools never teach anything."""

import pytest

from learners import appo, grpo
from learners.policy.loading import load_model, tiny_tokenizer
from learners.policy.policy import Policy
from learners.rollouts.rollout import RESERVED_TOKENS, Rollouts
from learners.runs.session import Session, run_iteration
from learners.sampling.transformers_sampler import TransformersSampler
from learners.tree import BranchPoint
from tests.fakes import EchoTool, SayTool, answer, call, toy_env, toy_load
from tests.learner_fakes import FlakyTool, RecordingSampler, ScriptedSampler, UnluckyTool

TASK = toy_load("train")[0]
METHODS = {
    "appo": (appo, {"rollouts": 6, "initial_rollouts": 2}),
    "grpo": (grpo, {"rollouts": 4}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def scripted(tokenizer, turns, *tools, room=400, **options):
    """Rollouts over the toy benchmark whose trajectories say what is written for their paths."""
    env = toy_env(*tools, split="train")
    return Rollouts(env, ScriptedSampler(tokenizer, turns), tokenizer, room, **options)


def run_one(rollouts, roots=1):
    tree = rollouts.tree(TASK)
    for _ in range(roots):
        tree.root()
    rollouts.run([tree], "0")
    return tree


def test_an_episode_is_the_turns_and_what_the_environment_said(tokenizer):
    turns = [call("search", "fox"), answer("2")]
    (root,) = run_one(scripted(tokenizer, {"0": turns})).trajectories
    seen = " <result>\n824391715 fox\n</result>"
    whole = tokenizer.decode(root.response_ids)
    heard = whole.removeprefix(turns[0]).removesuffix(turns[1])
    assert heard.startswith(" <result>\n")
    assert heard.endswith(" fox\n</result>"), seen
    assert root.response_mask.count(False) == len(tokenizer.encode(heard))
    assert (root.done, root.reward, root.state.stop) == (True, 1.0, "answered")
    assert [turn.state.transcript for turn in root.turns] == [(), (turns[0], heard)]


def test_the_prompt_is_the_chat_template_over_the_question(tokenizer):
    tree = scripted(tokenizer, {}).tree(TASK)
    assert tokenizer.decode(tree.prompt_ids) == "<|user|>What is 1 + 1?<|assistant|>"


def test_completions_that_end_out_of_order_reach_their_own_trajectories(tokenizer):
    said = {str(root): [call("search", str(root)), answer(str(root))] for root in range(4)}
    tree = run_one(scripted(tokenizer, said), roots=4)
    assert [t.state.transcript[2] for t in tree.roots] == [answer(str(root)) for root in range(4)]
    assert [t.reward for t in tree.roots] == [0.0, 0.0, 1.0, 0.0]


def test_a_fork_inside_a_tag_reaches_the_environment_as_one_turn(tokenizer):
    """The branch shares `... </s` and says `py>`; the turn is played from the state before it."""
    tool = EchoTool("spy")
    tag = tokenizer.encode("</spy>", add_special_tokens=False)
    turn = call("spy", "first")
    rest = tokenizer.decode(tag[3:])
    position = len(tokenizer.encode(turn, add_special_tokens=False)) - len(tag) + 3
    said = {"0": [turn, answer("3")], f"0/{position}/0": [rest, answer("2")]}
    rollouts = scripted(tokenizer, said, tool)
    tree = run_one(rollouts)
    branch = tree.fork(BranchPoint(tree.roots[0], position))
    rollouts.run([tree], "0")
    assert branch.state.transcript[:2] == tree.roots[0].state.transcript[:2]
    assert (tree.roots[0].reward, branch.reward) == (0.0, 1.0)
    assert branch.turns[0].state is tree.start


def test_a_long_observation_leaves_room_for_an_answer(tokenizer):
    """Of 300 tokens 64 stay free; the beginning and the end of the result are kept."""
    tool = SayTool("start " + "x" * 500 + " end")
    rollouts = scripted(tokenizer, {"0": [call("search", "fox"), answer("2")]}, tool, room=300)
    (root,) = run_one(rollouts).trajectories
    turn = root.turns[0]
    assert 300 - len(turn) == RESERVED_TOKENS == 64
    seen = tokenizer.decode(turn.observation_ids)
    assert seen.startswith(" <result>\nstart x")
    assert seen.endswith("x end\n</result>")
    assert (root.reward, root.state.stop) == (1.0, "answered")


def test_an_observation_without_room_ends_the_episode_as_length(tokenizer):
    """The turn takes all but 66 of its tokens: two are too few for any result."""
    turn = call("search", "fox" * 80)
    room = len(tokenizer.encode(turn, add_special_tokens=False)) + 66
    (root,) = run_one(scripted(tokenizer, {"0": [turn]}, room=room)).trajectories
    assert root.turns[0].observation_ids == ()
    assert (root.done, root.state.stop, root.reward) == (True, "length", -1.0)


def test_a_turn_cut_by_length_is_a_truncated_episode(tokenizer):
    (root,) = run_one(scripted(tokenizer, {"0": ["<think> on and on"]}, room=6)).trajectories
    assert len(root) == 6
    assert root.turns[0].action.stop == "length"
    assert (root.done, root.state.stop) == (True, "length")
    assert root.state.transcript == (tokenizer.decode(root.response_ids),)


def test_a_turn_without_a_tag_is_malformed(tokenizer):
    (root,) = run_one(scripted(tokenizer, {"0": ["I would say 2."]})).trajectories
    assert (root.state.stop, root.reward) == ("malformed", -1.0)


def test_an_unavailable_tool_is_asked_again_from_the_kept_state(tokenizer):
    tool = FlakyTool(failures=2)
    said = {"0": [call("search", "fox"), answer("2")]}
    tree = run_one(scripted(tokenizer, said, tool, pause_s=0.0))
    assert tree.unavailable is None
    assert len(tool.states) == 3
    assert len(set(tool.states)) == 1
    assert tree.roots[0].reward == 1.0


def test_a_tree_whose_tool_stays_unavailable_is_left_as_it_is(tokenizer):
    tool = FlakyTool(failures=99)
    said = {"0": [call("search", "fox"), answer("2")]}
    tree = run_one(scripted(tokenizer, said, tool, pause_s=0.0))
    assert tree.unavailable == "the plug is out"
    assert len(tool.states) == 3
    assert tree.roots[0].turns == []
    assert not tree.roots[0].done


def trained_run(folder, method, *tools, prompts=2, **options):
    """A run of a method over the toy benchmark, by the tiny model that knows the tags."""
    module, budgets = METHODS[method]
    config = module.Config.of(
        prompts=prompts, minibatch_prompts=1, max_response_tokens=72, **budgets, **options
    )
    loaded = load_model(str(folder))
    env = toy_env(*(tools or (EchoTool("search"), EchoTool("calculator"))), split="train")
    sampler = TransformersSampler(loaded.model, loaded.tokenizer, env.stop_tags)
    rollouts = Rollouts(
        env,
        RecordingSampler(sampler),
        loaded.tokenizer,
        config.sampling.max_response_tokens,
        pause_s=0.0,
    )
    policy = Policy(loaded, learning_rate=1e-3)
    return Session.of(config, policy, rollouts, folder), module.iteration


@pytest.mark.parametrize("method", METHODS)
def test_what_went_to_and_came_from_the_sampler_is_the_trajectory(taught, method):
    """For every trajectory: each prefix sent is a prefix of it, and the last exchange ends it."""
    session, iteration = trained_run(taught, method)
    run_iteration(session, iteration)
    exchanges = {}
    for request, completion in session.rollouts.sampler.exchanges:
        exchanges.setdefault(request.key, []).append((request, completion))
    trajectories = [t for tree in session.run.trees for t in tree.trajectories]
    assert len(exchanges) == len(trajectories) == 2 * session.run.config.rollouts
    for tree in session.run.trees:
        for trajectory in tree.trajectories:
            key = f"0/0/{tree.task.id}/{'/'.join(map(str, trajectory.path))}"
            whole = (*trajectory.prompt_ids, *trajectory.response_ids)
            for request, completion in exchanges[key]:
                sent = request.prefix_ids + request.prefill_ids + completion.token_ids
                assert sent == whole[: len(sent)]
                assert request.position == len(request.prefix_ids + request.prefill_ids) - len(
                    trajectory.prompt_ids
                )
                own = trajectory.response_mask[request.position :][: len(completion.token_ids)]
                assert all(own)
            assert sent == whole
    assert any(len(pairs) > 1 for pairs in exchanges.values()), "no tool was called"


@pytest.mark.parametrize("method", METHODS)
def test_a_task_met_twice_in_an_iteration_has_two_trees_of_its_own(taught, method):
    """Three training tasks, five prompts: no draw and no completion of one tree is another's."""
    session, iteration = trained_run(taught, method, prompts=5)
    run_iteration(session, iteration)
    trees = session.run.trees
    assert len({tree.task.id for tree in trees}) == 3
    assert all(t.done for tree in trees for t in tree.trajectories)
    keys = [request.key for request, _ in session.rollouts.sampler.exchanges]
    assert len(set(keys)) == 5 * session.run.config.rollouts
    twins = [tree for tree in trees if tree.task.id == trees[-1].task.id]
    said = [[t.response_ids for t in tree.roots] for tree in twins]
    assert said[0] != said[1]


def always(name):
    return UnluckyTool(name, lambda state: True)


@pytest.mark.parametrize("method", METHODS)
def test_trees_without_their_tools_are_dropped_and_their_tasks_served_once_more(taught, method):
    session, iteration = trained_run(taught, method, always("search"), always("calculator"))
    run = session.run
    metrics = run_iteration(session, iteration)
    lost = [tree.task.id for tree in run.trees if tree.unavailable is not None]
    assert lost, "no root called a tool"
    assert session.lost == lost
    assert metrics["tools/unavailable_trees"] == len(lost)
    assert session.policy.updates <= len(run.trees) - len(lost)
    session.iteration += 1
    run_iteration(session, iteration)
    assert [tree.task.id for tree in run.trees][: len(lost)] == lost
    assert not set(session.lost) & set(lost), "served a third time"


def test_a_tree_that_loses_its_tools_while_it_branches_is_not_trained_on(taught):
    """Tools work for the roots, then no more: no row, no update."""
    state = {"branching": False}
    tools = [UnluckyTool(name, lambda _: state["branching"]) for name in ("search", "calculator")]
    session, _ = trained_run(taught, "appo", *tools)
    run = session.run
    plain = run.rollout

    def rollout(trees, after_turn=None):
        finished = plain(trees, after_turn)
        state["branching"] = True
        return finished

    run.rollout = rollout
    run_iteration(session, appo.iteration)
    lost = [tree for tree in run.trees if tree.unavailable is not None]
    trained = [tree for tree in run.trees if tree.unavailable is None]
    assert lost, "no branch called a tool"
    assert session.lost == [tree.task.id for tree in lost]
    assert session.policy.updates <= len(trained)


def test_a_tree_goes_on_from_restored_states(tokenizer):
    """A trajectory that stands after a call, in a new tree: the tool remembers what was said."""
    rollouts = scripted(tokenizer, {"0": [call("search", "fox"), answer("3")]})
    first = run_one(rollouts).roots[0]
    rollouts.sampler = ScriptedSampler(tokenizer, {"0": [call("search", "hen"), answer("2")]})
    tree = rollouts.tree(TASK)
    root = tree.root()
    root.turns, root.state = first.turns[:1], first.turns[1].state
    rollouts.run([tree], "1")
    assert root.state.transcript[3].endswith("fox hen\n</result>")
    assert root.reward == 1.0


def test_each_training_task_is_served_once_an_epoch(taught):
    session, _ = trained_run(taught, "grpo", prompts=1)
    served = [session.tasks_of(iteration)[0].id for iteration in range(6)]
    assert sorted(served[:3]) == sorted(served[3:]) == ["a", "b", "c"]
    assert served == [session.tasks_of(iteration)[0].id for iteration in range(6)]
