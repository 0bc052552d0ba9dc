"""Commands that fail with a message: what was given, what was expected, what to do."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from huggingface_hub.errors import HfHubHTTPError

from benchmarks import BENCHMARKS, DataUnavailable
from benchmarks.sources import HubTable, fetch_from_hub
from learners.console import expected_errors, report_errors
from learners.errors import CommandError
from learners.runs.training import main
from tests.conftest import ROOT
from tests.fakes import TOY, toy_load
from tools.cache import Answer, Cache

METHODS = ("learners.appo", "learners.grpo")


def refused(capsys, given, method="learners.appo"):
    """The message of a command that exits with 2, which never has a traceback."""
    with pytest.raises(SystemExit) as ended:
        main(method, given.split())
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2, said
    assert "Traceback" not in said
    return said


def ended_with(error, capsys, resumable=None):
    """Exit code and message of a command that an error ends."""
    with pytest.raises(SystemExit) as ended, report_errors("learners.x", ["--a", "b c"], resumable):
        raise error
    return ended.value.code, capsys.readouterr().err.strip()


def test_an_interrupt_says_how_to_resume_if_that_is_possible(capsys):
    whole = "Stopped. The run is resumable: python -m learners.x --a 'b c'"
    assert ended_with(KeyboardInterrupt(), capsys, "run") == (130, whole)
    assert ended_with(KeyboardInterrupt(), capsys) == (130, "Stopped.")


def test_expected_errors_become_one_line_and_others_are_raised(capsys):
    for kind in (*expected_errors(), *CommandError.__subclasses__()):
        assert ended_with(kind("this is why"), capsys) == (2, f"{kind.__name__}: this is why")
    with pytest.raises(ZeroDivisionError), report_errors("learners.x", []):
        raise ZeroDivisionError


def python(*arguments, **environment):
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    return run.returncode, run.stdout, " ".join(run.stderr.split())


@pytest.mark.parametrize("method", METHODS)
def test_help_names_every_field_and_imports_no_transformers(method):
    code = (
        f"import sys; from learners.runs.training import main\n"
        f"try: main({method!r}, ['--help'])\n"
        "finally: print('transformers' in sys.modules, 'datasets' in sys.modules)"
    )
    status, said, _ = python("-c", code, COLUMNS="200")
    assert status == 0
    assert said.endswith("False False\n")
    for words in ("--env", "--rollouts", "Environment id", "--learning-rate", "--train-on-test"):
        assert words in said
    assert f"usage: python -m {method}" in said


def test_a_command_without_its_error_shows_no_traceback():
    """Started as a person starts it; the tests below run the command in this process."""
    status, _, said = python("-m", "learners.appo", "--env", "appo/GSM8k-v0")
    assert status == 2
    assert said.endswith(
        "NameNotFound: Environment `GSM8k` doesn't exist in namespace appo. Did you mean: `GSM8K`?"
    )


def test_more_initial_rollouts_than_rollouts_are_refused(capsys, tmp_path):
    said = refused(capsys, f"--rollouts 4 --initial-rollouts 5 --out {tmp_path}/run")
    assert "--initial-rollouts 5 is more than --rollouts 4" in said


def test_an_unknown_environment_names_the_nearest(capsys, tmp_path):
    said = refused(capsys, f"--env appo/SyntheticQ-v0 --out {tmp_path}/run")
    assert "Did you mean: `SyntheticQA`?" in said
    assert not (tmp_path / "run").exists()


def test_an_environment_that_is_not_ours_is_refused(capsys, tmp_path):
    said = refused(capsys, f"--env CartPole-v1 --out {tmp_path}/run")
    assert "--env CartPole-v1 is not one of ours; expected appo/<Benchmark>-v0" in said


def test_test_rows_are_not_trained_on_by_accident(capsys, tmp_path):
    said = refused(capsys, f"--train-split test --out {tmp_path}/run")
    assert "--train-split test trains on the rows results are reported on" in said
    assert "add --train-on-test" in said


def test_a_missing_folder_is_named(capsys, tmp_path):
    said = refused(capsys, f"--model {tmp_path}/none --tools search --out {tmp_path}/run")
    assert said == f"ModelNotFound: --model {tmp_path}/none: there is no such folder"


def test_a_folder_without_a_model_says_what_a_model_may_be(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    said = refused(capsys, f"--model {tmp_path}/empty --tools search --out {tmp_path}/run")
    assert f"ModelNotFound: --model {tmp_path}/empty:" in said
    assert "Give smollm2" in said
    assert "a folder save_pretrained wrote, or a hub id within reach." in said


def test_a_data_folder_without_rows_says_where_they_belong(capsys, tmp_path):
    said = refused(capsys, f"--env appo/GSM8K-v0 --data-dir {tmp_path} --out {tmp_path}/run")
    assert f"no rows for train/gsm8k_train under --data-dir {tmp_path}" in said
    assert "Without --data-dir the public data set is read." in said


def test_a_benchmark_without_demonstrations_says_so(tmp_path):
    from learners.errors import UsageError
    from learners.sft.config import Config
    from learners.sft.training import cold_start

    config = Config.of(env="appo/HotpotQA-v0", out=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="HotpotQA-v0: this benchmark has no demonstrations"):
        cold_start(config)


REFUSED = {
    "--temperature 0": "--temperature 0: rollouts that are all the same teach nothing",
    "--temperature -1": "give more than 0 (--eval-temperature may be 0)",
    "--eval-temperature -0.1": "--eval-temperature is below 0; 0 is greedy",
    "--max-unavailable 1.5": "--max-unavailable is 1.5; expected a share from 0 to 1",
    "--prices search -1": "expected different tools, each with a price of 0 or more",
    "--prices search 1 search 2": "expected different tools, each with a price of 0 or more",
    "--run-cost 5": "--run-cost 5.0 needs --prices, as in --prices search 0.005",
    "--tools serch": "unknown tools ['serch']; expected some of",
    "--max-tool-calls -1": "max_tool_calls is -1; expected 0 or more",
    "--search local --corpus nowhere": "nowhere holds no index; make one with `python -m",
    "--search remote": "search='remote' takes the service's URL as corpus",
    "--search remote --corpus host": "'host' is no http or https address of a retrieval service",
    "--search web --corpus auto": "backend 'auto' is not the name of one engine",
    "--env appo/GSM8K-v0 --tools search --search local": "brings no corpus for search='local'",
}
"""Options and the error that they end in, before anything is opened or written."""


@pytest.mark.parametrize("given", REFUSED)
def test_unusable_options_are_refused_before_anything_is_written(capsys, tmp_path, given):
    said = refused(capsys, f"{given} --out {tmp_path}/run")
    assert REFUSED[given] in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", [*METHODS, "learners.sft"])
def test_every_command_that_plays_has_the_settings_of_gym_make(module):
    _, said, _ = python("-m", module, "--help", COLUMNS="200")
    for name in ("search", "corpus", "cache", "cache-mode", "max-tool-calls", "tools", "sandbox"):
        assert f"--{name} " in said


@pytest.mark.parametrize(
    ("given", "module", "extra"),
    [
        ("--tools search --search web", "ddgs", "web"),
        ("--tools search browse", "trafilatura", "web"),
        (
            "--tools search --search local --corpus {folder}/vectors",
            "sentence_transformers",
            "dense",
        ),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    capsys, tmp_path, monkeypatch, given, module, extra
):
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "appo-dense.json").write_text("{}")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "tools.extras.find_spec", lambda name: None if name == module else found(name)
    )
    said = refused(capsys, f"{given.format(folder=tmp_path)} --out {tmp_path}/run")
    command = f"pip install 'appo-gym[{extra}]'"
    assert said == f"UsageError: {module} is not installed; get it with `{command}`"


def test_a_gated_data_set_is_named_before_the_model_is_loaded(capsys, tmp_path, monkeypatch):
    """The training rows can be read, the test rows are gated: that is the only message."""

    def gated(split, data_dir=None):
        if split == "test":
            raise DataUnavailable("o/n is gated: accept its terms and set HF_TOKEN")
        return toy_load(split)

    monkeypatch.setitem(BENCHMARKS, "SyntheticQA", replace(TOY, load=gated))
    given = f"--model {tmp_path}/none --tools calculator --out {tmp_path}/run"
    said = refused(capsys, given)
    assert said == "DataUnavailable: o/n is gated: accept its terms and set HF_TOKEN"
    said = refused(capsys, f"{given} --eval-tasks 0")
    assert said.startswith("ModelNotFound: ")


def test_a_kernel_without_landlock_is_named_before_the_model_is_loaded(
    capsys, tmp_path, monkeypatch
):
    import sandlock

    monkeypatch.setattr(sandlock, "landlock_abi_version", lambda: 2)
    given = f"--model {tmp_path}/none --tools python --sandbox local --out {tmp_path}/run"
    said = refused(capsys, given)
    assert "ToolUnavailable: no sandbox can run Python code on this machine." in said
    assert "Landlock version 2" in said
    assert "Docker" in said


def test_a_replay_that_lacks_an_answer_stops_the_run(taught, capsys, tmp_path):
    """It is no outage, and a retry would not help: no tree is dropped and nothing is trained."""
    cache = Cache(tmp_path / "web.sqlite")
    cache.answer({"source": "remote", "query": "another", "k": 3}, lambda: Answer("[]"))
    cache.close()
    said = refused(capsys, outside(taught, tmp_path))
    assert f"ReplayMiss: {tmp_path}/web.sqlite holds no answer to " in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_whose_tools_fail_stops_with_a_report(taught, capsys, tmp_path):
    """There is no recording: every tree that searches loses its tools, more than a tenth."""
    said = refused(capsys, outside(taught, tmp_path) + " --max-unavailable 0.1")
    found = re.search(r"RunStopped: (\d+) of 3 trees of iteration 1 lost their tools", said)
    assert found, said
    assert int(found[1]) >= 1
    assert "more than --max-unavailable 0.1 allows: " in said
    assert f"{found[1]} x the cache {tmp_path}/web.sqlite is out of order" in said
    assert "run the same command: it resumes from the last checkpoint" in said
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
    main("learners.appo", (outside(taught, tmp_path) + " --max-unavailable 1").split())
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["tools/unavailable_trees"] == int(found[1])
    assert f"trees that lost their tools │ {found[1]} │" in " ".join(
        capsys.readouterr().out.replace("┃", "│").split()
    )
    assert 0 < line["tools/unavailable_after_0"] <= 1  # a calculator's calls were tried, too


def test_an_evaluation_whose_tools_fail_stops_the_run(taught, capsys, tmp_path):
    """Otherwise it would only count tasks that need no search."""
    given = outside(taught, tmp_path).replace("--eval-tasks 0", "--eval-tasks 6")
    said = refused(capsys, f"{given} --max-unavailable 0")
    assert re.search(r"RunStopped: \d of 6 tasks, before training, lost their tools", said), said
    assert not (tmp_path / "run" / "evaluation-before.json").exists()


def outside(model, folder):
    """A run of one iteration whose searches are answered by a recording only."""
    return (
        f"--model {model} --tools search calculator --prompts 3 --minibatch-prompts 1 --rollouts 4 "
        "--initial-rollouts 2 --iterations 1 --max-response-tokens 80 --eval-tasks 0 --threads 1 "
        f"--search remote --corpus http://127.0.0.1:1 --cache {folder}/web.sqlite "
        f"--cache-mode replay --out {folder}/run"
    )


OFFLINE = """
from learners.runs.training import main
import sys
for given in sys.argv[1].split(";"):
    try:
        main("learners.appo", [*given.split(), "--out", sys.argv[2]])
    except SystemExit as ended:
        print("exit", ended.code, file=sys.stderr)
"""


@pytest.mark.slow
def test_what_the_hub_would_have_to_give_is_named_when_it_is_out_of_reach(tmp_path):
    """A model, an open data set, and a benchmark whose training rows are a mixture."""
    commands = "--model nobody/nothing --tools search;--env appo/GSM8K-v0;--env appo/GAIA-v0"
    _, _, said = python(
        "-c", OFFLINE, commands, str(tmp_path / "run"), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
    )
    model, gsm8k, gaia, rest = said.split("exit 2")
    assert rest == ""
    assert "ModelNotFound: --model nobody/nothing: " in model
    assert "Give smollm2" in model
    assert "DataUnavailable: could not read openai/gsm8k (split train, revision " in gsm8k
    assert "Or read local files, layout in the README: --data-dir FOLDER." in gsm8k
    assert "could not read dongguanting/ARPO-RL-DeepSearch-1K" in gaia
    assert "Traceback" not in said


def test_an_error_of_the_hubs_http_library_is_data_unavailable():
    """The hub's client wraps error responses, but not failures to connect."""

    def load_dataset(*where, **how):
        raise HfHubHTTPError.__bases__[0]("no route to host")

    table = HubTable("o/n", "c0ffee" * 6 + "c0ff", "train", gated=True)
    with pytest.raises(DataUnavailable, match=r"no route to host.*accept its terms.*HF_TOKEN"):
        list(fetch_from_hub(table, load_dataset))
