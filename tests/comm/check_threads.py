"""Checks of `threads_per_rank` on the cores that there are."""

from __future__ import annotations

import os

import pytest

from sparsednn.comm import threads


def check_cores_of_the_node_are_divided(world):
    cores = sorted(os.sched_getaffinity(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "quota_cores", lambda: None)
        assert threads.threads_per_rank(world) == max(1, len(cores) // world.size)
        # As a launcher does that binds: the union of all ranks' cores counts, not one rank's.
        mine = cores[world.rank % len(cores)]
        used = min(world.size, len(cores))
        try:
            os.sched_setaffinity(0, {mine})
            assert threads.threads_per_rank(world) == max(1, used // world.size)
        finally:
            os.sched_setaffinity(0, cores)


def check_masks_of_large_nodes(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "quota_cores", lambda: None)
        # Masks of different lengths that meet in core 0: 15 for each rank, and 0.
        mine = {0} | {1 + 100 * world.rank + core for core in range(15)}
        patch.setattr(os, "sched_getaffinity", lambda _: mine)
        assert threads.threads_per_rank(world) == (15 * world.size + 1) // world.size


def check_quota_cuts(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
        patch.setattr(threads, "quota_cores", lambda: 9 if world.rank == 0 else 12)
        assert threads.threads_per_rank(world) == 9 // world.size
        patch.setattr(threads, "quota_cores", lambda: 1)
        assert threads.threads_per_rank(world) == 1
