"""Every golden file of APPO's published code, and what became of its function here.

Each function has one of four outcomes: it agrees; ours is better, for a reason; it has no
counterpart here, for a reason; it is not compared yet. A file of a function without an outcome
fails, and so does one that cannot be read. The files lie outside of the repository, see GOLDEN.
"""

from collections import Counter

import pytest
import torch

from tests.golden import appo_formulas as formulas
from tests.golden import appo_losses as losses
from tests.golden import appo_replay as replay
from tests.golden.appo_cases import GOLDEN, read

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"no golden files at {GOLDEN}; set APPO_GOLDEN"
)

AGREES = {
    "agg_loss": losses.aggregation_agrees,
    "apply_appo_reward_scale_M": formulas.scaled_rewards_agree,
    "build_appo_branch_request": formulas.branch_request_agrees,
    "compute_appo_advantage": formulas.dual_group_agrees,
    "compute_future_values_from_logratio": formulas.future_values_agree,
    "compute_grpo_outcome_advantage": formulas.group_normalised_agrees,
    "compute_policy_loss": losses.plain_loss_agrees,
    "compute_policy_loss_future_kl": losses.future_loss_agrees,
    "compute_reward_scale_M": formulas.reward_profile_agrees,
    "kl_penalty": losses.kl_agrees,
    "masked_mean": losses.masked_mean_agrees,
    "pipeline_branch_to_loss": formulas.pipeline_agrees,
    "tensor_zscore": formulas.zscore_agrees,
    "vLLMRolloutWithTools._generate_appo_selected_branches": replay.branches_agree,
    "vLLMRolloutWithTools.generate_sequences[APPO]": replay.sequences_agree,
}

COMPARED_IN_SCORING = ("compute_score", "normalize_answer")
"""They agree too; test_golden_scoring.py compares them."""

BETTER = {
    "calc_token_entropy": "entropies are of the whole distribution, not of the likeliest tokens",
    "get_response_mask": "padding exists only inside an update, and never counts as response",
    "vLLMRolloutWithTools._extract_content": "a turn has one action; a second one is malformed",
    "PythonTool._preprocess_code": "no program is rewritten: a session shows its last value itself",
}

NO_COUNTERPART = {
    "BingSearchTool._extract_and_format_results": "no search through Bing",
    "align_appo_branch_batch": "branches are trajectories of a tree, not rows to line up",
    "build_branch_rollout": "a branch made inside the rollout worker, without tools; not offered",
    "compute_saliency_scores": "the same variant's scores",
    "get_seqlen_balanced_partitions": "one device: rows are sorted by length, not dealt to ranks",
    "is_meaningless_token": "the same variant's filter of punctuation",
    "sample_branch_points": "the same variant's choice",
    "zscore_list": "the same variant's z-score, with another guard against a deviation of 0",
}

NOT_COMPARED_YET = {
    "vLLMRolloutWithTools.generate_sequences[ARPO]": "there is no learner of ARPO yet",
}

BETTER_IN = {
    "build_appo_branch_request__15_saturated_rounding_noise": (
        "the order comes from float32 rounding of misaligned log-probabilities; ours are aligned"
    ),
    "vLLMRolloutWithTools_generate_sequences_APPO___02_call_limit": (
        "past the limit the model is told so, where the code writes an end token in its name"
    ),
    "vLLMRolloutWithTools_generate_sequences_APPO___03_length_and_truncation": (
        "a result without room ends the rollout, where the code cuts it and goes on"
    ),
    "vLLMRolloutWithTools__generate_appo_selected_branches__02_prefix_counts_calls": (
        "past the limit the model is told so, where the code writes an end token in its name"
    ),
    "vLLMRolloutWithTools__generate_appo_selected_branches__03_system_prompt_counts_calls": (
        "calls are counted in the response, not in the system prompt"
    ),
}
"""Files of functions that otherwise agree."""

NO_COUNTERPART_IN = {
    "compute_grpo_outcome_advantage__03_no_norm": "a group is always divided by its deviation",
}

SHOWN = {
    "calc_token_entropy": replay.entropy_has_the_rest_too,
    "get_response_mask": replay.padding_is_not_response,
    "vLLMRolloutWithTools._extract_content": replay.extraction_is_stricter,
    "vLLMRolloutWithTools_generate_sequences_APPO___02_call_limit": replay.refused_call_is_said,
    "vLLMRolloutWithTools_generate_sequences_APPO___03_length_and_truncation": (
        replay.results_are_kept_whole
    ),
    "vLLMRolloutWithTools__generate_appo_selected_branches__02_prefix_counts_calls": (
        replay.refused_call_is_said
    ),
    "vLLMRolloutWithTools__generate_appo_selected_branches__03_system_prompt_counts_calls": (
        replay.prompt_counts_no_calls
    ),
}
"""What shows the difference, for a function or one of its files."""

STEMS = sorted(path.stem for path in GOLDEN.glob("*.json"))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def outcome(stem, function):
    """One of the four; None for a function that nobody has looked at."""
    if stem in BETTER_IN or function in BETTER:
        return "ours is better"
    if stem in NO_COUNTERPART_IN or function in NO_COUNTERPART:
        return "no counterpart"
    if function in NOT_COMPARED_YET:
        return "not compared yet"
    return "agrees" if function in AGREES or function in COMPARED_IN_SCORING else None


def case_of(stem):
    return read(GOLDEN / f"{stem}.json")


@pytest.mark.parametrize("stem", STEMS)
def test_the_case_comes_out_as_the_table_says(stem):
    case = case_of(stem)
    found = outcome(stem, case.function)
    assert found is not None, f"{case.function} has no outcome: compare it, or say why not"
    if found == "agrees" and case.function in AGREES:
        AGREES[case.function](case)
    for name in (stem, case.function):
        if name in SHOWN:
            SHOWN[name](case)


def test_every_file_has_an_outcome_and_their_numbers_are_shown(capsys):
    assert STEMS
    functions = {stem: case_of(stem).function for stem in STEMS}
    counts = Counter((functions[stem], outcome(stem, functions[stem])) for stem in STEMS)
    assert not [function for function, found in counts if found is None]
    with capsys.disabled():
        print()
        for (function, found), number in sorted(counts.items()):
            print(f"{number:4d} {found:16s} {function}")
        total = Counter(outcome(stem, functions[stem]) for stem in STEMS)
        print(f"{len(STEMS)} files: {dict(total)}")


def test_the_tables_name_nothing_that_is_not_there():
    tables = (AGREES, COMPARED_IN_SCORING, BETTER, NO_COUNTERPART, NOT_COMPARED_YET)
    named = [function for table in tables for function in table]
    assert sorted(named) == sorted({case_of(stem).function for stem in STEMS})
    assert {*BETTER_IN, *NO_COUNTERPART_IN} <= set(STEMS)
    assert set(SHOWN) <= {*BETTER, *BETTER_IN}
