"""Checks of `together`: ranks fail one at a time, all alike, all different."""

from __future__ import annotations

import numpy as np
import pytest

from sparsednn.comm.failure import together
from sparsednn.errors import FormatError, ShapeError, SparseDNNError, UsageError


def stage(world, error, name="stage"):
    """A stage that fails on this rank, or does not (None)."""
    with together(world, name):
        if error is not None:
            raise error


class OwnError(ShapeError):
    """A kind that sparsednn.errors does not have."""


def check_nobody_fails(world):
    before = world.traffic.rows()
    with together(world, "stage"):
        pass
    assert world.traffic.rows() == before


def check_one_rank_fails(world):
    """Each in turn; then the world still works."""
    alone = world.size == 1
    for failing in range(world.size):
        prefix = "" if alone else f"rank {failing}: "
        for raised, kind, text in (
            (FormatError("a.tsv, line 3: größe"), FormatError, "a.tsv, line 3: größe"),
            (OwnError("wrong"), OwnError if alone else ShapeError, "wrong"),
            (ValueError("bad\nnumber"), SparseDNNError, "reading: ValueError: bad number"),
            (OSError(), SparseDNNError, "reading: OSError"),
        ):
            before = world.traffic.rows()
            with pytest.raises(SparseDNNError) as caught:
                stage(world, raised if world.rank == failing else None, "reading")
            assert type(caught.value) is kind
            assert str(caught.value) == prefix + text
            if world.rank == failing:
                assert raised in (caught.value, caught.value.__cause__)
            total = np.array([1])
            assert world.traffic.rows() == before
            world.allreduce(total)
            assert total[0] == world.size


def check_all_fail_alike(world):
    error = UsageError("no model given")
    with pytest.raises(UsageError) as caught:
        stage(world, error)
    assert caught.value is error
    with pytest.raises(SparseDNNError) as plain:
        stage(world, KeyError("x"))
    assert str(plain.value) == "stage: KeyError: 'x'"


def check_all_fail_in_different_ways(world):
    """The lowest rank's error wins."""
    with pytest.raises(SparseDNNError) as caught:
        stage(world, UsageError("first") if world.rank == 0 else FormatError(f"{world.rank}"))
    assert type(caught.value) is UsageError
    assert str(caught.value) == ("first" if world.size == 1 else "rank 0: first")
    if world.size > 1:  # the same words, but another class
        with pytest.raises(UsageError, match=r"^rank 0: same$"):
            stage(world, UsageError("same") if world.rank == 0 else FormatError("same"))


def check_some_fail(world):
    if world.size < 3:
        return
    with pytest.raises(FormatError, match=r"^rank 1: same$"):
        stage(world, FormatError("same") if world.rank > 0 else None)


def check_ranks_are_those_of_the_program(world):
    """And not those within a group, where a stage of a group stands in one of all."""
    if world.size < 3:
        return
    group = world.split(world.rank % 2)
    with pytest.raises(FormatError, match=r"^rank 2: deep$"), together(world, "outer"):
        stage(group, FormatError("deep") if world.rank == 2 else None)
    group.free()


def check_interrupts_pass(world):
    """Without a collective: otherwise the ranks that are not interrupted would be out of step."""
    for interrupt in (KeyboardInterrupt, SystemExit):
        with pytest.raises(interrupt):
            stage(world, interrupt())
    world.barrier()


def check_nested(world):
    with pytest.raises(FormatError) as caught, together(world, "outer"):
        stage(world, FormatError("deep") if world.rank == world.size - 1 else None)
    expected = "deep" if world.size == 1 else f"rank {world.size - 1}: deep"
    assert str(caught.value) == expected
