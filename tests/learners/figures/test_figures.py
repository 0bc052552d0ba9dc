"""Figures of runs: where high tokens lie, by hand on one rollout; and every command, end to end."""

import json
import math
from dataclasses import replace

import pytest

from learners.compare.collect import collect
from learners.compare.report import build_report
from learners.errors import UsageError
from learners.figures.__main__ import main
from learners.figures.tokens import (
    Token,
    average_words,
    by_distance,
    lifts,
    locate_tokens,
    scored_rows,
)
from learners.intervals import Interval
from learners.runs.training import main as train
from tests.compare_fakes import TASKS, all_written, config_in
from tests.learners.test_commands import python

TEXT = "so <search> ab </search> hit then <answer> ab </answer>"
WORDS = TEXT.split(" ")
"""so <search> ab </search> | hit | then <answer> ab </answer>: a call, its result, an answer."""


def row(entropies=(9, 0, 3, 0, 0, 0, 0, 1, 0), scores=(0, 0, 0, 0, 0, 7, 0, 0, 0)):
    """A rollout with a token per word; the result is the fifth."""
    ends = [len(" ".join(WORDS[: i + 1])) for i in range(len(WORDS))]
    return {
        "task": "a",
        "text": TEXT,
        "token_ends": ends,
        "mask": [word != "hit" for word in WORDS],
        "entropies": list(map(float, entropies)),
        "branch_scores": list(map(float, scores)),
        "turns": [
            {"begin": 0, "action_end": 4, "end": 5, "tool": "search"},
            {"begin": 5, "action_end": 9, "end": 9, "tool": None},
        ],
    }


def test_every_sampled_token_has_its_region():
    found = list(locate_tokens([row()], share=0.25))
    assert [token.region for token in found] == [
        "before the action",
        *["in a call"] * 3,
        "after a result",
        *["in an answer"] * 3,
    ]
    assert [token.since for token in found] == [None] * 4 + [0, 1, 2, 3]
    assert [token.until for token in found] == [3, 2, 1, 0] + [None] * 4


def test_the_highest_tokens_of_a_rollout_are_those_it_sampled():
    """A quarter of eight: 9 and 3 by entropy; 7 and the first of the zeros by score."""
    found = list(locate_tokens([row()], share=0.25))
    assert [token.high_entropy for token in found] == [True, False, True] + [False] * 5
    assert [token.high_score for token in found] == [True] + [False] * 3 + [True] + [False] * 3


def token(region, high_entropy, high_score, task="a", since=None):
    return Token(task, since, None, region, high_entropy, high_score)


def test_a_lift_is_the_share_among_high_tokens_over_the_share_of_all():
    """Calls are a quarter of all tokens, half of those of high entropy, none by score."""
    tokens = [
        token("in a call", True, False),
        token("before the action", True, False),
        token("before the action", False, True),
        token("in an answer", False, False),
    ]
    found = lifts([*tokens, *(one._replace(task="b") for one in tokens)])
    assert found["in a call"].tokens == 0.25
    assert found["in a call"].entropy == (2.0, 2.0, 2.0)  # both tasks are alike
    assert found["in a call"].score.value == 0
    assert found["before the action"].entropy.value == 1
    assert "after a result" not in found


def test_distances_count_from_the_result():
    """Half of all tokens are high; right after a result all are, one further none."""
    tokens = [
        token("after a result", True, True, since=0),
        token("after a result", False, False, since=1),
    ]
    found = by_distance(tokens, "since", 2)
    assert found["entropy"][:2] == [2.0, 0.0]
    assert math.isnan(found["entropy"][2])


def test_words_are_ranked_by_what_the_policy_said_and_not_by_results():
    """ab was said twice, with 3 and 1 nats; hit came from a tool."""
    found = {word.text: word for word in average_words([row()], 1)}
    assert (found["ab"].times, found["ab"].entropy, found["ab"].score) == (2, 2.0, 0.0)
    assert found["then"].score == 7.0
    assert "hit" not in found
    assert [word.text for word in average_words([row()], 2)] == ["ab"]


def test_a_word_of_several_tokens_is_their_mean():
    """ "so" in two tokens of 4 and 2 nats."""
    split = row()
    split["token_ends"] = [1, *split["token_ends"]]
    for name in ("mask", "entropies", "branch_scores"):
        split[name] = [split[name][0], *split[name]]
    split["entropies"][:2] = [4.0, 2.0]
    (word,) = [word for word in average_words([split], 1) if word.text == "so"]
    assert word.entropy == 3.0


@pytest.fixture(scope="module")
def run(taught, tmp_path_factory):
    """A short run of APPO whose later mini-batches have scores."""
    folder = tmp_path_factory.mktemp("figures") / "appo"
    text = (
        f"--model {taught} --tools search calculator --prompts 3 --minibatch-prompts 1 "
        "--rollouts 6 --initial-rollouts 3 --iterations 2 --max-response-tokens 80 "
        f"--temperature 1.4 --eval-tasks 0 --threads 1 --learning-rate 1e-3 --out {folder}"
    )
    train("learners.appo", text.split())
    return folder


def made(folder, name):
    return [(folder / f"{name}.{suffix}").stat().st_size > 1000 for suffix in ("png", "svg")]


def test_each_figure_of_a_run_is_one_command(run, tmp_path, capsys):
    main(["tokens", str(run), "--out", f"{tmp_path}/tokens"])
    assert "likelier than any token to be there" in " ".join(capsys.readouterr().out.split())
    main(["words", str(run), "--least", "1", "--out", f"{tmp_path}/words"])
    assert "by entropy" in capsys.readouterr().out
    for name, head in (("tokens", "| place | of all tokens |"), ("words", "| by entropy | nats |")):
        title, table = (tmp_path / f"{name}.md").read_text().split("\n\n")
        assert title.startswith("appo: ")
        assert table.startswith(head)
    main(["rewards", str(run), str(run), "--out", f"{tmp_path}/rewards"])
    assert "appo: mean reward of each run's last ten iterations" in capsys.readouterr().out
    assert all(made(tmp_path, "tokens") + made(tmp_path, "words") + made(tmp_path, "rewards"))


def test_pass_at_k_of_two_methods_is_one_command(tmp_path, capsys):
    config = config_in(tmp_path)
    all_written(config)
    report = build_report(collect(config, TASKS))
    pass_at = dict.fromkeys((1, 2), Interval(0.5, 0.4, 0.6))
    method = replace(report.methods["appo"], pass_at=pass_at)
    report = replace(report, methods=dict.fromkeys(("appo", "arpo", "x"), method))
    (tmp_path / "report.json").write_text(json.dumps(report.to_json()))
    main(["pass-at-k", str(tmp_path), "--out", f"{tmp_path}/pass"])
    said = capsys.readouterr().out
    assert "| appo | 0.500 [0.400, 0.600] |" in said
    assert "| x |" not in said
    assert all(made(tmp_path, "pass"))
    with pytest.raises(SystemExit):
        main(["pass-at-k", str(tmp_path), "--methods", "dapo"])
    assert "has no method dapo; it has appo, arpo, x" in " ".join(capsys.readouterr().err.split())


def test_a_run_without_scores_is_refused(taught, tmp_path):
    text = (
        f"--model {taught} --tools search calculator --prompts 1 --minibatch-prompts 1 --rollouts 2"
        f" --iterations 1 --max-response-tokens 40 --eval-tasks 0 --threads 1 --out {tmp_path}"
    )
    train("learners.grpo", text.split())
    with pytest.raises(UsageError, match="no rollout with a branching score"):
        scored_rows(tmp_path, 10)


def test_help_names_the_four_figures_and_imports_no_transformers():
    code = (
        "import sys; from learners.figures.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print('transformers' in sys.modules)"
    )
    status, said, _ = python("-c", code, COLUMNS="200")
    assert status == 0
    assert said.endswith("False\n")
    for words in ("tokens", "words", "rewards", "pass-at-k"):
        assert words in said
