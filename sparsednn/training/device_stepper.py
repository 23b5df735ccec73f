"""`DeviceStepper`: steps of SGD on a GPU; the interface is `training.stepper.Stepper`.

On one rank all kernels of a step — images in, forward, loss, backward, gradients, norm, update, the
transposed weights anew — are captured as a graph once and replayed for every step. What differs
from step to step (how many images, which ones, the learning rate) is uploaded in front of it as one
small array, and one small array comes back: loss, correct images, norm. A batch that is larger than
the buffers (`engine.tile` images) goes through in pieces, each a replay of a graph without the
update, which is a graph of its own then.

A loss or norm that is no finite number stops the update on the device itself, so nothing has been
changed when the host learns of it.

With data groups gradients are added up through the host. With several ranks in a group the passes
wait for messages, so they are launched kernel by kernel, and the loss is the host's
(`training.losses`): its sums need all ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import UsageError
from sparsednn.gpu.device import Array, Event, Stream
from sparsednn.gpu.launcher import THREADS
from sparsednn.gpu.orders import Result
from sparsednn.training.data import LocalExamples
from sparsednn.training.device_data import ResidentInputs, ResidentTargets
from sparsednn.training.device_engine import DeviceEngine
from sparsednn.training.losses import Score, loss_gradient, score
from sparsednn.training.optimizers import SGD, Adam
from sparsednn.training.stepper import Stepper

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.training.optimizers import Optimizer

__all__ = ["MANY_THREADS", "DeviceStepper"]

#: Partial sums of the norm: one for each block, so it belongs to the result.
_NORM_BLOCKS = 512
#: Outputs from which on a tile's loss is worth a block of the largest size.
_MANY_OUTPUTS, MANY_THREADS = 256, 1024


class DeviceStepper(Stepper):
    """What changes a `DeviceEngine`'s parameters; parameters as for `Stepper`."""

    engine: DeviceEngine

    def __init__(
        self,
        engine: DeviceEngine,
        group: Communicator,
        across: Communicator,
        *,
        rows: NDArray[np.int32],
        n_out: int,
        loss: str,
        optimizer: Optimizer,
        clip: float | None = None,
    ) -> None:
        super().__init__(
            engine, group, across, rows=rows, n_out=n_out, loss=loss, optimizer=optimizer, clip=clip
        )  # fmt: skip
        if not isinstance(optimizer, SGD | Adam):
            raise UsageError(f"--optimizer {optimizer.name} is none that the GPU knows")
        self._device = engine.device
        self._squares = self._device.zeros(_NORM_BLOCKS, np.float64)
        self._find_functions(optimizer)
        self._clock = _Clock(engine)

    def _find_functions(self, optimizer: Optimizer) -> None:
        find, width = self._device.function, self._n_out
        self._loss_threads = THREADS if width < _MANY_OUTPUTS else MANY_THREADS
        name = "squares" if self._loss == "mse" else "cross_entropy"
        self._loss_kernel = find("losses", name, THREADS=self._loss_threads)
        self._add_scores = find("losses", "add_scores", THREADS=THREADS)
        self._update, self._norm, self._add_squares = (
            find("updates", name, THREADS=THREADS)
            for name in (f"update_{optimizer.name}", "squared_norm", "add_squares")
        )

    def _make_slots(self) -> dict[str, NDArray[Any]]:
        return {}  # they are the engine's

    @property
    def slots(self) -> dict[str, NDArray[Any]]:
        """The optimizer's arrays: copies."""
        arrays = self.engine.parameters.slots
        return {name: self.engine.device.download(array) for name, array in arrays.items()}

    def restore(self, name: str, flat: NDArray[Any]) -> None:
        """See `Stepper.restore`."""
        array = self.engine.parameters.slots[name]
        self._device.upload(np.asarray(flat, np.float32), out=array)

    # Steps ----------------------------------------------------------------------------------

    def train(
        self,
        examples: LocalExamples,
        ids: NDArray[np.int64],
        batch: int,
        *,
        rate: float,
        step: int,
    ) -> Score:
        """Do one step; see `Stepper.train`."""
        if self._group.size > 1:
            return self._train_together(examples, ids, batch, rate=rate, step=step)
        engine, pieces = self.engine, self._pieces(ids)
        numbers = {
            "factor": 2.0 / (self._n_out * batch) if self._loss == "mse" else 1.0 / batch,
            "clip": self._clip or 0.0,
            "scale": 1.0,
            **self._rates(rate, step),
        }
        whole = len(pieces) == 1 and ids.size > 0 and self._across.size == 1
        for number, piece in enumerate(pieces):
            with self._clock.measure("copies"):
                engine.give_orders(piece, number > 0, **numbers)
            if piece.size:
                self._replay(examples, train=True, update=whole)
            else:
                self._no_images()
        total = Score()
        if self._across.size > 1:  # what this group has found is not all
            total = self._of_all_groups(self._results(ids.size))
            with self._clock.measure("copies"):
                engine.finish_gradient()
            self._check_loss(total, step, rate)
        if not whole:
            self._replay_update()
        own = self._results(ids.size)
        if self._across.size == 1:
            total = own
        self._check_loss(total, step, rate)
        self._scale(step, rate)  # made on the device; here it tells whether the norm is a number
        return total

    def evaluate(self, examples: LocalExamples, ids: NDArray[np.int64]) -> Score:
        """Score of images; see `Stepper.evaluate`."""
        engine, total = self.engine, Score()
        pieces = self._pieces(ids)
        for number, piece in enumerate(pieces):
            with self._clock.measure("copies"):
                engine.give_orders(piece, number > 0)
            if self._group.size == 1 and piece.size:
                self._replay(examples, train=False, update=False)
            elif self._group.size > 1:
                total += score(
                    self._loss, engine.last_activation, self._forward(examples, piece),
                    self._targets(examples, piece), self._rows, self._n_out, self._group,
                )  # fmt: skip
        if self._group.size == 1 and ids.size:
            total = self._results(ids.size)
        self._clock.collect()
        return self._of_all_groups(total)

    def _rates(self, rate: float, step: int) -> dict[str, float]:
        """Orders that depend on the step, see `optimizers`."""
        if not isinstance(self._optimizer, Adam):
            return {"rate": rate}
        adam = self._optimizer
        return {
            "rate": rate / (1 - adam.beta1**step),
            "correction": float(np.sqrt(1 - adam.beta2**step)),
        }

    def _results(self, images: int) -> Score:
        """Download the score of what has been launched; waits for it."""
        engine = self.engine
        results = engine.tiles.host_results
        with self._clock.measure("copies"):
            self._device.download(engine.tiles.results, out=results, stream=engine.stream)
        self._device.synchronize(engine.stream)
        self._clock.collect()
        return Score(float(results[Result.LOSS]), int(results[Result.CORRECT]), images)

    def _squared_norm(self) -> float:
        return float(self.engine.tiles.host_results[Result.SQUARED_NORM])

    def _no_images(self) -> None:
        """What a piece without images leaves: a gradient and a score of zero."""
        engine = self.engine
        self._device.fill_zero(engine.parameters.gradient, engine.stream)
        self._device.fill_zero(engine.tiles.results, engine.stream)
        engine.note_columns(0)

    # Graphs ---------------------------------------------------------------------------------

    def _replay(self, examples: LocalExamples, *, train: bool, update: bool) -> None:
        """A piece: forward pass and loss; gradients, if `train`; and all of a step, if `update`."""
        engine = self.engine
        images = engine.examples.inputs(examples.inputs)
        targets = engine.examples.targets(examples, self._n_out)
        key = (train, update, id(images), id(targets))
        if key not in engine.graphs:

            def work(stream: Stream) -> None:
                engine.passes.forward(images, 0, stream)
                self._launch_loss(targets, train, stream)
                if train:
                    engine.passes.backward(0, stream)
                if update:
                    self._launch_update(stream)

            engine.passes.loader(images)
            # The owners of these addresses stay as long as the graph.
            engine.graphs[key] = self._device.capture(work), images, targets
        self._launch_graph(engine.graphs[key][0])
        engine.note_columns(int(engine.tiles.host_orders[0]))

    def _replay_update(self) -> None:
        graphs = self.engine.graphs
        if "update" not in graphs:
            graphs["update"] = self._device.capture(self._launch_update)
        self._launch_graph(graphs["update"])

    def _launch_graph(self, graph: Any) -> None:
        with self._clock.measure("device"):
            self._device.replay(graph, self.engine.stream)

    def _launch_loss(self, targets: ResidentTargets, train: bool, stream: Stream) -> None:
        engine, tiles = self.engine, self.engine.tiles
        code, low, high = engine.limits[-1]
        lines = np.int32(engine.n_rows)
        softmax = np.int32(engine.last_activation.kind == "softmax")
        arguments = (
            tiles.activations[-1], tiles.deltas[0] if train else None, targets.labels,
            targets.values, tiles.orders, lines, lines, lines, np.int32(code), np.float32(low),
            np.float32(high), *((softmax,) if self._loss == "mse" else ()), tiles.scores,
        )  # fmt: skip
        blocks = min(tiles.tiles, 2 * self._device.multiprocessors)
        self._device.launch(self._loss_kernel, blocks, self._loss_threads, arguments, stream=stream)
        self._device.launch(
            self._add_scores, 1, THREADS, (tiles.scores, tiles.orders, tiles.results),
            stream=stream,
        )  # fmt: skip

    def _launch_norm(self, stream: Stream) -> None:
        engine, results = self.engine, self.engine.tiles.results
        gradient = engine.parameters.gradient
        self._device.launch(
            self._norm, _NORM_BLOCKS, THREADS,
            (gradient, np.int64(gradient.size), self._squares), stream=stream,
        )  # fmt: skip
        self._device.launch(
            self._add_squares, 1, THREADS, (self._squares, np.int32(_NORM_BLOCKS), results),
            stream=stream,
        )  # fmt: skip

    def _launch_update(self, stream: Stream) -> None:
        """Norm, update, and the transposed product's weights."""
        engine, optimizer = self.engine, self._optimizer
        p = engine.parameters
        if self._clip is not None and self._group.size == 1:
            self._launch_norm(stream)
        vectors = p.theta.size // 4
        slots: list[Array | None] = [p.slots[name] for name in optimizer.slots]
        constants: list[Any]
        if isinstance(optimizer, Adam):
            one, two = optimizer.beta1, optimizer.beta2
            constants = [one, 1 - one, two, 1 - two, optimizer.epsilon]
            constants = [np.float32(number) for number in constants]
        else:
            assert isinstance(optimizer, SGD)
            slots = slots or [None]
            constants = [np.float32(optimizer.momentum), np.int32(optimizer.nesterov)]
        arguments = (
            p.theta, p.gradient, *slots, engine.tiles.orders, engine.tiles.results,
            np.int64(vectors), np.float32(optimizer.weight_decay), *constants,
        )  # fmt: skip
        engine.passes.start(self._update, vectors, arguments, stream)
        engine.passes.refresh(stream)

    # Several ranks in a group ---------------------------------------------------------------

    def _train_together(
        self,
        examples: LocalExamples,
        ids: NDArray[np.int64],
        batch: int,
        *,
        rate: float,
        step: int,
    ) -> Score:
        engine, total = self.engine, Score()
        for number, piece in enumerate(self._pieces(ids)):
            with self._clock.measure("copies"):
                engine.give_orders(piece, number > 0)
            y = self._forward(examples, piece)
            found, delta = loss_gradient(
                self._loss, engine.last_activation, y, self._targets(examples, piece), self._rows,
                self._n_out, batch, self._group,
            )  # fmt: skip
            total += found
            if self._across.size == 1:  # otherwise others would wait for this group's sums
                self._check_loss(total, step, rate)
            if not piece.size:
                self._no_images()
                continue
            with self._clock.measure("copies"):
                engine.load_delta(delta)
            with self._clock.measure("device"):
                engine.passes.backward(piece.size, engine.stream)
        with self._clock.measure("copies"):
            engine.finish_gradient()
        total = self._of_all_groups(total)
        self._check_loss(total, step, rate)
        self._device.fill_zero(engine.tiles.results, engine.stream)
        scale = 1.0
        if self._clip is not None:
            self._launch_norm(engine.stream)
            self._results(0)
            scale = self._scale(step, rate)
        nothing = np.zeros(0, np.int64)
        engine.give_orders(nothing, False, scale=scale, **self._rates(rate, step))
        self._replay_update()
        self._clock.collect()
        return total

    def _forward(self, examples: LocalExamples, piece: NDArray[np.int64]) -> NDArray[np.float32]:
        """Own outputs of images, on the host."""
        engine = self.engine
        images: ResidentInputs = engine.examples.inputs(examples.inputs)
        if piece.size:
            with self._clock.measure("device"):
                engine.passes.forward(images, int(piece.size), engine.stream)
        return engine.outputs(int(piece.size))


class _Clock:
    """Adds up what the device has spent, by events on the engine's stream."""

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine
        self._free: list[Event] = []
        self._open: list[tuple[str, Event, Event]] = []

    def measure(self, name: str) -> _Measured:
        """What is launched within the block counts as `name`."""
        return _Measured(self, name)

    def mark(self) -> Event:
        """Record an event."""
        event = self._free.pop() if self._free else self._engine.device.event()
        self._engine.device.record(event, self._engine.stream)
        return event

    def add(self, name: str, start: Event, end: Event) -> None:
        """Count the time between two events, when it is known."""
        self._open.append((name, start, end))

    def collect(self) -> None:
        """Wait for all that was measured, and add it up."""
        for name, start, end in self._open:
            self._engine.seconds[name] += self._engine.device.seconds(start, end)
            self._free += [start, end]
        self._open.clear()


class _Measured:
    """A block of launches between two events."""

    def __init__(self, clock: _Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._start = self._clock.mark()

    def __exit__(self, *failed: object) -> None:
        if failed[0] is None:
            self._clock.add(self._name, self._start, self._clock.mark())
