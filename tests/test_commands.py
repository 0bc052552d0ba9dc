"""Commands that cannot do what they are asked: what was given, what was expected, what to do."""

import subprocess
import sys

import pytest
from huggingface_hub.errors import HfHubHTTPError

from benchmarks import DataUnavailable
from benchmarks.sources import HubTable, fetch_from_hub
from learners.training import main
from tests.conftest import ROOT

METHODS = ("learners.appo", "learners.grpo")


def refused(capsys, given, method="learners.appo"):
    """What a command says when it exits with 2; always a name of the error and no traceback."""
    with pytest.raises(SystemExit) as ended:
        main(method, given.split())
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2, said
    assert "Traceback" not in said
    return said


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
        f"import sys; from learners.training import main\n"
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
    """As a person starts it; the other errors are asked for in this process."""
    status, _, said = python("-m", "learners.appo", "--env", "appo/GSM8k-v0")
    assert status == 2
    assert said.endswith(
        "NameNotFound: Environment `GSM8k` doesn't exist in namespace appo. Did you mean: `GSM8K`?"
    )


def test_an_unknown_environment_names_the_nearest(capsys, tmp_path):
    said = refused(capsys, f"--env appo/SyntheticQ-v0 --out {tmp_path}/run")
    assert "Did you mean: `SyntheticQA`?" in said
    assert not (tmp_path / "run").exists()


def test_an_environment_of_others_is_refused(capsys, tmp_path):
    said = refused(capsys, f"--env CartPole-v1 --out {tmp_path}/run")
    assert "--env CartPole-v1 is not one of ours; expected appo/<Benchmark>-v0" in said


def test_test_rows_are_not_trained_on_by_accident(capsys, tmp_path):
    said = refused(capsys, f"--train-split test --out {tmp_path}/run")
    assert "--train-split test trains on the rows results are reported on" in said
    assert "add --train-on-test" in said


def test_a_folder_that_is_not_there_is_named(capsys, tmp_path):
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
    from learners.run_config import UsageError
    from learners.sft import Config, cold_start

    config = Config(env="appo/HotpotQA-v0", out=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="HotpotQA-v0: this benchmark has no demonstrations"):
        cold_start(config)


OFFLINE = """
from learners.training import main
import sys
for given in sys.argv[1].split(";"):
    try:
        main("learners.appo", [*given.split(), "--out", sys.argv[2]])
    except SystemExit as ended:
        print("exit", ended.code, file=sys.stderr)
"""


@pytest.mark.slow
def test_what_the_hub_would_have_to_give_is_named_when_it_is_out_of_reach(tmp_path):
    """A model, an open data set, a training mixture and, while it is evaluated, a gated one."""
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
    """Its client wraps the answers of the hub, not failures to reach it."""

    def load_dataset(*where, **how):
        raise HfHubHTTPError.__bases__[0]("no route to host")

    table = HubTable("o/n", "c0ffee", "train", gated=True)
    with pytest.raises(DataUnavailable, match=r"no route to host.*accept its terms.*HF_TOKEN"):
        list(fetch_from_hub(table, load_dataset))
