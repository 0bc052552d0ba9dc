"""Learners: a module per method, and rooms for what methods share. Nothing imports learners.

A method is a module with a `Config` and an `iteration(tasks, run, config)`.

Methods: appo, and appo_reference with its published code's formulas; grpo, arpo, aepo, tree_grpo,
reinforce_pp, dapo, gppo, cispo, gigpo, rloo, dr_grpo, gspo.

The ground floor, which every room may use and which loads no torch:
    tree                rollout trees
    config              options of a run
    errors              errors whose message is for the person who typed the command
    ledger              what a run spends, counted and bounded
    metrics             names and meanings of metrics
    run_folder          files of a run's folder
    console             progress and errors on a terminal
    intervals           confidence intervals
    plotting            curves with bands

Rooms, from the bottom up: policy, sampling, rl, rollouts, runs; then the methods; on top the
commands evaluate, sft, compare, replay, view, figures, and
    recount             a run's ledger, counted again from its rollout files
    branching_variance  the variance claim of APPO, measured
"""
