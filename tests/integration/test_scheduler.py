"""Jobs on slots: a failure costs one job, a warm process serves several, none outlives Ctrl-C."""

import os
import subprocess
import sys
import threading
import time

import pytest

from medvqa.config.errors import UserError
from medvqa.config.machine import process_environment
from medvqa.sweep.isolated import find_slots
from medvqa.sweep.job import CONSOLE, Job, State, Status, job_of_line, read_status
from medvqa.sweep.scheduler import Scheduler
from medvqa.sweep.worker_process import WorkerProcess
from tests.conftest import ROOT
from tests.faulty_worker import EXITS, HANGS, KILLED, LEAKS, NO_MEMORY, RAISES

WORKER = (sys.executable, "-m", "tests.faulty_worker")


def make_jobs(directory, *seeds, model="tiny", gpus=1):
    jobs = []
    for number, seed in enumerate(seeds):
        job = Job(
            number=number,
            overrides=(f"seed={seed}",),
            name=f"seed={seed}",
            directory=directory / f"job-{number}",
            config={
                "seed": seed,
                "model": model,
                "lora": {},
                "training": {"gradient_checkpointing": False, "engine": "plain", "gpus": gpus},
            },
            run_id=str(number),
            sweep=directory.name,
        )
        job.directory.mkdir(parents=True)
        jobs.append(job)
    return jobs


def scheduler(slots=("",), *, warm=False, timeout_s=None, fail_fast=False, show_change=None):
    show = show_change or (lambda job, status: None)
    return Scheduler(slots, warm, timeout_s, fail_fast, show, command=WORKER)


def states(statuses):
    return [statuses[number].state for number in sorted(statuses)]


def pids(jobs):
    return [(job.directory / "pid").read_text() for job in jobs]


@pytest.mark.parametrize("warm", [False, True])
def test_each_way_to_fail_costs_one_job(tmp_path, warm):
    jobs = make_jobs(tmp_path, 100, RAISES, 101, KILLED, 102, EXITS, 103, NO_MEMORY, 104)
    statuses = scheduler(warm=warm).run(jobs)
    assert states(statuses) == [
        State.finished, State.failed, State.finished, State.killed, State.finished,
        State.failed, State.finished, State.failed, State.finished,
    ]  # fmt: skip
    assert statuses[1].error == "ValueError: boom"
    assert statuses[3].error == "killed by SIGKILL; was the memory full?"
    assert statuses[3].exit_code == -9
    assert statuses[5].error == "left with exit code 3"
    assert statuses[7].error == "MemoryError: "
    assert "ValueError: boom" in (jobs[1].directory / CONSOLE).read_text()
    assert read_status(jobs[3].directory) == statuses[3]


def test_a_worker_that_dies_before_its_first_job_costs_no_job(tmp_path):
    jobs = make_jobs(tmp_path, 100, 101)
    plan = scheduler(["", ""])
    plan.early = [WorkerProcess("", WORKER, tmp_path / "early.log", num_slots=2) for _ in "12"]
    dead, alive = plan.early
    dead.end(now=True)
    assert states(plan.run(jobs)) == [State.finished, State.finished]
    assert str(alive.pid) in pids(jobs)


def test_a_job_that_hangs_is_ended(tmp_path):
    jobs = make_jobs(tmp_path, HANGS, 100)
    statuses = scheduler(timeout_s=3).run(jobs)
    assert states(statuses) == [State.timed_out, State.finished]
    assert statuses[0].error == "ran longer than 3 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids(jobs)[0]), 0)


def test_isolated_jobs_have_a_process_each_and_warm_ones_share(tmp_path):
    cold = make_jobs(tmp_path / "cold", 1, 2, 4)
    scheduler().run(cold)
    assert len(set(pids(cold))) == 3
    warm = make_jobs(tmp_path / "warm", 1, 2, 4)
    scheduler(warm=True).run(warm)
    assert len(set(pids(warm))) == 1


def test_a_warm_process_ends_after_a_failure_or_a_leak_or_another_model(tmp_path):
    jobs = make_jobs(tmp_path / "a", 1, RAISES, 2, LEAKS, 4)
    statuses = scheduler(warm=True).run(jobs)
    assert statuses[3].state is State.finished
    one, two, three, four, five = pids(jobs)
    assert (one == two, two == three, three == four, four == five) == (True, False, True, False)
    others = make_jobs(tmp_path / "b", 1, 2) + [
        Job(**{**vars(job), "number": 2 + job.number})
        for job in make_jobs(tmp_path / "c", 1, 2, model="other")
    ]
    others = [others[0], others[2], others[1], others[3]]
    scheduler(warm=True).run(others)
    first, second, third, fourth = pids(others)
    assert first == third != second == fourth


def test_two_gpus_take_two_jobs_at_a_time(tmp_path):
    jobs = make_jobs(tmp_path, *range(20, 26))
    running, most = set(), []
    lock = threading.Lock()

    def changed(job, status):
        with lock:
            (running.add if status.state is State.running else running.discard)(job.number)
            most.append(len(running))

    scheduler(("0", "3"), show_change=changed).run(jobs)
    assert max(most) == 2
    lines = [(job.directory / CONSOLE).read_text() for job in jobs]
    assert {line.rsplit(maxsplit=1)[-1] for line in lines} == {"0", "3"}


def test_a_job_on_two_gpus_takes_two_slots_and_is_never_warm(tmp_path):
    pairs = make_jobs(tmp_path / "two", 20, 21, 22, gpus=2)
    jobs = [*pairs, *(Job(**{**vars(j), "number": 9}) for j in make_jobs(tmp_path / "one", 23))]
    statuses = scheduler(("0", "3", "5"), warm=True).run(jobs)
    assert states(statuses) == [State.finished] * 4
    assert {statuses[job.number].slot for job in pairs} == {"0,3"}
    assert "on GPU 0,3" in (pairs[0].directory / CONSOLE).read_text()
    assert len(set(pids(pairs))) == 3
    with pytest.raises(UserError, match=r"training\.gpus=2 takes 2 slots, but there are 1"):
        scheduler(("",)).run(pairs)


def test_workers_share_the_cores_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(7))
    assert process_environment(2, gpus="1")["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert process_environment(2)["OMP_NUM_THREADS"] == "5"


def test_fail_fast_ends_the_others_so_that_they_can_go_on(tmp_path):
    jobs = make_jobs(tmp_path, HANGS, RAISES, 100)
    statuses = scheduler(("", ""), fail_fast=True).run(jobs)
    assert states(statuses) == [State.interrupted, State.failed, State.waiting]


def test_a_dead_launcher_takes_its_workers_along(tmp_path):
    (job,) = make_jobs(tmp_path, HANGS)
    code = (
        "from tests.integration.test_scheduler import *; "
        f"scheduler().run([job_of_line({job.as_line()!r})])"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not (job.directory / "pid").is_file() or not (job.directory / "pid").read_text():
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(int(pids([job])[0]), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


def test_a_launcher_that_dies_as_it_hands_out_a_job_leaves_no_worker_with_it(tmp_path):
    for number in range(5):  # one would often be right by chance
        (job,) = make_jobs(tmp_path / str(number), HANGS)
        worker = subprocess.run(
            WORKER, cwd=ROOT, input=f"{job.as_line()}\n", text=True, timeout=60, check=False
        )
        assert worker.returncode == 1


def test_a_damaged_status_counts_as_waiting(tmp_path):
    (job,) = make_jobs(tmp_path, 1)
    for text in ("", "{", "[]", '{"state": "asleep"}'):
        (job.directory / "status.json").write_text(text)
        assert read_status(job.directory) == Status(state=State.waiting)
    assert job_of_line(job.as_line()) == job


def test_slots_are_gpus_or_processors(monkeypatch):
    assert find_slots(3) == ["", "", ""]
    assert find_slots([1, 2]) == ["1", "2"]
    for slots in (0, "all", []):
        with pytest.raises(UserError, match="slots must be auto"):
            find_slots(slots)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_slots("auto") == [""]
