"""Every golden case of the rivals' reference implementations, and what became of it here.

A case agrees; or ours is better, for a reason; or it has no counterpart here, for a reason. A case
whose file and kind have no outcome fails, and so does a file that cannot be read. Cases tagged
`trap` record what the code gets wrong. The files lie outside of the repository, see GOLDEN.

Of a case that agrees, advantages, returns, groups, losses and gradients are compared. Not compared
are outputs beside the method: clip statistics, GPPO's likelihood term, GiGPO's statistics per row,
the code's second implementations of an advantage, Tree-GRPO's GSPO, weights divided by their mean,
its second normalisation of the first, sums split over devices, estimators of divergence with
another's gradient, and, where a call was refused or a row cut, texts and masks of ARPO's and AEPO's
rollouts.
"""

from collections import Counter

import pytest

from tests import needs
from tests.golden import baseline_aepo as aepo
from tests.golden import baseline_arpo as rollouts
from tests.golden import baseline_formulas as formulas
from tests.golden import baseline_tree_grpo as tree_grpo
from tests.golden.baseline_cases import GOLDEN, read
from tests.golden.test_golden_appo import AGREE, BETTER, NONE, Outcome

pytestmark = needs.unless(GOLDEN.is_dir(), *needs.GOLDEN)

GROUP = Outcome(AGREE, shown=formulas.group_method_agrees)

KINDS = {
    ("aepo", "end_to_end"): Outcome(
        AGREE,
        "entropies' z to 1e-7: the code adds 1e-8 to the number of tokens",
        aepo.method_agrees,
    ),
    ("aepo", "policy_loss"): Outcome(
        BETTER,
        "the policy's own pass has entropies; without them the code drops their term silently",
        aepo.entropies_are_never_missing,
    ),
    ("aepo", "rollout_trace"): Outcome(AGREE, shown=aepo.rollout_agrees),
    ("aepo", "branch_rule"): Outcome(AGREE, shown=aepo.branch_rule_agrees),
    ("aepo", "budget_rule"): Outcome(AGREE, shown=aepo.budget_rule_agrees),
    ("arpo", "end_to_end"): GROUP,
    ("arpo", "rollout_trace"): Outcome(AGREE, shown=rollouts.rollout_agrees),
    ("arpo", "branch_rule"): Outcome(AGREE, shown=rollouts.branch_rule_agrees),
    ("cispo", "end_to_end"): GROUP,
    ("dapo", "end_to_end"): GROUP,
    ("dapo", "group_filter"): Outcome(AGREE, shown=formulas.filter_agrees),
    ("dapo", "reward_shaping"): Outcome(AGREE, shown=formulas.overlong_agrees),
    ("dr_grpo", "end_to_end"): GROUP,
    ("gigpo", "end_to_end"): Outcome(AGREE, shown=formulas.gigpo_agrees),
    ("gppo", "end_to_end"): GROUP,
    ("gppo", "policy_loss"): Outcome(
        BETTER,
        "the code divides by a ratio that overflows; ours stays finite",
        formulas.overflow_is_finite,
    ),
    ("grpo", "end_to_end"): GROUP,
    ("grpo", "advantage"): Outcome(
        BETTER,
        "equal rewards give exactly 0, not rounding over rounding",
        formulas.equals_are_exactly_zero,
    ),
    ("gspo", "end_to_end"): GROUP,
    ("reinforce_pp", "end_to_end"): Outcome(
        AGREE,
        "advantages to 1e-7: the code adds 1e-8 to the number of tokens",
        formulas.reinforce_pp_agrees,
    ),
    ("reinforce_pp", "advantage"): Outcome(
        BETTER,
        "a tool's result does not cut the return; as the code was fixed",
        formulas.tool_results_cut_no_return,
    ),
    ("rloo", "end_to_end"): Outcome(AGREE, shown=formulas.rloo_agrees),
    ("shared_aggregation", "aggregation"): Outcome(AGREE, shown=formulas.aggregation_agrees),
    ("shared_kl", "kl"): Outcome(AGREE, shown=formulas.kl_agrees),
    ("shared_rollout_correction", "is_weights"): Outcome(AGREE, shown=formulas.mismatch_agrees),
    ("tree_grpo", "end_to_end"): Outcome(AGREE, shown=tree_grpo.method_agrees),
    ("tree_grpo", "tree_ops"): Outcome(AGREE, shown=tree_grpo.tree_agrees),
}
"""By file and kind."""

WHITENED = ("reinforce_pp",)
"""Files where a group of one is as the code has it."""


def alone_is_nothing(case):
    """Losses, and the advantages of the larger groups, agree."""
    KINDS[case.file, case.kind].shown(case)


EXCEPTIONS = (
    (
        lambda case: case.scenario == "rollout-stale_initial_entropy",
        Outcome(
            BETTER,
            "a rollout's first entropy is its own, not another batch's",
            rollouts.first_entropies_are_its_own,
        ),
    ),
    (
        lambda case: case.id == "aepo/rollout-beam3_always/1",
        Outcome(
            BETTER,
            "a prompt's penalty ends when it pauses, whatever other prompts do",
            aepo.all_but_the_pause_agrees,
        ),
    ),
    (
        lambda case: case.kind == "end_to_end" and tree_grpo.lonely(case),
        Outcome(
            BETTER,
            "a tree of one leaf has nothing to be compared with; the code adds its raw reward",
            tree_grpo.method_agrees,
        ),
    ),
    (
        lambda case: case.scenario == "zero_coef_nan_float32",
        Outcome(
            BETTER,
            "k3 bounds its argument: no NaN gradient",
            formulas.divergence_is_finite,
        ),
    ),
    (
        lambda case: case.kind == "end_to_end" and case.file not in WHITENED and lonely(case),
        Outcome(
            BETTER,
            "a group of one has nothing to be compared with; the code trains on its raw reward",
            alone_is_nothing,
        ),
    ),
    (
        lambda case: (
            case.file == "grpo"
            and case.scenario == "trl-extreme"
            and case.params.get("beta", 0.0) > 0
        ),
        Outcome(
            BETTER,
            "k3 is kept within 10 per token, TRL's is not; advantages agree",
            formulas.credit_of_trl_agrees,
        ),
    ),
    (
        lambda case: case.file == "rloo" and case.trl,
        Outcome(
            NONE,
            "TRL clips a ratio of whole rollouts, the paper has none; advantages agree",
            formulas.rloo_agrees,
        ),
    ),
)
"""Cases by what is in them; the first that applies."""


def lonely(case):
    """Whether a group has one member: a rollout, or a trajectory where rows are its steps."""
    if case.file != "gigpo":
        return case.alone
    names = case.inputs["traj_ids"]
    return any(len({names[row] for row in group}) == 1 for group in case.groups)


PATHS = sorted(GOLDEN.glob("*.json"))
CASES = [case for path in PATHS for case in read(path)]


def outcome(case):
    """Of a case; None for a kind that nobody has looked at."""
    for applies, instead in EXCEPTIONS:
        if applies(case):
            return instead
    return KINDS.get((case.file, case.kind))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_case_comes_out_as_the_table_says(case):
    expected = outcome(case)
    assert expected is not None, f"{case.file}/{case.kind} has no outcome: compare it, or say why"
    if expected.shown is not None:
        expected.shown(case)


def test_every_case_has_an_outcome_and_their_numbers_are_shown(capsys):
    assert CASES
    assert {path.stem for path in PATHS} == {case.file for case in CASES}
    found = [(case, outcome(case)) for case in CASES]
    assert [case.id for case, expected in found if expected is None] == []
    counts = Counter((c.file, c.kind, o.found, o.reason) for c, o in found)
    with capsys.disabled():
        print()
        for (file, kind, result, reason), number in sorted(counts.items()):
            print(f"{number:4d} {result:16s} {file}/{kind}{': ' * bool(reason)}{reason}")
        total = Counter(o.found for _, o in found)
        print(f"{len(CASES)} cases:", ", ".join(f"{n} {name}" for name, n in total.most_common()))


def test_whatever_does_not_simply_agree_has_a_reason():
    outcomes = [*KINDS.values(), *(outcome for _, outcome in EXCEPTIONS)]
    assert all(o.reason or (o.found == AGREE and o.shown) for o in outcomes)


def test_no_trap_is_agreed_with():
    traps = [case for case in CASES if "trap" in case.tags]
    assert traps
    assert all(outcome(case).found == BETTER for case in traps)
