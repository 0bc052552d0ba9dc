"""Cleaning up after cells removes all of their files and nothing else."""

import os

import pytest

from tools.repl import jobs


@pytest.fixture
def outside(tmp_path):
    """A folder of the host that must survive, with its mode."""
    folder = tmp_path / "outside"
    folder.mkdir(mode=0o755)
    (folder / "file").write_text("file")
    yield folder
    assert (folder / "file").read_text() == "file"
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_folder_goes_with_links_closed_folders_and_great_depth(tmp_path, outside):
    top = tmp_path / ".~state"
    (top / "shut" / "inside").mkdir(parents=True)
    (top / "shut" / "inside" / "file").write_text("x")
    (top / "link").symlink_to(outside)
    (top / "shut" / "link").symlink_to(outside)
    (top / "shut" / "inside").chmod(0)
    (top / "shut").chmod(0)
    deep = os.open(top, os.O_RDONLY)
    for _level in range(1200):
        os.mkdir("d" * 200, dir_fd=deep)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    jobs.remove_folder(str(top))
    assert not top.exists()


def test_an_evicted_state_leaves_the_folders_of_those_that_live(tmp_path):
    top = tmp_path / ".~state"
    (top / ".~child").mkdir(parents=True)
    (top / ".~child" / "file").write_text("x")
    (top / "own").mkdir()
    (top / "file").write_text("x")
    jobs.clear_folder(str(top))
    assert [path.name for path in top.iterdir()] == [".~child"]
    assert (top / ".~child" / "file").read_text() == "x"


@pytest.mark.parametrize("act", [jobs.remove_folder, jobs.clear_folder])
def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path, outside, act):
    (tmp_path / ".~state").symlink_to(outside)
    act(str(tmp_path / ".~state"))
    (tmp_path / ".~parent").symlink_to(tmp_path)
    act(str(tmp_path / ".~parent" / ".~state"))


def test_a_folder_swapped_for_a_link_between_two_looks_is_not_followed(
    tmp_path, outside, monkeypatch
):
    top = tmp_path / ".~state"
    (top / "victim").mkdir(parents=True)
    open_folder = jobs._open_folder

    def swap(parent_fd, name):
        if name == "victim" and not (top / "victim").is_symlink():
            (top / "victim").rename(top / "away")
            (top / "victim").symlink_to(outside)
        return open_folder(parent_fd, name)

    monkeypatch.setattr(jobs, "_open_folder", swap)
    jobs.remove_folder(str(top))
    assert not top.exists()
