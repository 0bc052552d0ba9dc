"""The viewer's page is self-contained, and a run's text enters it only as data."""

import json
import re
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest

from learners.errors import RolloutFileError
from learners.policy.loading import load_model
from learners.rollouts.storage import write_rollouts
from learners.view.__main__ import Options, main, write_page
from learners.view.data import collect_page_data
from learners.view.page import ASSETS, SCRIPTS, build_page, build_security_policy, escape_json
from learners.view.server import make_server, read_update
from tests.view_fakes import HOSTILE, write_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewed") / "run"
    write_run(folder)
    return folder


def data_of(html):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(text)


def test_a_page_holds_whole_trees(run_folder, tmp_path):
    path = write_page(Options(run_folder, (1,), tmp_path / "view.html"))
    data = data_of(path.read_text(encoding="utf-8"))
    assert (data["method"], data["env"], data["done"], data["planned"]) == (
        "learners.appo",
        "appo/SyntheticQA-v0",
        2,
        3,
    )
    (shown,) = data["iterations"]
    assert shown["number"] == 1
    root, branch = shown["trees"][0]["trajectories"][:2]
    assert "".join(root["tokens"]).startswith("<search> Milo</search>")
    assert branch["parent"] == 0
    assert branch["position"] == 2
    assert branch["tokens"] == ["!</search>", "</answer>"]
    assert (branch["entropy"], branch["exact"]) == (0.25, False)  # one number where all are equal
    assert branch["reward"] == 1.0
    assert [turn["tool"] for turn in root["turns"]] == ["search", None]
    assert data["totals"]["ledger/sampled_tokens"] == 60


def test_by_default_the_last_iteration_is_shown(run_folder, tmp_path):
    html = write_page(Options(run_folder, out=tmp_path / "v.html")).read_text(encoding="utf-8")
    assert [one["number"] for one in data_of(html)["iterations"]] == [1]


def test_text_of_a_run_is_data_and_nothing_else(run_folder, tmp_path):
    """The run wrote `</script>`, comments and handlers; the page has no markup of them."""
    html = build_page(collect_page_data(run_folder, (0,), 10**6))
    assert HOSTILE not in html
    assert html.count("<script") == 2
    assert html.count("</script") == 2
    assert "<img" not in html
    questions = [tree["question"] for tree in data_of(html)["iterations"][0]["trees"]]
    assert HOSTILE in questions


def test_escaped_json_reads_back_as_it_was():
    data = {"text": "</script><!-- & \u2028 {{SCRIPT}} ü"}
    assert json.loads(escape_json(data)) == data
    assert not set("<>&\u2028\u2029") & set(escape_json(data))


def test_a_placeholder_in_the_text_of_a_run_changes_no_part_of_the_page(run_folder):
    plain = build_page({"text": "x"})
    filled = build_page({"text": "{{SCRIPT}}{{STYLE}}"})
    assert filled.replace("{{SCRIPT}}{{STYLE}}", "x") == plain


def test_the_security_policy_admits_this_script_and_this_style_alone(run_folder):
    html = build_page(None)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    script = re.findall(r"<script>(.*?)</script>", html, re.S)[0]
    style = re.findall(r"<style>(.*?)</style>", html, re.S)[0]
    assert policy == build_security_policy(script, style, live=True)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "connect-src" not in build_security_policy(script, style, live=False)


def test_the_script_never_reads_text_as_markup():
    for name in SCRIPTS:
        text = (ASSETS / name).read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
            assert word not in text, name
        assert not re.search(r"https?://(?!www\.w3\.org)", text), name
        assert len(text.splitlines()) < 300


def test_trees_beyond_the_limit_are_left_out_and_counted(run_folder):
    whole = collect_page_data(run_folder, (0,), 10**6)["iterations"][0]
    size = len(json.dumps(whole["trees"][0], ensure_ascii=False).encode())
    part = collect_page_data(run_folder, (0,), size)["iterations"][0]
    assert (len(whole["trees"]), whole["leftOut"]) == (2, 0)
    assert (len(part["trees"]), part["leftOut"]) == (1, 1)


def test_a_restricted_task_is_shown_without_its_text(tmp_path, taught):
    from tests.tree_fakes import grow, new_tree

    tree = new_tree()
    grow(tree, (2, 1), (1, 0), reward=1.0)
    tree.task = replace(tree.task, restricted=True)
    write_rollouts(tmp_path, 0, [tree], load_model(str(taught)).tokenizer)
    (tmp_path / "config.json").write_text('{"method": "learners.grpo"}')
    (shown,) = collect_page_data(tmp_path, (0,), 10**6)["iterations"]
    assert shown["trees"][0]["question"] is None
    assert shown["trees"][0]["trajectories"][0]["tokens"] == ["▯"] * 4


def test_metrics_that_are_not_finite_stay_out_of_the_page(run_folder, tmp_path):
    """JSON has no NaN."""
    line = {"iteration": 0, "reward/mean": float("nan"), "ledger/tool_calls": 2}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "config.json").write_text('{"method": "learners.grpo"}')
    data = collect_page_data(tmp_path, (), 10**6)
    assert data["totals"] == {"ledger/tool_calls": 2}
    assert "NaN" not in build_page(data)


def test_a_run_or_iteration_that_does_not_exist_is_named(tmp_path, capsys, run_folder):
    for arguments, message in (
        ([str(tmp_path)], "holds no rollouts/*.parquet; give the folder of a run"),
        ([str(run_folder), "--iterations", "7"], "no rollouts of iteration 7"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_the_command_says_where_the_page_is_and_how_large(run_folder, tmp_path, capsys):
    main([str(run_folder), "--out", str(tmp_path / "v.html")])
    output = capsys.readouterr().out
    assert output.startswith(f"{tmp_path}/v.html (0.")
    assert (tmp_path / "v.html").exists()


@contextmanager
def serving(folder):
    server = make_server(folder, "127.0.0.1", 0, 10**6)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fetch(address, host=None):
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_live_page_is_sent_the_trees_that_it_does_not_show(run_folder):
    with serving(run_folder) as address:
        status, html = fetch(f"{address}/")
        assert status == 200
        assert data_of(html) is None
        assert "connect-src 'self'" in html
        new = json.loads(fetch(f"{address}/data.json?since=0")[1])
        assert [one["number"] for one in new["iterations"]] == [1]
        old = json.loads(fetch(f"{address}/data.json?since=1")[1])
        assert old["iterations"] == []
        assert old["done"] == 2
        assert len(old["curves"]["reward/mean"]) == 2


def test_trees_are_not_served_before_their_metrics_are_written(tmp_path):
    write_run(tmp_path, iterations=2)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    assert read_update(tmp_path, -1, 10**6)["iterations"][0]["number"] == 0
    assert read_update(tmp_path, 0, 10**6)["iterations"] == []


def test_a_server_answers_no_other_request(run_folder, tmp_path):
    with serving(run_folder) as address:
        assert fetch(f"{address}/config.json")[0] == 404
        assert fetch(f"{address}/../config.json")[0] == 404
        assert fetch(f"{address}/data.json", host="evil.example")[0] == 403
        assert fetch(f"{address}/data.json", host="localhost")[0] == 200
        assert fetch(f"{address}/data.json?since=x")[0] == 200
    with serving(tmp_path) as address:
        assert fetch(f"{address}/data.json") == (
            404,
            f"{tmp_path} holds no config.json; give the folder of a run",
        )


def test_a_taken_port_is_named(run_folder):
    with serving(run_folder) as address, pytest.raises(RolloutFileError, match="give --port"):
        make_server(run_folder, "127.0.0.1", int(address.rpartition(":")[2]), 1)
