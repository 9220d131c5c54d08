"""A run that hangs is ended in time, names the rank that hangs, and goes on as if it had not hung."""

import ctypes
import gzip
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.waiting import Waiting
from runtime.run_folder.stragglers import straggler_now, straggler_summary, stragglers
from runtime.train.watchdog import RankNote, diagnosis, place_of
from specs.exit_codes import HUNG, OK
from specs.profile_window import ProfileWindow
from specs.record import Incident, Order, Start
from specs.run import RunSpec
from tests.support import samples
from tests.support.training import Ranks, corpus, opened, order, outcome, tiny_run

LIMIT_S = 2.0
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def run(home: Path) -> RunSpec:
    return tiny_run(corpus(home), steps=60)


def watched(how: Order, **changes: Any) -> Order:
    execution = how.execution.model_copy(update={"hang_timeout_s": LIMIT_S} | changes)
    return how.model_copy(update={"execution": execution})


def at_step(number: int, act: Callable[[], None]) -> None:
    """From now on, this process does something at the beginning of a step."""
    from runtime.train.worker import RankWorker

    accumulate = RankWorker.accumulate_gradients

    def accumulate_gradients(self: RankWorker, step: int, skipped: Any) -> torch.Tensor:
        if step == number:
            act()
        return accumulate(self, step, skipped)

    RankWorker.accumulate_gradients = accumulate_gradients  # type: ignore[method-assign]


def _stop_rank_1() -> None:
    if os.environ["RANK"] == "1":
        at_step(30, lambda: os.kill(os.getpid(), signal.SIGSTOP))


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_which_goes_on_to_the_same_bytes(
    home: Path, tmp_path: Path, run: RunSpec
) -> None:
    how = watched(order(run, dp=2, every_steps=10))
    folder = opened(tmp_path, run, how)
    ranks = Ranks(folder, home / "data", 2, _stop_rank_1)
    ranks.processes[0].join(60)
    assert ranks.processes[0].exitcode == HUNG
    ranks.kill()
    log = (folder.log / "rank-0.txt").read_text()
    last = log.splitlines()[-1]
    where = r"rank 0 waits in model/\w+\.py:\d+, \w+ on axis (dp|world)"
    stuck = rf"HangError: no sign of life for \S+ s after step 29: rank 1 on {HOST} does not answer; {where}"
    assert re.fullmatch(stuck, last)
    assert 'File "' in log  # stacks
    incident = folder.records()[-1]
    assert isinstance(incident, Incident)
    assert (incident.what, incident.step) == ("hung", 29)
    assert Ranks(folder, home / "data", 2).join() == [OK, OK]
    whole = opened(tmp_path / "whole", run, how)
    assert Ranks(whole, home / "data", 2).join() == [OK, OK]
    assert outcome(folder) == outcome(whole)
    assert [line.from_step for line in folder.records() if isinstance(line, Start)] == [0, 20]


def _sleep_at_30() -> None:
    at_step(30, lambda: time.sleep(100))


def _hold_the_lock_at_30() -> None:
    from runtime.train import watchdog

    watchdog._LOCKED_S = 0.5
    at_step(30, lambda: ctypes.PyDLL(None).sleep(100))


@pytest.mark.slow
def test_a_process_that_is_stuck_alone_says_where(home: Path, tmp_path: Path, run: RunSpec) -> None:
    folder = opened(tmp_path, run, watched(order(run)))
    assert Ranks(folder, home / "data", 1, _sleep_at_30).join() == [HUNG]
    last = (folder.log / "rank-0.txt").read_text().splitlines()[-1]
    assert f"after step 29: rank 0 on {HOST} is stuck in runtime/train/loop.py:" in last


@pytest.mark.slow
def test_a_thread_that_never_lets_others_run_ends_the_run_too(
    home: Path, tmp_path: Path, run: RunSpec
) -> None:
    folder = opened(tmp_path, run, watched(order(run)))
    assert Ranks(folder, home / "data", 1, _hold_the_lock_at_30).join() == [1]
    assert "Timeout (" in (folder.log / "rank-0.txt").read_text()


def _write_slowly() -> None:
    from runtime.train import async_checkpoint

    stage = async_checkpoint.stage

    def slow(*arguments: Any) -> None:
        time.sleep(1.5 * LIMIT_S)
        stage(*arguments)

    async_checkpoint.stage = slow  # type: ignore[assignment]


@pytest.mark.slow
def test_a_slow_disk_and_a_suspended_machine_are_no_hangs(home: Path, tmp_path: Path, run: RunSpec) -> None:
    folder = opened(tmp_path, run, watched(order(run, dp=2)))
    ranks = Ranks(folder, home / "data", 2, _write_slowly)
    while not folder.metrics_jsonl.exists():
        time.sleep(0.01)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in ranks.processes:
            os.kill(process.pid or 0, number)
        time.sleep(1.5 * LIMIT_S if number == signal.SIGSTOP else 0)
    assert ranks.join() == [OK, OK]
    assert not any(isinstance(line, Incident) for line in folder.records())


def test_who_hangs_is_told_from_what_the_ranks_say() -> None:
    hosts = ["a1", "a1", "a2", "a2", "a3", "a3"]
    waiting = RankNote(7, "dp", "model/buckets.py:98, reduce_scatter_gradients")
    busy = RankNote(7, "", "runtime/data/batches.py:10, read")
    rest = f"; rank 0 waits in {waiting.place} on axis dp"
    assert diagnosis(dict.fromkeys((0, 1, 2, 4, 5), waiting), hosts) == f"rank 3 on a2 does not answer{rest}"
    notes = dict.fromkeys(range(6), waiting)
    assert diagnosis(notes | {4: busy}, hosts) == f"rank 4 on a3 is stuck in {busy.place}{rest}"
    assert diagnosis({5: waiting}, hosts) == (
        "ranks 0 on a1, 1 on a1, 2 on a2, 3 on a2 and 1 more do not answer; "
        f"rank 5 waits in {waiting.place} on axis dp"
    )
    behind = notes | {2: waiting._replace(step=6)}
    assert diagnosis(behind, hosts) == f"rank 2 on a2 waits in {waiting.place} on axis dp"
    assert re.fullmatch(r"runtime/train/watchdog.py:\d+, place_of", place_of(threading.get_ident()))


def _slow_rank_1() -> None:
    if os.environ["RANK"] == "1":
        for step in range(1, 61):
            at_step(step, lambda: time.sleep(0.06))


@pytest.mark.slow
def test_a_slow_rank_is_named_by_its_own_work(home: Path, tmp_path: Path) -> None:
    run = tiny_run(
        corpus(home), steps=20, model=samples.model(width=64, heads=4, kv_heads=2, ffn=128, context=32)
    )
    folder = opened(tmp_path, run, order(run, dp=2))
    assert Ranks(folder, home / "data", 2, _slow_rank_1).join() == [OK, OK]
    (line,) = folder.ranks()
    assert line.hosts == (HOST, HOST)
    assert (line.step, line.steps) == (20, 20)
    assert min(line.peak_memory_bytes) > 10e6
    assert line.busy_s[1] > 0.06  # rank 1 sleeps so long in each step, and rank 0 waits for it
    assert line.step_s[0] > 0.06
    starts = [one for one in folder.records() if isinstance(one, Start)]
    named = straggler_now(folder.newest_ranks(), starts)
    assert named is not None
    assert (named.rank, named.host) == (1, HOST)
    assert named.slower > 1.5
    (summary,) = straggler_summary(folder.ranks(), starts)
    assert summary.startswith(f"rank 1 on {HOST} computes ")
    assert summary.endswith(" times as long as its peers in 100% of the timed steps")


def test_peers_are_the_ranks_of_one_stage() -> None:
    layout = samples.layout(dp=2, pp=2, tp=2)
    busy_s = [1.0, 1.0, 2.0, 2.0, 1.0, 1.3, 2.0, 2.0]  # the second stage computes twice as long, as planned
    line = samples.rank_line(10, busy_s, [2.0 - one for one in busy_s])
    (one,) = stragglers(line, layout)
    assert str(one) == "rank 5 on n2 computes 1.3 times as long as its peers"
    assert stragglers(samples.rank_line(10, [1.0, 1.19], [0.2, 0.0]), samples.layout(dp=2)) == []
    assert stragglers(samples.rank_line(10, [1e-5, 1e-4], [0.2, 0.0]), samples.layout(dp=2)) == []  # noise
    assert stragglers(samples.rank_line(10, [3.0, 1.0], [0.0, 0.0]), samples.layout(pp=2)) == []  # no peers


@pytest.mark.slow
def test_profiled_steps_give_a_trace(home: Path, tmp_path: Path, run: RunSpec) -> None:
    folder = opened(tmp_path, run, watched(order(run), profile=ProfileWindow(steps=(3, 4))))
    assert Ranks(folder, home / "data").join() == [OK]
    trace = folder.path / "profile" / "rank-0-steps-3-4.json.gz"
    with gzip.open(trace) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::mm" in names or "aten::addmm" in names
    assert f"profile of steps 3 to 4: {trace}" in (folder.log / "rank-0.txt").read_text()


def test_waits_are_counted_once_and_by_axis() -> None:
    waiting = Waiting()
    with waiting.on("tp"), waiting.on("world"):
        time.sleep(0.01)
        assert waiting.now == "tp"
    assert waiting.now == ""
    taken = waiting.take()
    assert list(taken) == ["tp"]
    assert 0.01 <= taken["tp"] < 1
    assert waiting.take() == {}
    assert waiting.ended == 1
