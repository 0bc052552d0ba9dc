"""Written transcripts become what rollouts of the same texts make; results are not trained on."""

import json

import pytest
import torch

from learners.errors import UsageError
from learners.policy.loading import load_model, tiny_tokenizer
from learners.policy.policy import Policy
from learners.rollouts.rollout import Rollouts
from learners.sft import transcripts
from learners.sft.config import Config
from learners.sft.early_stopping import EarlyStopping, compute_mean_loss
from learners.sft.training import cold_start, update
from tests.fakes import EchoTool, SayTool, toy_env, toy_load
from tests.learner_fakes import ScriptedSampler

QUESTION = "What is 1 + 1?"
CALL = "<think> look </think> <search> sums </search>"
COMPUTE = "<think> run </think> <python> 1 + 1 </python>"
ANSWER = "<think> so </think> <answer> The final answer is \\[ \\boxed{2} \\] </answer>"
EPISODE_TEXT = f"{CALL}\n<result>\nfound\n</result>\n{COMPUTE} <result> found </result> {ANSWER}"
TOOLS = ("search", "python")
EPISODE = (QUESTION, ((CALL, "found"), (COMPUTE, " found "), (ANSWER, None)))
SPELLINGS = {
    "alpaca": {"instruction": "You are helpful.", "input": QUESTION, "output": EPISODE_TEXT},
    "alpaca without input": {"instruction": QUESTION, "input": "", "output": EPISODE_TEXT},
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "You are helpful."},
            {"from": "human", "value": QUESTION},
            {"from": "gpt", "value": EPISODE_TEXT},
        ]
    },
    "as published": {
        "system": "You are a helpful assistant that can search and run Python.",
        "conversations": [
            {"from": "human", "value": QUESTION},
            {"from": "gpt", "value": EPISODE_TEXT},
        ],
    },
    "published, a message a result": {
        "system": "",
        "conversations": [
            {"from": "human", "value": QUESTION},
            {"from": "gpt", "value": CALL},
            {"from": "human", "value": "<result>\nfound\n</result>"},
            {"from": "gpt", "value": COMPUTE},
            {"from": "human", "value": "<result> found </result>"},
            {"from": "gpt", "value": ANSWER},
        ],
    },
    "messages of tools": {
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": CALL},
            {"role": "tool", "content": "found"},
            {"role": "assistant", "content": COMPUTE},
            {"role": "user", "content": "<result> found </result>"},
            {"role": "assistant", "content": ANSWER},
        ]
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def rollouts_of(tokenizer, turns=(), room=600, tools=()):
    env = toy_env(*(tools or (EchoTool("search"), EchoTool("python"))), split="train")
    return Rollouts(env, ScriptedSampler(tokenizer, {"0": list(turns)}), tokenizer, room)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_row_is_the_same_episode(spelling):
    assert transcripts.parse_row(SPELLINGS[spelling], TOOLS) == EPISODE


def test_the_backspace_of_the_published_rows_is_a_box():
    row = SPELLINGS["alpaca"] | {"output": ANSWER.replace("\\boxed", "\x08oxed")}
    assert transcripts.parse_row(row, TOOLS).turns == ((ANSWER, None),)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (r"x = 1\nprint(x)", "x = 1\nprint(x)"),
        (r"print('a\nb')", r"print('a\nb')"),  # a program already
        (r"no program\neither way", r"no program\neither way"),
        ("x = 1\nprint('a\\nb')", "x = 1\nprint('a\\nb')"),
    ],
)
def test_a_program_written_on_one_line_gets_its_line_breaks(code, expected):
    text = f"<think>x</think><python>{code}</python><result>1</result>{ANSWER}"
    row = SPELLINGS["as published"] | {
        "conversations": [
            {"from": "human", "value": QUESTION},
            {"from": "gpt", "value": text},
        ]
    }
    turns = transcripts.parse_row(row, TOOLS).turns
    assert turns[0] == (f"<think>x</think><python>{expected}</python>", "1")


def test_text_after_a_closing_tag_is_cut_off():
    """A sampler would have stopped at the tag."""
    row = SPELLINGS["alpaca"] | {"output": f"{ANSWER} and so 2 > 1, done"}
    assert transcripts.parse_row(row, TOOLS).turns == ((ANSWER, None),)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (f"{CALL} <result>a</result> I stop here.", "without exactly one action"),
        (f"{CALL} {COMPUTE} <result>a</result> {ANSWER}", "without exactly one action"),
        (f"{ANSWER} <result>a</result> {ANSWER}", "an answer before the end"),
        (f"{CALL}", "an answer before the end, or no answer at the end"),
        (f"<result>a</result> {ANSWER}", "a result before a call"),
        ("<browse> x </browse> <result>a</result> " + ANSWER, "without exactly one action"),
        ("", "no text of the model"),
    ],
)
def test_rows_that_are_no_episode_say_why(output, reason):
    with pytest.raises(transcripts.Unusable, match=reason):
        transcripts.parse_row(SPELLINGS["alpaca"] | {"output": output}, TOOLS)


def test_rows_without_a_question_or_with_unknown_roles_say_why():
    with pytest.raises(transcripts.Unusable, match="no field output"):
        transcripts.parse_row({"text": "x"}, TOOLS)
    with pytest.raises(transcripts.Unusable, match="no question"):
        transcripts.parse_row({"instruction": "", "output": ANSWER}, TOOLS)
    row = {"messages": [{"role": "critic", "content": "x"}]}
    with pytest.raises(transcripts.Unusable, match="the unknown role critic"):
        transcripts.parse_row(row, TOOLS)


def test_a_transcript_becomes_the_ids_that_a_rollout_of_it_makes(tokenizer):
    """If the tools answer as in the transcript."""
    says = (SayTool("found", "search"), SayTool(" found ", "python"))
    rollouts = rollouts_of(tokenizer, [CALL, COMPUTE, ANSWER], tools=says)
    tree = rollouts.tree(toy_load("train")[0])
    sampled = tree.root()
    rollouts.run([tree], "0")
    trajectory = transcripts.encode_transcript(rollouts, transcripts.Transcript(*EPISODE))
    assert trajectory.prompt_ids == sampled.prompt_ids
    assert trajectory.response_ids == sampled.response_ids
    assert trajectory.response_mask == sampled.response_mask


def test_results_get_no_gradient(tokenizer):
    """The loss is that of the model's text, whatever the results are."""
    policy = Policy(load_model("tiny", dtype=torch.float64), learning_rate=1e-3)
    trajectory = transcripts.encode_transcript(
        rollouts_of(tokenizer), transcripts.Transcript(*EPISODE)
    )
    (stats,) = policy.token_stats([trajectory])
    logprobs = stats.logprobs[torch.tensor(trajectory.response_mask)]
    assert compute_mean_loss(policy, [trajectory]) == pytest.approx(-float(logprobs.mean()))
    assert update(policy, [trajectory], 0.0) == pytest.approx(-float(logprobs.mean()), abs=1e-5)
    assert 0 < len(logprobs) < len(trajectory)


def write_rows(folder, rows, name="rows.jsonl"):
    path = folder / name
    lines = [json.dumps(row) for row in rows]
    path.write_text("[" + ",".join(lines) + "]" if name.endswith(".json") else "\n".join(lines))
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_files_are_read_and_rows_left_out_are_counted_by_reason(tmp_path, tokenizer, name):
    bad = SPELLINGS["alpaca"] | {"output": CALL}
    path = write_rows(tmp_path, [*SPELLINGS.values(), bad, bad], name)
    training_set = transcripts.read_transcripts(path, rollouts_of(tokenizer))
    assert len(training_set.trajectories) == len(SPELLINGS)
    assert training_set.left_out == {"an answer before the end, or no answer at the end": 2}
    assert (
        len(transcripts.read_transcripts(path, rollouts_of(tokenizer), limit=3).trajectories) == 3
    )


def test_parquet_files_are_read(tmp_path, tokenizer):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([SPELLINGS["alpaca"]] * 2), path)
    assert len(transcripts.read_transcripts(str(path), rollouts_of(tokenizer)).trajectories) == 2


def test_evaluated_questions_are_left_out(tmp_path, tokenizer):
    path = write_rows(tmp_path, [SPELLINGS["alpaca"]])
    key = transcripts.question_key("what is 1+1")
    with pytest.raises(UsageError, match="no row can be used: 1 x its question is evaluated on"):
        transcripts.read_transcripts(path, rollouts_of(tokenizer), {key})


def test_transcripts_longer_than_a_response_are_left_out(tmp_path, tokenizer):
    path = write_rows(tmp_path, [SPELLINGS["alpaca"]])
    with pytest.raises(UsageError, match="1 x longer than --max-response-tokens"):
        transcripts.read_transcripts(path, rollouts_of(tokenizer, room=40))


@pytest.mark.parametrize("name", ["none.jsonl", "rows.txt"])
def test_a_missing_file_or_one_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / "rows.txt").write_text("")
    with pytest.raises(UsageError, match=r"ends in \.jsonl, \.json or \.parquet, or the id"):
        transcripts.load_rows(str(tmp_path / name))


def test_json_that_is_no_list_of_objects_is_refused(tmp_path):
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(UsageError, match="expected a list of objects"):
        transcripts.load_rows(str(tmp_path / "rows.json"))


def test_a_cold_start_on_transcripts_tracks_a_validation_loss(tmp_path, capsys):
    """Four of twelve rows are held out; the loss on them falls because all rows are alike."""
    output = f"<think> go </think> <search> x </search> <result> y </result> {ANSWER}"
    rows = [{"instruction": f"Question {n}?", "input": "", "output": output} for n in range(12)]
    config = Config.of(
        model="tiny",
        transcripts=write_rows(tmp_path, rows),
        tools=("search", "calculator"),
        eval_tasks=0,
        eval_every=2,
        validation_tasks=4,
        batch_tokens=400,
        epochs=4,
        threads=1,
        max_response_tokens=384,
        out=str(tmp_path / "run"),
    )
    folder = cold_start(config)
    assert "12 transcripts of" in capsys.readouterr().out
    lines = (folder / "held_out.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) > 1
    assert losses[-1] < 0.8 * losses[0]
    assert load_model(str(folder)).model.num_parameters() > 0


def test_early_stopping_ends_training_and_restores_the_best_weights(tmp_path, tokenizer):
    policy = Policy(load_model("tiny"), learning_rate=0.05)
    rollouts = rollouts_of(tokenizer)
    trajectory = transcripts.encode_transcript(rollouts, transcripts.Transcript(*EPISODE))
    early_stopping = EarlyStopping([trajectory], 1, 2, tmp_path)
    early_stopping.resume(0)
    other = transcripts.encode_transcript(
        rollouts, transcripts.Transcript("q", (("<answer> zzzz </answer>", None),))
    )
    early_stopping.evaluate_if_due(policy)
    assert not early_stopping.should_stop
    for _ in range(30):
        update(policy, [other], 0.0)
        early_stopping.evaluate_if_due(policy)
        if early_stopping.should_stop:
            break
    assert early_stopping.should_stop
    early_stopping.restore_best(policy)
    assert compute_mean_loss(policy, [trajectory]) == pytest.approx(
        min(early_stopping.losses), rel=1e-4
    )
    resumed = EarlyStopping([trajectory], 1, 2, tmp_path)
    resumed.resume(policy.updates)
    assert resumed.losses == pytest.approx(early_stopping.losses)
    assert resumed.should_stop
