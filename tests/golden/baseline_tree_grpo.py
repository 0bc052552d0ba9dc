"""Golden cases of Tree-GRPO's code: where its trees grow, what is kept, its advantages."""

from types import SimpleNamespace

from learners import tree_grpo
from learners.tree import Completion, Turn
from tests.golden.baseline_formulas import loss_agrees
from tests.tree_fakes import START, new_tree


def turn_of(node):
    """A turn whose first token is the node's number."""
    number = int(node["uid"][1:])
    return Turn(START, Completion((number,), (0.0,), (0.0,)), () if node["leaf"] else (0,))


def uid_of(point):
    """The node that a branch point is behind."""
    ids = point.trajectory.response_ids[: point.position]
    return f"n{ids[-2]}" if ids else "n0"


def leaf_of(trajectory):
    return f"n{trajectory.response_ids[-1]}"


class Choices:
    """Chooses what the code's stub chose; keeps what there was to choose from."""

    def __init__(self, chosen, kept):
        self.chosen, self.kept, self.offered = iter(chosen), kept, []

    def choices(self, points, k):
        found = {uid_of(point): point for point in points}
        assert len(found) == len(points)
        self.offered.append(set(found))
        uids = next(self.chosen)
        assert len(uids) == k
        return [found[uid] for uid in uids]

    def sample(self, population, k):
        places = [place for place in population if leaf_of(self.leaves[place]) in self.kept]
        assert len(places) == k
        return places[::-1]


def tree_agrees(case):
    """Nodes to expand, leaves before and after pruning; the code lists them breadth first."""
    p, o, nodes = case.params, case.outputs, case.inputs["nodes"]
    count = 1 + p["n_expand"] * p["l_iterations"]
    config = SimpleNamespace(rollouts=count, expansions=p["l_iterations"])
    chains, start = [], 1
    for place, node in enumerate(nodes):
        if node["leaf"]:
            chains.append(nodes[start : place + 1])
            start = place + 1
    draw = Choices([step["chosen"] for step in o["expansions"]], o["kept_leaves"])
    tree = new_tree()
    root = tree.root()
    follow(root, chains[0])
    for number in range(p["l_iterations"]):
        before = len(tree.trajectories)
        tree_grpo.expand(tree, number, config, draw)
        for branch, chain in zip(
            tree.trajectories[before:],
            chains[before : before + p["n_expand"]],
            strict=True,
        ):
            assert uid_of(branch.parent) == chain[0]["parent"]
            follow(branch, chain)
    assert draw.offered == [set(step["candidates"]) for step in o["expansions"]]
    draw.leaves = tree_grpo.leaves(tree, root)
    assert {leaf_of(t) for t in draw.leaves} == set(o["leaves_before_pruning"])
    assert len(draw.leaves) == o["n_leaves"] == count
    kept = tree_grpo.prune(draw.leaves, p["k_keep"], draw)
    assert {leaf_of(t) for t in kept} == set(o["kept_leaves"])
    left = {f"n{turn.action.token_ids[0]}" for t in kept for turn in t.turns}
    assert left == set(o["nodes_after_pruning"])


def follow(trajectory, chain):
    trajectory.turns += map(turn_of, chain)
    trajectory.done = True


def credit_agrees(case):
    """Leaf by leaf; one that is alone in its tree, or prompt, gets nothing of it here."""
    i, o, mask = case.inputs, case.outputs, case.mask
    earned = i["token_level_rewards"].sum(-1)
    for group in case.groups:
        names = [i["tree_ids"][row] for row in group]
        trees = [
            [row for row, own in zip(group, names, strict=True) if own == name]
            for name in dict.fromkeys(names)
        ]
        found = iter(tree_grpo.leaf_advantages([earned[rows] for rows in trees]))
        for rows in trees:
            for row in rows:
                inter, intra = o["inter_tree_advantages"][row], o["intra_tree_advantages"][row]
                expected = inter * (len(group) > 1) + intra * (len(rows) > 1)
                case.close(next(found) * mask[row], expected)
                if len(rows) > 1:
                    case.close(expected, o["advantages"][row])


def method_agrees(case):
    credit_agrees(case)
    loss_agrees(case)


def lonely(case):
    """Whether a tree has one leaf."""
    ids = case.inputs.get("tree_ids", ())
    return any(list(ids).count(name) == 1 for name in ids)
