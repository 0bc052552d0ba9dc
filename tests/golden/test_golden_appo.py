"""Every golden file of APPO's published code, and what became of its function here.

Each function has one of three outcomes: it agrees; ours is better, for a reason; it has no
counterpart here, for a reason. Some files of a function that agrees show what the code gets wrong
or what it alone can do: those have an outcome of their own. A file of a function without an outcome
fails, and so does one that cannot be read. The files lie outside of the repository, see GOLDEN.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests import needs
from tests.golden import appo_formulas as formulas
from tests.golden import appo_losses as losses
from tests.golden import appo_rollouts as rollouts
from tests.golden.appo_cases import GOLDEN, read

pytestmark = needs.unless(GOLDEN.is_dir(), *needs.GOLDEN)

AGREE, BETTER, NONE = "agrees", "ours is better", "no counterpart"
SCORED_BESIDE = "test_golden_scoring.py compares it"


class Outcome(NamedTuple):
    """What became of a function, or of some of its files."""

    found: str
    reason: str = ""
    shown: Callable | None = None
    """Fails where the outcome is another."""


FUNCTIONS = {
    "agg_loss": Outcome(AGREE, shown=losses.aggregation_agrees),
    "align_appo_branch_batch": Outcome(
        NONE, "branches are in their tree, there are no rows to align"
    ),
    "apply_appo_reward_scale_M": Outcome(AGREE, shown=formulas.scaled_rewards_agree),
    "BingSearchTool._extract_and_format_results": Outcome(NONE, "no search through Bing"),
    "build_appo_branch_request": Outcome(AGREE, shown=formulas.branch_request_agrees),
    "build_branch_rollout": Outcome(NONE, "branches made in the rollout worker are not offered"),
    "calc_token_entropy": Outcome(
        BETTER,
        "entropies are of the whole distribution, not of the likeliest tokens",
        rollouts.entropy_has_the_rest_too,
    ),
    "compute_appo_advantage": Outcome(AGREE, shown=formulas.dual_group_agrees),
    "compute_future_values_from_logratio": Outcome(AGREE, shown=formulas.future_values_agree),
    "compute_grpo_outcome_advantage": Outcome(AGREE, shown=formulas.group_normalised_agrees),
    "compute_policy_loss": Outcome(AGREE, shown=losses.plain_loss_agrees),
    "compute_policy_loss_future_kl": Outcome(AGREE, shown=losses.future_loss_agrees),
    "compute_reward_scale_M": Outcome(AGREE, shown=formulas.reward_profile_agrees),
    "compute_saliency_scores": Outcome(NONE, "as build_branch_rollout"),
    "compute_score": Outcome(AGREE, SCORED_BESIDE),
    "get_response_mask": Outcome(
        BETTER,
        "padding exists only inside an update, and never counts as response",
        rollouts.padding_is_not_response,
    ),
    "get_seqlen_balanced_partitions": Outcome(NONE, "one device: no rows are dealt to ranks"),
    "is_meaningless_token": Outcome(NONE, "as build_branch_rollout"),
    "kl_penalty": Outcome(AGREE, shown=losses.kl_agrees),
    "masked_mean": Outcome(AGREE, shown=losses.masked_mean_agrees),
    "normalize_answer": Outcome(AGREE, SCORED_BESIDE),
    "pipeline_branch_to_loss": Outcome(AGREE, shown=formulas.pipeline_agrees),
    "PythonTool._preprocess_code": Outcome(
        NONE, "no program is rewritten: a session shows its last value itself"
    ),
    "sample_branch_points": Outcome(NONE, "as build_branch_rollout"),
    "tensor_zscore": Outcome(AGREE, shown=formulas.zscore_agrees),
    "vLLMRolloutWithTools._extract_content": Outcome(
        BETTER, "a turn has one action; a second one is malformed", rollouts.extraction_is_stricter
    ),
    "vLLMRolloutWithTools._generate_appo_selected_branches": Outcome(
        AGREE, shown=rollouts.branches_agree
    ),
    "vLLMRolloutWithTools.generate_sequences[APPO]": Outcome(AGREE, shown=rollouts.sequences_agree),
    "vLLMRolloutWithTools.generate_sequences[ARPO]": Outcome(AGREE, shown=rollouts.arpo_agrees),
    "zscore_list": Outcome(NONE, "as build_branch_rollout; another guard against a deviation of 0"),
}

REFUSED = Outcome(
    BETTER,
    "past the limit the model is told so, where the code writes an end token in its name",
    rollouts.refused_call_is_said,
)
FAILED = Outcome(
    BETTER, "a tool that fails is asked again, then its tree is dropped; no error text"
)

EXCEPTIONS = {
    "build_appo_branch_request": (
        (
            lambda case: "ill_conditioned" in case.tags,
            Outcome(BETTER, "the order is float32 rounding of misaligned values; ours are aligned"),
        ),
        (
            lambda case: bool(formulas.SCORED_FROM - case.inputs.keys()),
            Outcome(NONE, "a trajectory always has what its score is made from"),
        ),
    ),
    "compute_appo_advantage": (
        (
            lambda case: not case.params["norm_by_std"],
            Outcome(NONE, "a group is always divided by its deviation"),
        ),
    ),
    "compute_grpo_outcome_advantage": (
        (
            lambda case: not case.params["norm_adv_by_std_in_grpo"],
            Outcome(NONE, "a group is always divided by its deviation"),
        ),
        (
            lambda case: 1 in Counter(case.inputs["index"]).values(),
            Outcome(
                BETTER,
                "a group of one has nothing to be compared with; the code trains on its raw reward",
                formulas.group_normalised_agrees,
            ),
        ),
    ),
    "kl_penalty": (
        (
            lambda case: case.params["kl_penalty"] == "abs",
            Outcome(NONE, "no estimate of the divergence"),
        ),
    ),
    "vLLMRolloutWithTools.generate_sequences[APPO]": (
        (lambda case: rollouts.calls_of(case).failed, FAILED),
        (lambda case: rollouts.calls_of(case).refused, REFUSED),
        (
            rollouts.cuts_a_result,
            Outcome(
                BETTER,
                "a result without room ends the rollout, where the code cuts it and goes on",
                rollouts.results_are_kept_whole,
            ),
        ),
        (
            rollouts.drops_an_empty_call,
            Outcome(BETTER, "an empty call is a call: the tool says what it lacks"),
        ),
        (
            lambda case: rollouts.calls_of(case).made,
            Outcome(
                BETTER,
                "log-probabilities stay with their tokens after a result",
                rollouts.results_keep_values_in_step,
            ),
        ),
    ),
    "vLLMRolloutWithTools._generate_appo_selected_branches": (
        (lambda case: rollouts.calls_of(case).failed, FAILED),
        (
            rollouts.prompt_counts_calls,
            Outcome(
                BETTER,
                "calls are counted in the response, not in the system prompt",
                rollouts.prompt_counts_no_calls,
            ),
        ),
        (lambda case: rollouts.calls_of(case).refused, REFUSED),
        (
            lambda case: 0 in case.inputs["remaining_len"],
            Outcome(NONE, "a tree is not forked where no token can follow"),
        ),
    ),
}
"""Files of a function, by what is in them; the first that applies."""

STEMS = sorted(path.stem for path in GOLDEN.glob("*.json"))


def case_of(stem):
    return read(GOLDEN / f"{stem}.json")


def outcome(case):
    """Of a file; None for a function that nobody has looked at."""
    for applies, instead in EXCEPTIONS.get(case.function, ()):
        if applies(case):
            return instead
    return FUNCTIONS.get(case.function)


@pytest.mark.parametrize("stem", STEMS)
def test_the_case_comes_out_as_the_table_says(stem):
    case = case_of(stem)
    expected = outcome(case)
    assert expected is not None, f"{case.function} has no outcome: compare it, or say why not"
    if expected.shown is not None:
        expected.shown(case)


def test_every_file_has_an_outcome_and_their_numbers_are_shown(capsys):
    assert STEMS
    files = [(case.function, outcome(case)) for case in map(case_of, STEMS)]
    assert [function for function, expected in files if expected is None] == []
    counts = Counter((function, expected.found, expected.reason) for function, expected in files)
    with capsys.disabled():
        print()
        for (function, found, reason), number in sorted(counts.items()):
            print(f"{number:4d} {found:16s} {function}{': ' * bool(reason)}{reason}")
        total = Counter(expected.found for _, expected in files)
        print(f"{len(STEMS)} files:", ", ".join(f"{n} {found}" for found, n in total.most_common()))


def test_whatever_does_not_simply_agree_has_a_reason():
    outcomes = [*FUNCTIONS.values(), *(o for pairs in EXCEPTIONS.values() for _, o in pairs)]
    assert all(o.reason or (o.found == AGREE and o.shown) for o in outcomes)
    assert EXCEPTIONS.keys() <= FUNCTIONS.keys()
