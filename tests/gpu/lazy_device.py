"""`LazyDevice`: the twin with streams that run as late, or in as odd an order, as they may.

On the twin all work is done when it is asked for, which hides what is missing: a stream that does
not wait for another one's event, pinned memory that the host writes before a copy has read it. Here
every stream is a queue. Work is done when something waits for it (`synchronize`, results on the
host without a stream, times), and no earlier; or, with a seed, also at random moments.
"""

from __future__ import annotations

from collections import deque
from functools import partial

import numpy as np

from sparsednn.gpu.twin import TwinDevice


class _Moment:
    """That a stream has come so far."""

    def __init__(self, queue):
        self.queue, self.reached = queue, False


class _Queue:
    """Work of a stream that has not been done."""

    def __init__(self):
        self.work = deque()

    def step(self):
        """Do the first thing; other streams first, if it is a wait for them."""
        what = self.work.popleft()
        if isinstance(what, _Moment):
            if what.queue is self:
                what.reached = True
            while not what.reached:
                what.queue.step()
        else:
            what()

    def drain(self):
        while self.work:
            self.step()


class _Event:
    def __init__(self):
        self.moment, self.times = None, [0.0]


class LazyDevice(TwinDevice):
    """See the module.

    Parameters
    ----------
    seed
        None: as late as possible. Otherwise some work is done at random moments.
    """

    name = "lazy NumPy twin"

    def __init__(self, seed=None, **given):
        super().__init__(**given)
        self._random = None if seed is None else np.random.default_rng(seed)
        self._default = _Queue()
        self._queues = [self._default]
        self.late = 0  # things that were not done at once

    def stream(self):
        self._queues.append(_Queue())
        return self._queues[-1]

    def _later(self, work, stream):
        (stream or self._default).work.append(work)
        self.late += 1
        while self._random is not None and self._random.random() < 0.5:
            queue = self._queues[self._random.integers(len(self._queues))]
            if queue.work:
                queue.step()

    def _do(self, work, stream):
        if stream is None or isinstance(stream, _Queue):
            self._later(partial(super()._do, work, None), stream)
        else:
            super()._do(work, stream)  # a capture

    def zeros(self, shape, dtype):
        self.synchronize()
        return super().zeros(shape, dtype)

    def upload(self, host, out=None, stream=None):
        if stream is None:
            self.synchronize()
            return super().upload(host, out)
        if out is None:
            out = self.empty(host.shape, host.dtype)
        self._later(partial(super().upload, host, out), stream)
        return out

    def download(self, array, out=None, stream=None):
        if stream is None:
            self.synchronize()
            return super().download(array, out)
        if out is None:
            out = np.empty(array.shape, array.dtype)
        self._later(partial(super().download, array, out), stream)
        return out

    def event(self):
        return _Event()

    def record(self, event, stream=None):
        queue = stream or self._default
        event.moment = _Moment(queue)
        event.times = [0.0]
        self._later(partial(super().record, event.times), queue)
        self._later(event.moment, queue)

    def wait(self, event, stream=None):
        if event.moment is not None:  # one that never happened is not waited for
            self._later(event.moment, stream)

    def _reach(self, moment):
        while not moment.reached:
            moment.queue.step()

    def seconds(self, start, end):
        self._reach(start.moment)
        self._reach(end.moment)
        return super().seconds(start.times, end.times)

    def synchronize(self, stream=None):
        for queue in self._queues if stream is None else [stream]:
            queue.drain()

    def replay(self, graph, stream=None):
        for work in graph:
            self._later(partial(super()._do, work, None), stream)
