"""The page of prompts and limits says what the code does."""

from benchmarks import BENCHMARKS
from envs import ToolEnv
from scripts.benchmarks_page import build_page, main
from tests.conftest import ROOT

WRITTEN = (ROOT / "docs/benchmarks.md").read_text("utf-8")


def test_the_page_is_what_its_command_writes(tmp_path):
    main([str(tmp_path / "page.md")])
    written = (tmp_path / "page.md").read_text("utf-8")
    assert written == WRITTEN, "run python -m scripts.benchmarks_page docs/benchmarks.md"


def test_every_id_stands_on_it_with_its_limits_and_its_prompt():
    for name, record in BENCHMARKS.items():
        (line,) = [
            row for row in build_page().splitlines() if row.startswith(f"| appo/{name}-v0 | ")
        ][:1]
        assert f"| {record.max_tool_calls} | {record.max_response_tokens:,} |" in line
        assert ", ".join(record.tools) in line
        assert ToolEnv(name).instructions in WRITTEN
