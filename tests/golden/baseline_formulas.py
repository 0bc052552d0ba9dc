"""What our advantages and losses answer to the golden cases of the rivals."""

import math
from functools import partial
from types import SimpleNamespace

import torch

from learners import arpo, cispo, dapo, gigpo, gppo, gspo, reinforce_pp, rloo, tree_grpo
from learners.rl.advantages import centre, leave_one_out, normalise
from learners.rl.kl import k1_penalty
from learners.rl.losses import (
    clipped_surrogate,
    kl_k1,
    kl_k2,
    kl_k3,
    mismatch_weights,
    preserving_surrogate,
    sequence_mean,
    sequence_sum,
    suffix_sum,
    token_mean,
)

CLIPPING = {m.__name__.split(".")[-1]: m for m in (dapo, arpo, gigpo, gppo, gspo, tree_grpo)}
COUNTED = {"rtol": 1e-7, "atol": 1e-8}


def weights_of(case, mask, mode):
    """(B, T) by our weightings; the code leaves out rows without a token, TRL counts them."""
    live = [i for i, row in enumerate(mask) if case.trl or row.any()]
    found = torch.zeros(mask.shape, dtype=torch.float64)
    if live:
        found[live] = torch.stack(mode([mask[i] for i in live]))
    return found


def near_mean(masks):
    """`sequence_mean` as verl computes it, with 1e-8 added to the tokens of a row."""
    exact = sequence_mean(masks)
    return [w * (n := int(m.sum())) / (n + 1e-8) for w, m in zip(exact, masks, strict=True)]


def aggregation_of(case):
    p = case.params
    if p.get("loss_agg") == "token-mean" or p.get("loss_type") in ("dapo", "cispo"):
        return token_mean
    if p.get("loss_agg") == "seq-mean-token-sum-norm" or p.get("loss_type") == "dr_grpo":
        length = p.get("loss_scale_factor") or p.get("max_completion_length")
        return partial(sequence_sum, divisor=length or case.mask.shape[1])
    return sequence_mean if case.trl else near_mean


def clips_of(case):
    p = case.params
    return {
        "clip_low": p.get("clip_low", p.get("epsilon_low")),
        "clip_high": p.get("clip_high", p.get("epsilon_high")),
        "dual_clip": p.get("dual_clip_c", math.inf),
    }


def surrogate(logprobs, batch, case):
    """The clipped surrogate with the dual clip of the case: GRPO's own has none."""
    loss = clipped_surrogate(
        logprobs, batch.old_logprobs, batch.advantages, *clips_of(case).values()
    )
    return (loss * batch.weights).sum()


def policy_loss_of(case):
    clips = clips_of(case)
    if case.file == "cispo":
        p = case.params
        cap = p["epsilon_high"] if case.trl else p["is_clip_high"]
        return partial(cispo.policy_loss, config=SimpleNamespace(ratio_cap=cap))
    if case.file in CLIPPING:
        return partial(CLIPPING[case.file].policy_loss, config=SimpleNamespace(**clips))
    return partial(surrogate, case=case)


def earned(case):
    """Rewards of tokens, less their divergence where the case has it there."""
    i, p = case.inputs, case.params
    rewards = i["token_level_rewards"]
    if not p.get("kl_placement", "loss").startswith(("reward", "sequence reward")):
        return rewards
    both = i["old_log_prob"], i["ref_log_prob"]
    if case.trl:  # it counts what the tools said
        return rewards - k1_penalty(*both, i["completion_mask"].bool(), p["beta"])
    rewards = rewards - k1_penalty(*both, case.mask, p["kl_coef"])
    case.close(rewards, case.outputs["token_level_rewards_after_kl"])
    return rewards


def credit_agrees(case, credit):
    """Of groups of two and more; a group of one teaches nothing here."""
    rewards = earned(case)
    expected = case.outputs["advantages"]
    for group in case.groups:
        found = credit(rewards.sum(-1)[group])
        if len(group) == 1:
            assert not found.any()
            continue
        if expected.dim() == 2:
            found = found[:, None] * case.mask[group]
        case.close(found, expected[group])


def loss_agrees(case, policy_loss=None, weighting=None, expected=None):
    """Value and gradient, given the code's advantages; divergences are added where it adds them."""
    i, mask, o = case.inputs, case.mask, case.outputs
    advantages = o["advantages"] if o["advantages"].dim() == 2 else o["advantages"][:, None] * mask
    batch = SimpleNamespace(
        old_logprobs=i["old_log_prob"],
        advantages=advantages,
        response_mask=mask,
        weights=weights_of(case, mask, weighting or aggregation_of(case)),
    )
    logprobs = i["log_prob"].clone().requires_grad_()
    loss = (policy_loss or policy_loss_of(case))(logprobs, batch)
    if expected is None:
        if "pg_loss" in o:
            case.close(loss.detach(), o["pg_loss"])
        loss = loss + _divergence(case, logprobs, batch)
        expected = (o.get("loss", o.get("pg_loss")), o.get("grad_loss", o.get("grad_pg_loss")))
    loss.backward()
    case.close(loss.detach(), expected[0])
    case.close(logprobs.grad, expected[1])


def _divergence(case, logprobs, batch):
    p = case.params
    coefficient = p.get("beta", p.get("kl_coef", 0.0))
    if p.get("kl_placement", "loss") != "loss" or not coefficient:
        return 0.0
    estimator = kl_k2 if p.get("kl_type") == "k2" else kl_k3
    value = (estimator(logprobs, case.inputs["ref_log_prob"]) * batch.weights).sum()
    if "kl_loss" in case.outputs:
        case.close(value.detach(), case.outputs["kl_loss"])
    return coefficient * value


def group_method_agrees(case):
    credit = partial(normalise, floor=1e-4) if case.trl else normalise
    credit_agrees(case, centre if case.file == "dr_grpo" else credit)
    loss_agrees(case)


def credit_of_trl_agrees(case):
    credit_agrees(case, partial(normalise, floor=1e-4))


def rloo_agrees(case):
    credit_agrees(case, leave_one_out)
    if case.trl:
        return
    loss_agrees(case)
    o = case.outputs
    expected = (o["reinforce_loss_seq_mean_token_sum"], o["grad_reinforce_loss"])
    loss_agrees(case, rloo.policy_loss, sequence_sum, expected)


def reinforce_pp_agrees(case):
    """Advantages to 1e-7: the code adds 1e-8 to the number of tokens."""
    o, mask, rewards = case.outputs, case.mask, earned(case)
    if case.params["variant"].endswith("baseline"):
        totals = rewards.sum(-1)
        for group in (group for group in case.groups if len(group) > 1):
            totals[group] = totals[group] - totals[group].mean()
        returns = totals[:, None] * mask
    else:
        gamma = case.params["gamma"]
        pairs = zip(rewards, mask, strict=True)
        returns = torch.stack([reinforce_pp.rewards_to_go(r, m, gamma) for r, m in pairs])
        case.close(returns, o["returns"] * mask)
    found = torch.stack(reinforce_pp.whiten(list(returns), list(mask)))
    case.close(found, o["advantages"], **COUNTED)
    loss_agrees(case)


def tool_results_cut_no_return(case):
    """The old recursion loses the reward of turns before a call; the fixed one is ours."""
    i, o, mask = case.inputs, case.outputs, case.mask
    pairs = zip(i["token_level_rewards"], mask, strict=True)
    returns = [reinforce_pp.rewards_to_go(r, m, case.params["gamma"]) for r, m in pairs]
    case.close(torch.stack(returns), o["returns_fixed"] * mask)
    found = reinforce_pp.whiten(returns, list(mask))
    case.close(torch.stack(found), o["advantages_fixed"], **COUNTED)


def gigpo_agrees(case):
    i, o, p, mask = case.inputs, case.outputs, case.params, case.mask
    scale = "std" if p["mode"] == "mean_std_norm" else "none"
    similarity = p["similarity_thresh"] if p["enable_similarity"] else 1.0
    offset, names = 0, i["traj_ids"]
    for group in case.groups:
        members = list(dict.fromkeys(names[row] for row in group))
        rows = [[row for row in group if names[row] == member] for member in members]
        for own in rows:
            found = suffix_sum(i["step_rewards"][own], p["gamma"])
            case.close(found, o["step_returns"][own], rtol=1e-6, atol=1e-9)
        found = gigpo.step_groups([i["anchor_obs"][row] for row in group], similarity)
        assert [offset + number for number in found] == o["step_group"][group].int().tolist()
        offset += max(found) + 1
        step = gigpo.step_advantages(o["step_returns"][group], found, scale)
        case.close(step[:, None] * mask[group], o["step_advantages"][group])
        if len(rows) == 1:
            continue
        rewards = i["token_level_rewards"].sum(-1)[[own[0] for own in rows]]
        episode = (normalise if scale == "std" else centre)(rewards)
        for own, advantage in zip(rows, episode, strict=True):
            expected = o["episode_advantages_per_trajectory_stats"][own]
            case.close(advantage * mask[own], expected)
    loss_agrees(case)


def equals_are_exactly_zero(case):
    rewards = case.inputs["rewards"]
    assert case.outputs["advantages_verl"].abs().max() > 0
    assert not any(normalise(rewards[group]).any() for group in case.groups)


def overflow_is_finite(case):
    """The code divides by the ratio; the value is what the clipped surrogate has."""
    i, o = case.inputs, case.outputs
    assert math.isnan(o["reference_pg_loss"])
    logprobs = i["log_prob"].float().requires_grad_()
    losses = preserving_surrogate(
        logprobs, i["old_log_prob"].float(), i["advantages"].float(), *clips_of(case).values()
    )
    weights = torch.stack(token_mean(list(case.mask))).float()
    loss = (losses * weights).sum()
    loss.backward()
    case.close(loss.detach(), o["verl_vanilla_pg_loss"])
    assert torch.isfinite(logprobs.grad).all()
    assert logprobs.grad[0, 0] == torch.tensor(-1.28 / 8)


def aggregation_agrees(case):
    i, o = case.inputs, case.outputs
    mask, length = i["mask"].bool(), i["mask"].shape[1]
    modes = {
        "token-mean": token_mean,
        "seq-mean-token-sum": sequence_sum,
        "seq-mean-token-mean": near_mean,
        "seq-mean-token-sum-norm": partial(sequence_sum, divisor=length),
        "seq-mean-token-sum-norm@32": partial(sequence_sum, divisor=32),
    }
    for name, mode in modes.items():
        weights = weights_of(case, mask, mode)
        case.close(weights, o[name]["grad"])
        case.close((weights * i["loss_matrix"]).sum(), o[name]["loss"])


def kl_agrees(case):
    for name, estimator in (("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)):
        logprobs = case.inputs["log_prob"].clone().requires_grad_()
        value = estimator(logprobs, case.inputs["ref_log_prob"])
        value.sum().backward()
        case.close(value.detach(), case.outputs[name]["value"])
        case.close(logprobs.grad, case.outputs[name]["grad_of_sum"])


def divergence_is_finite(case):
    logprobs = case.inputs["log_prob"].float().requires_grad_()
    (0.0 * kl_k3(logprobs, case.inputs["ref_log_prob"].float())).sum().backward()
    assert not logprobs.grad.any()


def mismatch_agrees(case):
    ratio = case.inputs["log_ratio_train_minus_rollout"]
    for level in ("token", "sequence"):
        for form, bounds in (("2.0", {"high": 2.0}), ("0.5_5.0", {"low": 0.5, "high": 5.0})):
            found = mismatch_weights(ratio, case.mask, **bounds, whole_rows=level == "sequence")
            case.close(found, case.outputs[f"{level}|{form}|raw"])


def filter_agrees(case):
    values = case.inputs["metric"]
    names = case.inputs["group_ids"]
    kept = [names[g[0]] for g in case.groups if dapo.is_informative(values[g].tolist())]
    assert kept == list(case.outputs["kept_groups"])
    rows = [i for i, name in enumerate(names) if name in kept]
    assert rows == torch.as_tensor(case.outputs["kept_rows"]).int().tolist()


def overlong_agrees(case):
    """The code computes it in float32."""
    p, i = case.params, case.inputs
    sizes = (p["max_resp_len"], p["overlong_buffer_len"])
    for length, expected in zip(i["lengths"], case.outputs["shaped_reward"], strict=True):
        found = i["base_reward"] + p["penalty_factor"] * dapo.length_penalty(int(length), *sizes)
        case.close(found, expected, rtol=1e-6, atol=1e-6)
