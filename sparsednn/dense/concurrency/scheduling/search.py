"""A search for algorithms, parts and order of all tasks together.

A solution is a choice for each task and a priority; free lanes take what has the highest priority
(`simulate.dispatch`), so whatever a move does, the result is a schedule within the limit. Moves
give a task another choice, put it in front of or behind another one, or pair two tasks that do not
need each other and suit each other on two lanes: neither cut, and one right behind the other.
Worse solutions are taken with a probability that falls (simulated annealing: Kirkpatrick, Gelatt
and Vecchi, Science 220, 1983). What is best in the end is polished as queues: neighbours on a lane
change places, parts change lanes; so a lane may also wait for something better.

The same seed gives the same schedule, unless the time ran out.

Must not know: memory beyond the workspace limit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from math import exp, inf
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.profile import Profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.assemble import assemble
from sparsednn.dense.concurrency.scheduling.engine import slowdown
from sparsednn.dense.concurrency.scheduling.listing import WEIGHTS, list_run, ranks
from sparsednn.dense.concurrency.scheduling.problem import Problem
from sparsednn.dense.concurrency.scheduling.serial import serial, serial_choices
from sparsednn.dense.concurrency.scheduling.simulate import Run, dispatch, work_off
from sparsednn.dense.concurrency.tasks import TaskGraph

__all__ = ["Budget", "improved", "search"]

#: Temperatures, as shares of the pass: one in three moves that cost so much is taken.
_HOT, _COLD = 3e-3, 3e-5

#: Share of the evaluations that goes to polishing.
_POLISH = 0.25


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search may take: evaluations, and seconds, whichever ends first."""

    evaluations: int = 4000
    seconds: float = 10.0


def search(
    tasks: TaskGraph,
    profile: Profile,
    *,
    workspace_limit: int | None = None,
    seed: int = 0,
    budget: Budget | None = None,
) -> Schedule:
    """Return the best schedule found; never one predicted slower than the serial and list ones.

    Parameters
    ----------
    workspace_limit
        Bytes at one time; None: any number.
    seed
        Of the moves.
    budget
        How long to look.

    Raises
    ------
    InputError
        If the profile lacks a task.
    UsageError
        If the limit is too small for a task.
    """
    problem = Problem(tasks, profile, workspace_limit)
    known = [serial(problem, "best"), serial(problem, "one"), serial(problem, "all")]
    for weight in WEIGHTS:
        run = list_run(problem, weight)
        known.append(assemble(problem, run.chosen, run.queues(profile.lanes), "list"))
    return improved(problem, known, seed, budget or Budget())


def improved(problem: Problem, known: list[Schedule], seed: int, budget: Budget) -> Schedule:
    """Return the best of a search and of schedules that are known, as a search's result."""
    found = _Search(problem, seed, budget).run()
    lanes = problem.profile.lanes
    results = [assemble(problem, run.chosen, run.queues(lanes), "search") for run in found]
    best = min([*results, *known], key=lambda schedule: schedule.seconds)
    return best if best.name == "search" else _renamed(best)


def _renamed(schedule: Schedule) -> Schedule:
    return replace(schedule, name="search")


@dataclass
class _Solution:
    chosen: NDArray[np.int64]
    priority: NDArray[np.float64]
    run: Run


class _Search:
    """State of one search."""

    def __init__(self, problem: Problem, seed: int, budget: Budget) -> None:
        self.problem, self.budget = problem, budget
        self.random = random.Random(seed)
        self.stop_at = monotonic() + budget.seconds
        self.evaluations = 0
        self.free = [
            task for task in range(len(problem.names)) if len(problem.choices_of(task)) > 1
        ]
        self.unrelated = _unrelated(problem)

    def run(self) -> list[Run]:
        """Return the best runs by annealing, and by polishing."""
        starts = self._starts()
        best = self._annealed(min(starts, key=lambda start: start.run.seconds))
        polished = self._polished(best.run)
        return [polished, best.run]

    def _starts(self) -> list[_Solution]:
        problem = self.problem
        rank = ranks(problem)
        serially = np.arange(len(problem.names), 0, -1.0)
        runs = [(rank, list_run(problem, weight)) for weight in WEIGHTS]
        for parts in ("best", "one", "all"):
            chosen = serial_choices(problem, parts)
            runs += [(each, dispatch(problem, chosen, each)) for each in (rank, serially)]
        self.evaluations += len(runs)
        return [_Solution(run.chosen, priority, run) for priority, run in runs]

    def _over(self, share: float) -> bool:
        """Whether a share of the evaluations, or the time, is used up."""
        if self.evaluations >= share * self.budget.evaluations:
            return True
        return self.evaluations % 16 == 0 and monotonic() > self.stop_at

    # -- choices and priorities ------------------------------------------------------------------

    def _annealed(self, start: _Solution) -> _Solution:
        now = best = start
        share = 1 - _POLISH
        while self.unrelated and not self._over(share) and best.run.seconds > 0:
            moved = self._moved(now)
            self.evaluations += 1
            done = self.evaluations / (share * self.budget.evaluations)
            heat = _HOT * (_COLD / _HOT) ** done * best.run.seconds
            worse = moved.run.seconds - now.run.seconds
            if worse <= 0 or self.random.random() < exp(-worse / heat):
                now = moved
                if now.run.seconds < best.run.seconds:
                    best = now
        return best

    def _moved(self, solution: _Solution) -> _Solution:
        chosen, priority = solution.chosen.copy(), solution.priority
        kind = self.random.random()
        if kind < 0.4 and self.free:
            task = self.random.choice(self.free)
            others = [each for each in self.problem.choices_of(task) if each != chosen[task]]
            chosen[task] = self.random.choice(others)
        elif kind < 0.7 or not self.problem.profile.lanes > 1:
            priority = self._shifted(priority)
        else:
            priority = self._paired(solution.run, chosen, priority)
        return _Solution(chosen, priority, dispatch(self.problem, chosen, priority))

    def _shifted(self, priority: NDArray[np.float64]) -> NDArray[np.float64]:
        """Put a task right in front of an unrelated one, or behind it."""
        task = self.random.choice(list(self.unrelated))
        return _beside(priority, task, self.random.choice(self.unrelated[task]), self.random)

    def _paired(
        self, run: Run, chosen: NDArray[np.int64], priority: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Put the best of some unrelated tasks beside one, and cut neither of them."""
        task = self.random.choice(list(self.unrelated))
        others = self.unrelated[task]
        sample = self.random.sample(others, min(len(others), 6))
        own = self._whole(task)
        start = run.start[self.problem.arrays.slot_of[task]]

        def regret(other: int) -> float:
            """What is lost by slow-downs, by the longer one's rest, and by moving it far."""
            choice = self._whole(other)
            arrays = self.problem.arrays
            first = arrays.seconds[own] * slowdown(arrays, own, choice)
            second = arrays.seconds[choice] * slowdown(arrays, choice, own)
            lost = abs(first - second) + first + second
            lost -= arrays.seconds[own] + arrays.seconds[choice]
            return float(lost + 0.1 * abs(run.start[arrays.slot_of[other]] - start))

        other = min(sample, key=regret)
        chosen[task], chosen[other] = own, self._whole(other)
        return _beside(priority, other, task, self.random)

    def _whole(self, task: int) -> int:
        """The quickest choice that does not cut a task, or cuts it least."""
        choices = self.problem.choices

        def key(choice: int) -> tuple[int, float]:
            return choices[choice].algorithm.parts, choices[choice].seconds

        return min(self.problem.choices_of(task), key=key)

    # -- queues ----------------------------------------------------------------------------------

    def _polished(self, best: Run) -> Run:
        lanes = self.problem.profile.lanes
        queues = best.queues(lanes)
        filled = [lane for lane in range(lanes) if queues[lane]]
        while filled and not self._over(1.0):
            moved = [list(queue) for queue in queues]
            source = self.random.choice([lane for lane in range(lanes) if queues[lane]])
            at = self.random.randrange(len(moved[source]))
            if lanes > 1 and self.random.random() < 0.5:
                lane = self.random.choice([lane for lane in range(lanes) if lane != source])
                slot = moved[source].pop(at)
                # Where it would start: the other lane's part of then, or near it.
                starts = best.start[slot]
                place = sum(bool(best.start[other] < starts) for other in moved[lane])
                place += self.random.choice((-1, 0, 0, 1))
                moved[lane].insert(max(place, 0), slot)
            elif at + 1 < len(moved[source]):
                queue = moved[source]
                queue[at], queue[at + 1] = queue[at + 1], queue[at]
            else:
                self.evaluations += 1
                continue
            self.evaluations += 1
            run = work_off(self.problem, best.chosen, moved)
            if run.seconds <= best.seconds and run.seconds < inf:
                best, queues = run, moved
        return best


def _beside(
    priority: NDArray[np.float64], task: int, other: int, dice: random.Random
) -> NDArray[np.float64]:
    """Give a task the priority right above or below another one's."""
    places = np.argsort(priority)
    moved = places[places != task].tolist()
    moved.insert(moved.index(other) + dice.randrange(2), task)
    found = np.empty(len(moved))
    found[moved] = np.arange(1.0, len(moved) + 1)
    return found


def _unrelated(problem: Problem) -> dict[int, list[int]]:
    """Of each task, those that neither need it nor are needed by it; none without any."""
    arrays, tasks = problem.arrays, len(problem.names)
    related = [1 << task for task in range(tasks)]
    for task in range(tasks):
        for before in arrays.before[arrays.before_ptr[task] : arrays.before_ptr[task + 1]]:
            related[task] |= related[before]
    above = list(related)
    for task in range(tasks):
        for other in range(task):
            if above[task] >> other & 1:
                related[other] |= 1 << task
    found = {
        task: [other for other in range(tasks) if not related[task] >> other & 1]
        for task in range(tasks)
    }
    return {task: others for task, others in found.items() if others}
