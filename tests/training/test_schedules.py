"""Schedules: written forms, rates step by step, and PyTorch's schedulers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.errors import UsageError
from sparsednn.training.schedules import Schedule

factors = st.floats(min_value=0, max_value=1, exclude_min=True)
warm_ups = st.floats(min_value=0, max_value=1e6, allow_nan=False)
schedules = st.one_of(
    st.builds(Schedule, st.sampled_from(["constant", "cosine"]), warm_up=warm_ups),
    st.builds(Schedule, st.just("step"), st.integers(1, 10**6), factors, warm_ups),
)


@settings(deadline=None)
@given(schedules)
def test_the_written_form_is_read_back(schedule: Schedule) -> None:
    assert Schedule.parse(str(schedule)) == schedule
    plain = str(replace(schedule, warm_up=0.0))
    assert Schedule.parse(plain, warm_up=schedule.warm_up) == schedule


def test_constant() -> None:
    schedule = Schedule.parse("constant")
    assert str(schedule) == "constant"
    assert {schedule.rate(0.25, step, 3, 12) for step in range(20)} == {0.25}


def test_step_counts_whole_epochs() -> None:
    schedule = Schedule.parse("step:2,0.5")
    rates = [schedule.rate(8.0, step, 3, 15) for step in range(15)]
    assert rates == [8.0] * 6 + [4.0] * 6 + [2.0] * 3


def test_cosine_ends_at_zero_and_stays_there() -> None:
    schedule = Schedule.parse("cosine")
    rates = [schedule.rate(2.0, step, 5, 10) for step in range(13)]
    assert rates[0] == 2.0
    assert rates[5] == pytest.approx(1.0)
    assert all(after < before for before, after in itertools.pairwise(rates[:11]))
    assert rates[10:] == [0.0] * 3


@pytest.mark.parametrize("text", ["constant", "cosine"])
def test_warm_up_is_linear_up_to_the_base(text: str) -> None:
    schedule = Schedule.parse(text, warm_up=0.4)
    rates = [schedule.rate(3.0, step, 10, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([0.75, 1.5, 2.25, 3.0, 3.0])
    if text == "cosine":
        # Half a cosine over the 16 steps that follow.
        assert rates[4 + 8] == pytest.approx(1.5)
        assert schedule.rate(3.0, 20, 10, 20) == 0.0


def test_warm_up_of_a_step_schedule_scales_what_the_steps_give() -> None:
    schedule = Schedule.parse("step:1,0.5", warm_up=2)
    rates = [schedule.rate(8.0, step, 2, 8) for step in range(8)]
    assert rates == [2.0, 4.0, 3.0, 4.0, 2.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("total", [1, 3, 4])
def test_a_warm_up_as_long_as_the_training(total: int) -> None:
    schedule = Schedule.parse("cosine", warm_up=2)
    rates = [schedule.rate(4.0, step, 2, total) for step in range(total)]
    assert rates == [1.0, 2.0, 3.0, 4.0][:total]


@settings(deadline=None)
@given(schedules, st.integers(0, 400), st.integers(1, 50), st.integers(1, 400))
def test_rates_are_from_zero_to_the_base(
    schedule: Schedule, step: int, steps_per_epoch: int, steps_total: int
) -> None:
    assert 0 <= schedule.rate(1.0, step, steps_per_epoch, steps_total) <= 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("linear", "unknown schedule 'linear'"),
        ("", "unknown schedule ''"),
        ("step", "not understood"),
        ("step:3", "not understood"),
        ("step:3,0.1,5", "not understood"),
        ("step:1.5,0.1", "not understood"),
        ("step:0,0.1", "EPOCHS must be at least 1, found 0"),
        ("step:3,0", "FACTOR must be above 0 and at most 1, found 0.0"),
        ("step:3,1.5", "FACTOR must be above 0 and at most 1, found 1.5"),
        ("step:3,nan", "FACTOR must be above 0"),
        ("cosine:3", "cosine takes no numbers"),
        ("constant:", "constant takes no numbers"),
        ("cosine+warm-up:x", "not understood"),
        ("cosine+warm-up:-1", "--warm-up must be 0 epochs or more, found -1.0"),
    ],
)
def test_what_is_no_schedule(text: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        Schedule.parse(text)


def test_numbers_that_do_not_belong() -> None:
    with pytest.raises(UsageError, match="--warm-up must be"):
        Schedule.parse("cosine", warm_up=math.inf)
    with pytest.raises(UsageError, match="given twice"):
        Schedule.parse("cosine+warm-up:1", warm_up=1)
    with pytest.raises(UsageError, match="takes neither EPOCHS nor FACTOR"):
        Schedule("cosine", epochs=3)


@pytest.mark.parametrize("text", ["step:2,0.3", "cosine"])
def test_as_pytorch(text: str) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0")
    per_epoch, total, base = 7, 42, 0.3
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = torch.optim.lr_scheduler
    theirs = (
        scheduler.CosineAnnealingLR(optimizer, total)
        if text == "cosine"
        else scheduler.StepLR(optimizer, 2 * per_epoch, 0.3)
    )
    for step in range(total + 1):
        ours = Schedule.parse(text).rate(base, step, per_epoch, total)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-10, abs=1e-16)
        optimizer.step()
        theirs.step()
