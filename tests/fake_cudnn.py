"""What fakes of cuDNN's frontend have in common: the calls that make a graph of one convolution."""

from __future__ import annotations

from typing import Any


class ConvolutionCalls:
    """Calls of a graph, in `calls` but for the convolution; `_operation` keeps that."""

    calls: list[str]

    def _operation(self, kind: str, first: Any, second: Any, window: dict[str, Any]) -> Any:
        raise NotImplementedError

    def conv_fprop(self, *, image: Any, weight: Any, **window: Any) -> Any:
        return self._operation("forward", image, weight, window)

    def conv_dgrad(self, *, loss: Any, filter: Any, **window: Any) -> Any:
        return self._operation("input", loss, filter, window)

    def conv_wgrad(self, *, image: Any, loss: Any, **window: Any) -> Any:
        return self._operation("kernel", image, loss, window)

    def validate(self) -> None:
        self.calls.append("validate")

    def build_operation_graph(self) -> None:
        self.calls.append("build_operation_graph")

    def create_execution_plans(self, modes: list[str]) -> None:
        self.calls.append("create_execution_plans")
        assert modes == ["A", "FALLBACK"]
