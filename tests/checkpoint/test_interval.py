"""Saves between those of a recipe: Daly's optimum against the cost that it minimises, and what becomes of them."""

import math
import shutil
import threading
from types import SimpleNamespace

import pytest

from neox.checkpoint import interval
from neox.checkpoint.resume import take_over
from neox.checkpoint.saver import Saver
from neox.checkpoint.store import Store
from neox.config.errors import UserError
from neox.config.schema import CheckpointConfig
from neox.train.loop import Loop
from tests.checkpoint.pieces import full_tensors
from tests.checkpoint.ranks import run_ranks
from tests.checkpoint.test_saver import pieces_of


def time_per_work(interval_s, save_s, mtbf_s):
    """Daly 2006, equation 20: wall time per second of work, with failures at random and none while it restarts."""
    return mtbf_s / interval_s * (math.exp((interval_s + save_s) / mtbf_s) - 1)


@pytest.mark.parametrize(("save_s", "mtbf_s"), [(1, 1e5), (60, 1e5), (300, 6480), (60, 600), (500, 1200)])
def test_optimum_is_where_time_is_least(save_s, mtbf_s):
    best = time_per_work(interval.optimal_interval_s(save_s, mtbf_s), save_s, mtbf_s)
    tried = [mtbf_s * 1.01**-k for k in range(1500)]
    assert best <= min(time_per_work(one, save_s, mtbf_s) for one in tried) * 1.003


def test_intervals_of_the_literature():
    """Nodes that fail 6.5 times in 1000 node-days: minutes at 64 and 2048 of them, for saves of 1, 60, 300 s."""
    hours = 24 * 1000 / 6.5
    minutes = {n: [interval.optimal_interval_s(s, 3600 * hours / n) / 60 for s in (1, 60, 300)] for n in (64, 2048)}
    assert minutes[64] == pytest.approx([11, 83, 186], rel=0.05)
    assert minutes[2048] == pytest.approx([2, 15, 33], rel=0.15)
    assert interval.optimal_interval_s(300, 100) == 100


def test_due_by_the_clock_once_a_save_was_measured():
    clock = [0.0]
    passing = interval.Passing(CheckpointConfig(), 1e5, lambda: clock[0])
    due = []
    for clock[0] in (500, 601, 1000, 1300):
        due.append(passing.is_due((1.0, 3.0) if clock[0] == 1000 else (1.0, 600.0) if clock[0] == 1300 else None))
    assert due == [False, True, True, True]
    passing.saved_at = 1000
    assert not passing.is_due((1.0, 3.0)) and not passing.is_due((0.0, 200.0)), "never all the time"
    for off in (interval.Passing(CheckpointConfig(between="off"), 1e5), interval.Passing(CheckpointConfig(), None)):
        assert not off.is_on and not off.is_due(None)


def test_none_starts_while_one_is_written(tmp_path):
    """However long a save has been due: the next one's start would have training wait for the one before."""

    def train(ranks):
        saver, go = Saver(take_over(Store(tmp_path), ranks), ranks, CheckpointConfig(), print), threading.Event()
        passing = SimpleNamespace(is_on=True, is_due=lambda times: True)
        loop = SimpleNamespace(step=2, save_steps={4}, saver=saver, engine=ranks, passing=passing)
        saves = []
        loop.save = lambda is_passing=False: saves.append((loop.step, is_passing))
        saver.start(1, pieces_of(full_tensors(1), ranks), {"step": 1}, lambda: go.wait(60))
        Loop.save_if_due(loop)
        go.set()
        saver.wait()
        loop.step = 3
        Loop.save_if_due(loop)
        return saves

    assert run_ranks(train, 2) == [[(3, True)]] * 2


def test_failure_rate_is_the_launcher_s():
    assert interval.mtbf_s({}) is None and interval.mtbf_s({interval.VARIABLE: "2"}) == 7200
    for wrong in ("0", "soon"):
        with pytest.raises(UserError, match="NEOX_MTBF_H"):
            interval.mtbf_s({interval.VARIABLE: wrong})


def test_ranks_take_the_first_one_s_failure_rate(monkeypatch):
    """Or they would not all come to the collectives of a save."""
    known = iter([7200.0])
    monkeypatch.setattr(interval, "mtbf_s", lambda: next(known, None))
    assert run_ranks(interval.agreed_mtbf_s, 3) == [7200.0] * 3
    monkeypatch.undo()
    monkeypatch.setenv(interval.VARIABLE, "soon")
    assert ["NEOX_MTBF_H" in str(error) for error in run_ranks(interval.agreed_mtbf_s, 2)] == [True, True]


@pytest.mark.parametrize(("keep_last", "left"), [(None, [1, 4, 6, 7]), (1, [6, 7]), (2, [4, 6, 7])])
def test_passing_checkpoints_go_when_a_newer_one_stands(tmp_path, keep_last, left):
    def train(ranks):
        saver = Saver(take_over(Store(tmp_path), ranks), ranks, CheckpointConfig(keep_last=keep_last), print)
        for step, is_passing in ((1, False), (2, True), (3, True), (4, False), (5, True), (6, False), (7, True)):
            if step == 6:
                shutil.rmtree(tmp_path / "step_00000005")  # by hand: no reason to end a run
            state = {"step": step, "is_passing": is_passing}
            saver.start(step, pieces_of(full_tensors(step), ranks), state, lambda: None, is_passing)
            saver.wait()
        return saver.times, saver.passing

    ((times, passing),) = run_ranks(train)
    assert Store(tmp_path).steps() == left and passing == [7] and 0 <= times[0] <= times[1]
    assert Store(tmp_path).passing_steps() == [7], "what a start that follows goes on with"
