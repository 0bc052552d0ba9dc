"""What a summary sums up of a run's metrics."""

from learners.compare.summary import sum_costs


def test_every_entry_of_the_ledger_is_summed_over_the_run():
    """Two iterations of 3 and 4 prefilled tokens, 0.5 s and 0.25 s of sampling, one retry."""
    lines = [
        {"ledger/prefilled_tokens": 3, "ledger/retries": 1, "seconds/sample": 0.5},
        {"ledger/prefilled_tokens": 4, "ledger/forked_states": 2, "seconds/sample": 0.25},
    ]
    found = sum_costs(lines)
    assert (found["prefilled"], found["forked"], found["sample_seconds"]) == (7, 2, 0.75)
    assert (found["retries"], found["judge_calls"]) == (1, 0)


def test_what_a_run_did_not_measure_is_not_summed_as_nothing():
    """Only the built-in sampler tells what it prefills."""
    found = sum_costs([{"ledger/sampled_tokens": 5}])
    assert found["tokens"] == 5
    assert not {"prefilled", "computed", "replayed", "tools_seconds"} & found.keys()
