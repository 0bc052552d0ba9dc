"""What our losses answer to the golden cases of APPO's published code."""

from functools import partial

import torch

from learners import appo_reference as ours
from learners.rl.losses import dual_clipped_losses, kl_k1, kl_k2, kl_k3


def aggregation(name, length):
    return {
        "token-mean": ours.token_mean,
        "seq-mean-token-sum": ours.row_mean_of_sums,
        "seq-mean-token-mean": ours.row_mean_of_means,
        "seq-mean-token-sum-norm": partial(ours.sum_over_length, length=length),
    }[name]


def aggregation_agrees(case):
    losses, mask = case.inputs["loss_mat"], case.inputs["loss_mask"].bool()
    actual = aggregation(case.params["loss_agg_mode"], mask.shape[1])(losses, mask)
    case.close(actual, case.outputs["loss"])


def kl_agrees(case):
    estimator = {
        **dict.fromkeys(("k1", "kl"), kl_k1),
        **dict.fromkeys(("k2", "mse"), kl_k2),
        **dict.fromkeys(("k3", "low_var_kl"), kl_k3),
    }
    actual = estimator[case.params["kl_penalty"]](
        case.inputs["logprob"], case.inputs["ref_logprob"]
    )
    case.close(actual, case.outputs["kl"])


def masked_mean_agrees(case):
    actual = ours.token_mean(case.inputs["values"], case.inputs["mask"].bool())
    case.close(actual, case.outputs["mean"])


def future_loss(params, logprobs, old, advantages, mask):
    """The loss of `future_kl` with the code's names of its settings."""
    surrogate, kept = ours.future_surrogate(
        logprobs,
        old,
        advantages,
        mask,
        clip=_clip(params["clip_ratio_low"], params["clip_ratio_high"], params["clip_ratio"]),
        dual_clip=params["clip_ratio_c"],
        discount=2 ** (-1 / params["decay_rate"]),
        bounds=_bounds(params),
        weight=params["future_kl_weight"],
        safety_ratio=params["safety_thresh"],
    )
    total = aggregation(params["loss_agg_mode"], mask.shape[1])(surrogate.losses, kept)
    return total, surrogate


def _bounds(params):
    e = params["future_kl_clip_ratio"]
    low = 1.0 if params["future_kl_clip_high_only"] else 1 - e
    return (low, 1 + e) if e > 0 else (0.0, 10.0)


def _clip(low, high, both):
    return (both if low is None else low, both if high is None else high)


def future_loss_agrees(case):
    i, mask = case.inputs, case.inputs["response_mask"].bool()
    logprobs = i["log_prob"].clone().requires_grad_()
    total, surrogate = future_loss(case.params, logprobs, i["old_log_prob"], i["advantages"], mask)
    _loss_agrees(case, total, surrogate, logprobs, mask)
    if mask.any():
        _weights_agree(case, mask)


def _weights_agree(case, mask):
    """What the code reports of f, before and after it is kept within bounds."""
    p, reported = case.params, case.outputs["metrics"]
    log_ratio = (case.inputs["log_prob"] - case.inputs["old_log_prob"]).clamp(-20, 20)
    discount = 2 ** (-1 / p["decay_rate"])
    # What is kept below 1 for safety is kept there inside the loss, after these weights.
    unsafe = mask & (case.inputs["advantages"] < 0) & (log_ratio.exp() > p["safety_thresh"])
    for name, bounds in (("", _bounds(p)), ("raw_", (0.0, torch.inf))):
        if unsafe.any() and not name:
            continue
        f = ours.future_weights(log_ratio, mask, discount, bounds, p["clip_ratio_c"])[mask]
        for kind, value in (("mean", f.mean()), ("min", f.min()), ("max", f.max())):
            expected = torch.tensor(reported[f"actor/fipo_iw_{name}{kind}"])
            case.close(value, expected)


def plain_loss_agrees(case):
    i, p, mask = case.inputs, case.params, case.inputs["response_mask"].bool()
    logprobs = i["log_prob"].clone().requires_grad_()
    surrogate = dual_clipped_losses(
        logprobs - i["old_log_prob"],
        i["advantages"],
        *_clip(p["cliprange_low"], p["cliprange_high"], p["cliprange"]),
        p["clip_ratio_c"],
    )
    total = aggregation(p["loss_agg_mode"], mask.shape[1])(surrogate.losses, mask)
    _loss_agrees(case, total, surrogate, logprobs, mask)


def _loss_agrees(case, total, surrogate, logprobs, mask):
    total.backward()
    gap = case.inputs["old_log_prob"] - case.inputs["log_prob"]
    case.close(total.detach(), case.outputs["pg_loss"])
    case.close(logprobs.grad, case.outputs["grad_log_prob"])
    case.close(ours.token_mean(surrogate.upper, mask), case.outputs["pg_clipfrac"])
    case.close(ours.token_mean(surrogate.lower, mask), case.outputs["pg_clipfrac_lower"])
    limit = 20 if case.function.endswith("future_kl") else torch.inf
    case.close(ours.token_mean(gap.clamp(-limit, limit), mask), case.outputs["ppo_kl"])
