"""What our formulas answer to the golden cases of APPO's published code."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import Task
from learners import appo_reference as ours
from learners.rl.advantages import normalise_groups
from learners.rl.losses import future_values, kl_k3, zscore
from learners.tree import Completion, RolloutTree, Turn
from tests.golden.appo_losses import future_loss


def future_values_agree(case):
    actual = future_values(
        case.inputs["log_ratio"],
        case.inputs["response_mask"].bool(),
        case.params["gamma"],
        case.params["clip_eps"],
    )
    case.close(actual, case.outputs["future_values"])


def zscore_agrees(case):
    values = case.inputs["values"]
    if len(values) == 0:  # no row is scored without a token
        return
    case.close(zscore(values), case.outputs["z"])


SCORED_FROM = {"responses", "old_log_probs", "rollout_log_probs", "rollout_entropys"}
"""What the code, too, cannot score without."""


def picks_of(inputs, table, budget, gamma, clip):
    """Our selection for every prompt, in order of appearance, as (row, token, score).

    The code then drops picks with no room after them; for us they are no candidates at all.
    """
    uids, kinds = inputs["uid"], inputs.get("rollout_kind") or ["init"] * len(inputs["uid"])
    mask = inputs.get("loss_mask", inputs.get("response_mask")).bool()
    blank = torch.tensor([not text.strip() for text in table])
    found = []
    for uid in dict.fromkeys(uids):
        rows = [
            i for i, (u, k) in enumerate(zip(uids, kinds, strict=True)) if (u, k) == (uid, "init")
        ]
        log_ratio = inputs["old_log_probs"][rows] - inputs["rollout_log_probs"][rows]
        scores = ours.branching_scores(
            log_ratio, inputs["rollout_entropys"][rows], mask[rows], gamma, clip
        )
        candidates = mask[rows] & ~blank[inputs["responses"][rows]]
        picks = ours.select(scores, candidates, budget)
        found += [(rows[p.row], p.token, p.score) for p in picks]
    return [pick for pick in found if pick[1] + 1 < mask.shape[1]]


def branch_request_agrees(case):
    params, request = case.params, case.outputs["request"]
    picks = picks_of(
        case.inputs,
        params["tokenizer_table"],
        params["max_branches_per_prompt"],
        params["gamma"],
        params["clip_eps"],
    )
    if request is None:
        assert picks == []
        return
    rows, tokens, scores = (list(column) for column in zip(*picks, strict=True))
    assert rows == request["appo_orig_batch_row_idx"].tolist()
    assert tokens == request["appo_branch_token_response_idx"].tolist()
    case.close(torch.tensor(scores), request["appo_branch_score"])
    for row, token, prefix in zip(rows, tokens, request["appo_branch_prefix_ids"], strict=True):
        whole = [*case.inputs["prompts"][row], *case.inputs["responses"][row, : token + 1]]
        assert [int(i) for i in whole if i != params["pad_token_id"]] == prefix


def reward_profile_agrees(case):
    p = case.params
    actual = ours.reward_profile(
        p["branch_token_response_idx"],
        p["branch_score"],
        p["max_branch_score"],
        p["response_length"],
        p["discount"],
    )
    case.close(actual, case.outputs["M"])


def scaled_rewards(rewards, metas, discount):
    """Token rewards times the mean profile of the branches of each row."""
    rows = range(len(rewards))
    metas = [m for m in metas or () if m and m["batch_row_idx"] in rows]
    best = max((m["branch_score"] for m in metas), default=0.0)
    rewards = rewards.clone()
    for row in {m["orig_batch_row_idx"] for m in metas} & set(rows):
        profiles = [
            ours.reward_profile(
                m["branch_token_response_idx"],
                m["branch_score"],
                best,
                rewards.shape[1],
                discount,
            )
            for m in metas
            if m["orig_batch_row_idx"] == row
        ]
        rewards[row] *= torch.stack(profiles).mean(0)
    return rewards


def scaled_rewards_agree(case):
    actual = scaled_rewards(
        case.inputs["token_level_rewards"],
        case.inputs["branch_meta"],
        case.params["reward_scale_discount"],
    )
    case.close(actual, case.outputs["token_level_rewards"])


def dual_group(rewards, mask, uids, kinds, metas):
    """Our advantages of all rows, branches at 0."""
    total = rewards.sum(-1)
    kinds = kinds or ["init"] * len(uids)
    advantages = torch.zeros_like(rewards)
    for uid in dict.fromkeys(uids):
        roots = [i for i, pair in enumerate(zip(uids, kinds, strict=True)) if pair == (uid, "init")]
        branches = [
            i for i, pair in enumerate(zip(uids, kinds, strict=True)) if pair == (uid, "branch")
        ]
        places = {m["batch_row_idx"]: m for m in metas or () if m}
        places = {
            k: m for k, m in places.items() if k in branches and m["orig_batch_row_idx"] in roots
        }
        # A branch whose place is not known is in the group, but is credited to no token.
        sources = [
            roots.index(places[b]["orig_batch_row_idx"]) if b in places else 0 for b in branches
        ]
        splits = [places[b]["branch_token_response_idx"] if b in places else -1 for b in branches]
        advantages[roots] = ours.dual_group_advantages(
            total[roots],
            total[branches],
            torch.tensor(sources, dtype=torch.long),
            torch.tensor(splits, dtype=torch.long),
            mask[roots].bool(),
        ).to(advantages.dtype)
    return advantages


def dual_group_agrees(case):
    assert case.params["norm_by_std"]
    i = case.inputs
    actual = dual_group(
        i["token_level_rewards"],
        i["response_mask"],
        i["uid"],
        i["rollout_kind"],
        i["branch_meta"],
    )
    case.close(actual, case.outputs["advantages"])


def tree_of(rewards, lengths=None):
    """A finished tree whose roots earned these rewards."""
    tree = RolloutTree(Task("t", "q", ("a",)), (1,), SimpleNamespace())
    for index, reward in enumerate(rewards):
        count = 1 if lengths is None else lengths[index]
        root = tree.root()
        ids = tuple(range(count))
        root.turns.append(Turn(tree.start, Completion(ids, (0.0,) * count, (0.0,) * count), ()))
        root.reward, root.done = float(reward), True
    return tree


def group_normalised_agrees(case):
    """GRPO: a group of one is exactly nothing here, and so is one of equals."""
    assert case.params["norm_adv_by_std_in_grpo"]
    rewards, index = case.inputs["token_level_rewards"].sum(-1), case.inputs["index"]
    mask = case.inputs["response_mask"]
    for name in dict.fromkeys(index):
        members = [i for i, other in enumerate(index) if other == name]
        rows = normalise_groups([tree_of(rewards[members].double())])
        if len(members) == 1 or rewards[members].unique().numel() == 1:
            assert not any(row.advantages.any() for row in rows)
            if len(members) > 1:  # the code's are 0 up to rounding over its 1e-6
                assert case.outputs["advantages"][members].abs().max() < 0.1
            continue
        actual = torch.stack([row.advantages for row in rows]) * mask[members]
        case.close(actual, case.outputs["advantages"][members])


def pipeline_agrees(case):
    """Selection, alignment, scaled rewards, advantages, loss, KL and gradient in a row."""
    i, o, p = case.inputs, case.outputs, case.params
    picks = picks_of(
        i,
        p["tokenizer_table"],
        p["max_branches_per_prompt"],
        p["branch_gamma"],
        p["branch_clip_eps"],
    )
    assert [pick[0] for pick in picks] == o["request_orig_rows"].tolist()
    assert [pick[1] for pick in picks] == o["request_token_idx"].tolist()
    case.close(torch.tensor([pick[2] for pick in picks]), o["request_scores"])
    roots, length = i["responses"].shape
    metas = [
        {
            "orig_batch_row_idx": row,
            "batch_row_idx": roots + k,
            "branch_token_response_idx": token,
            "branch_score": score,
        }
        for k, (row, token, score) in enumerate(picks)
    ]
    assert all(
        meta == pytest.approx(expected)
        for meta, expected in zip(metas, o["branch_meta"][roots:], strict=True)
    )
    ends = [*i["attention_mask"][:, -length:].sum(-1).tolist(), *i["branch_lengths"]]
    columns = torch.arange(length)
    response = columns < torch.tensor(ends)[:, None]
    rewards = torch.zeros(len(ends), length)
    rewards[torch.arange(len(ends)), torch.tensor(ends) - 1] = torch.tensor(
        i["scores_in_final_row_order"], dtype=torch.float32
    )
    rewards = scaled_rewards(rewards, metas, p["reward_scale_discount"])
    case.close(rewards, o["scaled_rewards"])
    uids = [*i["uid"], *(i["uid"][pick[0]] for pick in picks)]
    advantages = dual_group(rewards, response, uids, o["rollout_kind"], metas)
    case.close(advantages, o["advantages"])
    mask = torch.zeros(len(ends), length, dtype=torch.bool)
    mask[:roots] = i["loss_mask"].bool()
    old = torch.zeros(len(ends), length)
    old[:roots] = i["old_log_probs"]
    logprobs = i["current_log_prob"].clone().requires_grad_()
    total, _ = future_loss(p["loss"], logprobs, old, advantages, mask)
    total.backward()
    case.close(total.detach(), o["pg_loss"])
    case.close(logprobs.grad, o["grad_log_prob"])
    kl = ours.token_mean(kl_k3(i["current_log_prob"], i["ref_log_prob"]), mask)
    case.close(kl, o["kl_loss_low_var"])
