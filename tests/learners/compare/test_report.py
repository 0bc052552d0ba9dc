"""What a comparison says, from summaries written by hand: numbers, words, figures, the page."""

import json
import shutil

import pytest

from learners.compare.__main__ import main
from learners.compare.collect import chosen_rates, collect
from learners.compare.config import Config, read_spec
from learners.compare.figures import draw_all
from learners.compare.plan import final_trials, start_trials, tuning_trials
from learners.compare.report import Report, build_report, describe_pair, reward_histories
from learners.compare.summary import read_summary
from learners.compare.tables import format_report
from learners.errors import UsageError
from learners.intervals import Interval
from learners.plotting import style
from scripts import results_page
from tests.compare_fakes import RIGHT, TASKS, all_written, config_in, edited, written
from tests.conftest import ROOT


@pytest.fixture
def config(tmp_path):
    return config_in(tmp_path)


def test_what_all_summaries_say_together(config):
    """appo: all right. grpo: half of the samples of tasks a and b; arpo: of d too.

    Curves of two tasks from 0: appo's mean is 0.5 at 50 tokens and 1 at 100, so its area is
    (0.25 + 0.75) / 2 = 0.5; grpo's is 0, then 0.5 at the end: 0.125.
    """
    all_written(config)
    found = build_report(collect(config, TASKS))
    methods = found.methods
    assert found.missing == []
    assert found.start.accuracy.value == 0
    assert [methods[m].accuracy.value for m in RIGHT if m != "start"] == [0.25, 1.0, 0.375]
    assert methods["grpo"].per_level == {"1": 0.5, "2": 0.0}
    assert methods["grpo"].pass_at[2].value == 0.5
    assert methods["appo"].area.value == 0.5
    assert methods["grpo"].area.value == 0.125
    assert methods["grpo"].spent["tokens"] == 100
    (grpo, arpo) = found.pairs
    assert (grpo.theirs, arpo.theirs) == ("grpo", "arpo")
    assert grpo.accuracy.value == 0.75
    assert grpo.separated
    assert grpo.improvement.value == 1.0
    assert grpo.sentence.startswith("appo is more accurate than grpo: +0.750")


def test_validation_tasks_are_drawn_within_their_levels(config):
    """One task a level: every draw holds each once, and the seeds are alike, so nothing varies."""
    all_written(config)
    found = build_report(collect(config, TASKS))
    assert found.methods["appo"].area == (0.5, 0.5, 0.5)
    assert found.pairs[0].area == (0.375, 0.375, 0.375)
    assert all(h.low == h.high for h in found.methods["appo"].curve.heights)


def test_methods_that_are_equal_are_not_separated(config):
    for trial in [*start_trials(config), *final_trials(config, {})]:
        written(trial, right="1010" if trial.seed else "0101")
    (pair, _) = build_report(collect(config, TASKS)).pairs
    assert not pair.separated
    assert pair.sentence.startswith("These data do not separate appo from grpo: +0.000")


def test_sentences_follow_the_widened_interval_and_tell_of_one_seed():
    plain = Interval(0.1, 0.01, 0.2)
    wide = Interval(0.1, -0.02, 0.22)
    told = describe_pair("a", "b", plain, wide, 1)
    assert told == (
        "These data do not separate a from b: +0.100 [+0.010, +0.200]; a difference within 0.220 "
        "either way remains possible. One seed each: this speaks of tasks, not of other seeds."
    )
    assert (
        describe_pair("a", "b", plain, plain, 5)
        == "a is more accurate than b: +0.100 [+0.010, +0.200]."
    )
    below = Interval(-0.1, -0.2, -0.01)
    assert describe_pair("a", "b", below, below, 5).startswith("a is less accurate than b: -0.100")


def test_what_was_not_run_is_named_and_only_whole_seeds_are_compared(config):
    all_written(config)
    missing = final_trials(config, {})[-1]
    missing.summary.unlink()
    found = build_report(collect(config, TASKS))
    assert found.seeds == [0]
    assert found.missing == ["arpo, seed 1"]
    assert "- arpo, seed 1" in format_report(found)
    for trial in final_trials(config, {}):
        if trial.method.label == "arpo":
            trial.summary.unlink(missing_ok=True)
    found = build_report(collect(config, TASKS))
    assert list(found.methods) == ["grpo", "appo"]
    assert found.seeds == [0, 1]


def test_nothing_is_reported_of_nothing(config):
    assert collect(config, TASKS) is None
    for trial in start_trials(config):
        written(trial)
    assert collect(config, TASKS) is None


def test_tasks_that_one_run_could_not_play_count_for_none(config):
    all_written(config)
    written(final_trials(config, {})[0], right="1-00")
    found = build_report(collect(config, TASKS))
    assert found.tasks == 3
    assert found.methods["arpo"].per_seed == [0.3333, 0.3333]


def test_runs_that_began_with_other_weights_are_not_compared(config):
    all_written(config)
    written(final_trials(config, {})[0], weights="w1")
    with pytest.raises(UsageError, match="different weights"):
        collect(config, TASKS)


def test_answers_that_only_a_judge_can_grade_are_not_compared(config):
    all_written(config)
    path = final_trials(config, {})[0].summary
    summary = json.loads(path.read_text())
    summary["test"]["not_judged"] = 3
    path.write_text(json.dumps(summary))
    with pytest.raises(UsageError, match="3 answers can only be graded by a judge"):
        collect(config, TASKS)


def test_summaries_of_an_earlier_version_have_no_magnitude_and_no_peak(config):
    """Of three methods one was run by this version, one half by it."""
    all_written(config)
    text = format_report(build_report(collect(config, TASKS)))
    assert "| `advantage/magnitude` | - | - | - |" in text
    assert "peak memory" not in text
    for trial in final_trials(config, {}):
        label, seed = trial.method.label, trial.seed
        if label == "grpo" or (label == "appo" and seed == 0):
            edited(trial, lambda s: s["metrics"].update({"advantage/magnitude": 0.5}))
            edited(trial, lambda s: s["spent"].update(peak_memory=2e8))
    text = format_report(build_report(collect(config, TASKS)))
    assert "| `advantage/magnitude` | 0.5 | 0.5 | - |" in text
    assert column(text, "peak memory, bytes") == ["200,000,000.0", "-", "-"]


def column(text, name):
    """The cells of the only column of that name."""
    tables = [block.splitlines() for block in text.split("\n\n") if f"| {name} |" in block]
    ((names, _, *rows),) = [[row.strip("| ").split(" | ") for row in table] for table in tables]
    return [row[names.index(name)] for row in rows]


def test_the_whole_ledger_is_shown_and_a_dash_where_an_earlier_version_summed_less(config):
    """Of grpo both seeds were counted whole, of appo one, of arpo none."""
    all_written(config)
    counted = {"prefilled": 50, "computed": 60, "retries": 1, "judge_calls": 2, "forked": 3}
    counted |= {"replayed": 4, "sample_seconds": 1.5, "update_seconds": 0.5}
    for trial in final_trials(config, {}):
        if trial.method.label == "grpo" or (trial.method.label, trial.seed) == ("appo", 0):
            edited(trial, lambda s: s["spent"].update(counted))
    found = build_report(collect(config, TASKS))
    assert {n: found.methods["grpo"].spent[n] for n in counted} == counted
    assert not counted.keys() & found.methods["appo"].spent.keys()
    text = format_report(found)
    for name in ("prefilled", "computed", "retries", "judge calls", "states forked", "replayed"):
        assert column(text, name)[1:] == ["-", "-"]
    assert column(text, "prefilled")[0] == "50.0"
    assert column(text, "sample") == ["1.5", "-", "-"]
    assert column(text, "tokens sampled") == ["100.0"] * 3


def test_verdicts_of_evaluations_are_counted_and_paid(config):
    """Two seeds of grpo asked 6 and 8 verdicts, for 1 and 2: 7 and 1.5 in the mean."""
    all_written(config)
    for trial in final_trials(config, {}):
        if trial.method.label == "grpo":
            asked = {"calls": 6 + 2 * trial.seed, "cached": 2, "faults": 0, "cost": 1 + trial.seed}
            edited(trial, lambda s, asked=asked: s.update(judge=asked))
    found = build_report(collect(config, TASKS))
    assert found.methods["grpo"].spent["verdicts"] == 7
    assert found.methods["grpo"].spent["cost"] == 1.5
    assert found.methods["appo"].spent["verdicts"] == 0
    assert "| verdicts | cost |" in format_report(found)


def test_two_methods_never_look_the_same():
    looks = [(style(i)["color"], style(i)["linestyle"]) for i in range(24)]
    assert len(set(looks)) == 24


def test_a_damaged_summary_is_named(config):
    all_written(config)
    path = final_trials(config, {})[0].summary
    path.write_text("{")
    with pytest.raises(UsageError, match=f"{path.name} is damaged"):
        read_summary(path)


def test_the_rate_with_the_best_last_point_is_chosen_and_the_smaller_of_equals(config):
    """Last points of grpo: 0, 1, 1; of appo: 1, 0.5, 0; of arpo all 0.5."""
    tuned = Config(**{**vars(config), "rates": (1e-4, 3e-4, 1e-3)})
    ends = {"grpo": ("00", "11", "11"), "appo": ("11", "10", "00"), "arpo": ("10", "01", "10")}
    trials = tuning_trials(tuned)
    for trial in trials:
        assert chosen_rates(tuned) is None
        written(trial, curve=("00", ends[trial.method.label][tuned.rates.index(trial.rate)]))
    assert chosen_rates(tuned) == {"grpo": 3e-4, "appo": 1e-4, "arpo": 1e-4}
    final = final_trials(tuned, chosen_rates(tuned))
    assert {t.rate for t in final if t.method.label == "grpo"} == {3e-4}
    assert all("--learning-rate" in t.train for t in final)


def test_while_rates_are_being_chosen_the_runs_that_wait_are_counted(config):
    tuned = Config(**{**vars(config), "rates": (1e-4,)})
    for trial in start_trials(tuned):
        written(trial)
    assert collect(tuned, TASKS) is None


def test_the_report_and_its_figures_are_whole(config, tmp_path):
    all_written(config)
    data = collect(config, TASKS)
    found = build_report(data)
    assert Report.from_json(json.loads(json.dumps(found.to_json()))) == found
    files = draw_all(found, reward_histories(data), tmp_path / "figures")
    assert len(files) == 10
    assert all(file.read_bytes()[:4] in (b"\x89PNG", b"<?xm") for file in files)
    again = draw_all(found, reward_histories(data), tmp_path / "again")
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again]
    text = format_report(found, figures="there")
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") == line.count(" | ") + 2
    assert "![curves](there/curves.png)" in text
    assert "Everything the comparison asks for was run." in text


def test_the_page_tells_of_every_spec_and_of_what_was_not_run(config, tmp_path):
    results = tmp_path / "results"
    all_written(config)
    (results / "lab" / "tasks.json").write_text(json.dumps(TASKS))
    lines = 'methods = ["grpo", "appo", "arpo"]\nseeds = 2\nbudget = "tokens=100"\nsamples = 2\n'
    (results / "lab.toml").write_text(lines)
    (results / "other.toml").write_text('methods = ["grpo"]\nlevel = "3"\n')
    text = results_page.build_page(results, "../results")
    assert "appo is more accurate than grpo: +0.750" in text
    assert "![curves](../results/lab/curves.png)" in text
    assert (
        "**Not run**: appo/SyntheticQA-v0, level 3, 5 seeds, each to 200,000 tokens: grpo." in text
    )
    assert "7B" in text
    assert "hesitate" not in text
    (results / "lab" / "tokens").mkdir()
    (results / "lab" / "tokens" / "words.md").write_text("| so | 1 |\n")
    (results / "lab" / "tokens" / "words.png").write_text("")
    told = results_page.build_page(results, "../results").partition("hesitate and decide")[2]
    assert told.startswith("\n\n| so | 1 |\n\n![words](../results/lab/tokens/words.png)\n")
    (results / "discussion.md").write_text("## What these show\n")
    assert results_page.build_page(results, "../results").split("## ")[1] == "What these show\n\n"


def test_the_page_of_results_is_what_the_command_writes():
    """`python -m scripts.results_page docs/results.md`; but for comparisons that are under way."""
    written = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert written.startswith(results_page.HEAD)
    assert written.endswith(results_page.NOT_HERE)
    for spec in (ROOT / "results").glob("*.toml"):
        wanted = results_page.build_section(read_spec(spec), ROOT / "results", "../results")
        under_way = "## Not run\n\n- " in wanted or "but for" in wanted
        assert wanted in written or under_way


def test_a_report_of_what_there_is_runs_nothing(tmp_path, capsys):
    """The kept summaries of a comparison without two: it names them, and makes no runs folder."""
    kept = ROOT / "results" / "proof-of-life"
    shutil.copytree(kept, tmp_path / "proof-of-life")
    lost = sorted((tmp_path / "proof-of-life").glob("grpo-*.json"))
    for summary in lost:
        summary.unlink()
    spec = ROOT / "results" / "proof-of-life.toml"
    main([f"--spec={spec}", f"--results={tmp_path}", f"--out={tmp_path}/runs", "--report-only"])
    found = json.loads((tmp_path / "proof-of-life" / "report.json").read_text())
    assert found["missing"] == ["grpo, seed 0", "grpo, seed 1"]
    assert "grpo" not in found["methods"]
    assert "grpo, seed 1" in capsys.readouterr().out
    assert not any(summary.exists() for summary in lost)
    assert not (tmp_path / "runs").exists()
