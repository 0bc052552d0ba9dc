"""Which tasks of an evaluation are played together, and that it changes no episode."""

from dataclasses import replace

import torch

from benchmarks import Task
from envs import ToolEnv
from learners.evaluate.backends import CHUNK, LocalBackend, group_by_length
from learners.evaluate.episodes import Job
from learners.policy.loading import LoadedModel, load_model
from tests.fakes import TOY, EchoTool


def job(index):
    return Job(Task(str(index), "q", ("a",)), 0)


def shapes(lengths, rows):
    """(rows, indices) of every group."""
    groups = group_by_length([job(index) for index in range(len(lengths))], lengths, rows)
    return [(group.rows, [int(job.task.id) for job in group.jobs]) for group in groups]


def test_one_long_task_does_not_make_all_rows_attend_over_its_length():
    """Usual 500, so 1000 is free; 7000 in n rows costs n * 49e6, and 50e6 is allowed: n = 1.

    2000 in n rows costs n * 4e6: 12 of them, as 50 is halved.
    """
    lengths = [500, 7000, 450, 2000, 1000, 500, 500]
    assert shapes(lengths, 50) == [(1, [1]), (12, [3]), (50, [4, 0, 5, 6, 2])]


def test_tasks_of_like_length_keep_all_rows_and_their_order():
    assert shapes([300, 310, 300, 590], 8) == [(8, [3, 1, 0, 2])]
    assert shapes([], 8) == []


def test_every_job_is_in_one_group_and_no_group_is_larger_than_a_chunk():
    lengths = [300 + 17 * (index % 90) ** 2 for index in range(2 * CHUNK + 7)]
    found = shapes(lengths, 64)
    assert sorted(index for _, indices in found for index in indices) == list(range(len(lengths)))
    assert all(len(indices) <= CHUNK for _, indices in found)
    usual = 2 * sorted(lengths)[(len(lengths) - 1) // 2]
    for rows, indices in found:
        longest = max(lengths[index] for index in indices)
        assert rows == 1 or rows * longest**2 <= 64 * usual**2


def test_episodes_do_not_depend_on_what_is_played_together():
    """In float64 a row's tokens are the same whatever stands beside it; one question is long."""
    torch.set_num_threads(1)
    questions = ["Who?", "Where is it?", "Why " * 300, "When was that?", "What is 4 + 4?"]
    tasks = [Task(str(index), question, ("a",)) for index, question in enumerate(questions)]
    benchmark = replace(TOY, load=lambda split, data_dir: tasks)
    env = ToolEnv(benchmark, tools=(EchoTool("search"),))
    loaded = load_model("tiny")
    loaded = LoadedModel(loaded.model.to(torch.float64), loaded.tokenizer)
    jobs = [Job(task, sample) for sample in range(2) for task in tasks]

    def played(rows, jobs):
        kept = []
        LocalBackend(loaded, 1.0, 0, rows).play(env, jobs, 12, kept.append)
        return {(episode.task, episode.sample): episode for episode in kept}

    together = played(8, jobs)
    assert together == played(1, jobs[::-1])
    assert len(together) == len(jobs)
    assert all(episode.tokens > 0 for episode in together.values())
