"""cuDNN's ways to do a convolution: all plans of a graph, each with its workspace.

Written from the interface of nvidia-cudnn-frontend 1.32 (``cudnn.pygraph``). Operands are given by
address: the frontend then asks no array how it lies, and none waits for another stream (as DLPack's
exchange may, which a capture forbids). Channels of a larger tensor are operands as they lie: their
strides are told. A handle for each stream; plans are shared.

Must not know: tasks, schedules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sparsednn.dense.local.base import Pads, Pair

__all__ = ["Convolved", "CudnnPlans", "Plan"]

#: Operation to (method of the graph, names of its inputs).
_OPERATIONS: Final = {
    "forward": ("conv_fprop", ("image", "weight")),
    "input": ("conv_dgrad", ("loss", "filter")),
    "kernel": ("conv_wgrad", ("image", "loss")),
}


@dataclass(frozen=True, slots=True)
class Convolved:
    """A convolution, or one of its gradients.

    Attributes
    ----------
    operation
        "forward" (x, kernel → y), "input" (dy, kernel → dx) or "kernel" (x, dy → dkernel).
    shapes, strides
        Of the two inputs and the output; strides in elements.
    dtype
        "float32" or "float64".
    stride, pads, dilation
        As `LocalBackend` has them.
    """

    operation: str
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    strides: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    dtype: str
    stride: Pair
    pads: Pads
    dilation: Pair


@dataclass(frozen=True, slots=True)
class Plan:
    """One of cuDNN's ways.

    Attributes
    ----------
    name
        cuDNN's: the engine and its knobs.
    index
        In its graph.
    workspace
        Bytes.
    """

    name: str
    index: int
    workspace: int


@dataclass(frozen=True, slots=True)
class _Built:
    graph: Any
    operands: tuple[Any, Any, Any]
    plans: tuple[Plan, ...]


class CudnnPlans:
    """Graphs of convolutions, each built once, with all their plans.

    Parameters
    ----------
    cudnn
        The module.
    xp
        CuPy: whose current stream counts.
    most
        Plans of one convolution, the first in the order of cuDNN's heuristics.

    Attributes
    ----------
    refused
        Plans that could not be built, with the reason.

    Notes
    -----
    As in `local.cudnn`, engines that sum in an order that may change or that round float32 (TF32)
    are left out.
    """

    def __init__(self, cudnn: Any, xp: Any, most: int = 8) -> None:
        self._cudnn, self._xp, self._most = cudnn, xp, most
        self._handles: dict[int, Any] = {}
        self._graphs: dict[Convolved, _Built | None] = {}
        self.refused: list[tuple[Convolved, str]] = []

    def of(self, convolved: Convolved) -> tuple[Plan, ...]:
        """Return the plans that there are; none where cuDNN has no engine."""
        if convolved not in self._graphs:
            self._graphs[convolved] = self._build(convolved)
        built = self._graphs[convolved]
        return () if built is None else built.plans

    def run(
        self, convolved: Convolved, plan: Plan, addresses: tuple[int, int, int], workspace: int
    ) -> None:
        """Queue a plan on the current stream; operands and workspace are addresses."""
        built = self._graphs[convolved]
        assert built is not None  # it has a plan
        built.graph.execute_plan_at_index(
            dict(zip(built.operands, addresses, strict=True)), workspace, plan.index, self._handle()
        )

    def close(self) -> None:
        """Let graphs and handles go; a second time does nothing."""
        self._graphs.clear()
        while self._handles:
            self._cudnn.destroy_handle(self._handles.popitem()[1])

    def _handle(self) -> Any:
        """The current stream's."""
        stream = int(self._xp.cuda.get_current_stream().ptr)
        if stream not in self._handles:
            handle = self._cudnn.create_handle()
            self._cudnn.set_stream(handle=handle, stream=stream)
            self._handles[stream] = handle
        return self._handles[stream]

    def _build(self, what: Convolved) -> _Built | None:
        cudnn = self._cudnn
        dtype = getattr(cudnn.data_type, {"float32": "FLOAT", "float64": "DOUBLE"}[what.dtype])
        graph = cudnn.pygraph(
            name=f"sparsednn_{what.operation}",
            io_data_type=dtype,
            intermediate_data_type=dtype,
            compute_data_type=dtype,
            handle=self._handle(),
        )
        method, names = _OPERATIONS[what.operation]
        inputs = [
            graph.tensor(name=name, dim=list(shape), stride=list(strides), data_type=dtype)
            for name, shape, strides in zip(names, what.shapes[:2], what.strides[:2], strict=True)
        ]
        top, left, bottom, right = what.pads
        output = getattr(graph, method)(
            **dict(zip(names, inputs, strict=True)),
            pre_padding=[top, left],
            post_padding=[bottom, right],
            stride=list(what.stride),
            dilation=list(what.dilation),
        )
        output.set_output(True).set_data_type(dtype).set_dim(list(what.shapes[2]))
        output.set_stride(list(what.strides[2]))
        notes = cudnn.numerical_note
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            graph.deselect_numeric_notes(
                [
                    notes.NONDETERMINISTIC,
                    notes.TENSOR_CORE,
                    notes.DOWN_CONVERT_INPUTS,
                    notes.REDUCED_PRECISION_REDUCTION,
                ]
            )
            graph.check_support()
        except cudnn.cudnnGraphNotSupportedError as error:
            self.refused.append((what, str(error)))
            return None
        plans = self._plans(graph, what)
        return _Built(graph, (inputs[0], inputs[1], output), plans) if plans else None

    def _plans(self, graph: Any, what: Convolved) -> tuple[Plan, ...]:
        """Build one plan after the other: to build all at once ends at the first deselected one."""
        found: dict[str, Plan] = {}
        for index in range(graph.get_execution_plan_count()):
            if len(found) == self._most:
                break
            try:
                graph.build_plan_at_index(index)
            except (self._cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
                # RuntimeError is what a deselected plan raises.
                self.refused.append((what, f"plan {index}: {error}"))
                continue
            name = str(graph.get_plan_name_at_index(index))
            workspace = int(graph.get_workspace_size_plan_at_index(index))
            found.setdefault(name, Plan(name, index, workspace))
        return tuple(found.values())
