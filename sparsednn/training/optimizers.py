"""Optimizers: SGD with momentum and Adam, on the flat array of a rank's parameters.

Update rules and defaults are those of ``torch.optim.SGD`` and ``torch.optim.Adam`` (weight decay
is an L2 penalty, added to the gradient). float32 arrays go through the compiled loops of
`sparsednn.kernels.updates`; other floats through plain NumPy, written beside it here: the truth
that the loops are held against, bit by bit.

Every element goes its own way, so ranks update what they own without a word to each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import ShapeError, UsageError

__all__ = ["OPTIMIZERS", "SGD", "Adam", "Optimizer", "check_rate", "make_optimizer"]

#: Names that `make_optimizer` knows, the default first.
OPTIMIZERS = ("sgd", "adam")

_Floats = NDArray[np.floating[Any]]
_Slots = Mapping[str, _Floats]


class Optimizer(Protocol):
    """A rule that changes parameters; its settings are the fields of a dataclass."""

    @property
    def name(self) -> str:
        """One of `OPTIMIZERS`."""

    def as_json(self) -> dict[str, Any]:
        """Return name and settings."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays that are kept from step to step.

        Each is like `theta`, zero at first, and owned by the caller.
        """

    def update(
        self,
        theta: _Floats,
        gradient: _Floats,
        slots: _Slots,
        *,
        rate: float,
        step: int,
        scale: float = 1.0,
        threads: int = 1,
    ) -> None:
        """Do one step, in place; no communication.

        Parameters
        ----------
        theta
            ``(parameters,)`` float32, C-contiguous; or float64, in NumPy. Changed.
        gradient
            Like `theta`. Not changed.
        slots
            An array like `theta` for each name in the attribute `slots`. Changed.
        rate
            The learning rate of this step.
        step
            Which step this is, from 1 on.
        scale
            What the gradient is multiplied with before anything else, such as to clip its norm.
        threads
            Cut the work of large float32 arrays among so many. Does not change a bit.

        Raises
        ------
        ShapeError
            If the arrays differ in shape or dtype, or are not flat and C-contiguous.
        UsageError
            If `step` or `threads` is below 1.
        """


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with momentum b and Nesterov's variant of it.

    ::

        g = scale * gradient + weight_decay * theta
        b = momentum * b + g
        theta -= rate * (g + momentum * b if nesterov else b)

    As ``torch.optim.SGD`` without dampening, after Sutskever et al., On the importance of
    initialization and momentum in deep learning (ICML 2013), with the rate outside the momentum.

    Raises
    ------
    UsageError
        If momentum is not in [0, 1), weight decay is negative, or Nesterov has no momentum.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        """Reject values out of range."""
        _check_fraction("--momentum", self.momentum)
        _check_weight_decay(self.weight_decay)
        if self.nesterov and not self.momentum:
            raise UsageError("--nesterov needs a --momentum above 0, such as --momentum 0.9")

    def as_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, **asdict(self)}

    @property
    def slots(self) -> tuple[str, ...]:
        """The momentum; nothing without it."""
        return ("momentum",) if self.momentum else ()

    def update(
        self,
        theta: _Floats,
        gradient: _Floats,
        slots: _Slots,
        *,
        rate: float,
        step: int,
        scale: float = 1.0,
        threads: int = 1,
    ) -> None:
        """Do one step; see `Optimizer.update`."""
        kept = _checked(self, theta, gradient, slots, step, threads)
        if not _compiled_takes(theta):
            self._update_in_numpy(theta, gradient, kept, rate=rate, scale=scale)
            return
        from sparsednn.kernels.updates import momentum_sgd, plain_sgd

        arrays = cast(list[NDArray[np.float32]], [theta, gradient, *kept])
        decay = self.weight_decay
        if not kept:
            plain_sgd(*arrays, scale=scale, decay=decay, rate=rate, threads=threads)
            return
        momentum_sgd(
            *arrays,
            scale=scale,
            decay=decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            rate=rate,
            threads=threads,
        )

    def _update_in_numpy(
        self,
        theta: _Floats,
        gradient: _Floats,
        slots: Sequence[_Floats],
        *,
        rate: float,
        scale: float,
    ) -> None:
        g = scale * gradient + self.weight_decay * theta
        direction = g
        for buffer in slots:  # one or none
            buffer[:] = self.momentum * buffer + g
            direction = self.momentum * buffer + g if self.nesterov else buffer
        theta -= rate * direction


@dataclass(frozen=True)
class Adam:
    """Adam: steps scaled by running moments m and v of the gradient.

    ::

        g = scale * gradient + weight_decay * theta
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g²
        theta -= rate / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + epsilon)

    Kingma and Ba, Adam: a method for stochastic optimization (ICLR 2015), algorithm 1; as
    ``torch.optim.Adam``.

    Raises
    ------
    UsageError
        If a beta is not in [0, 1), epsilon is not positive, or weight decay is negative.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    name: ClassVar[str] = "adam"
    slots: ClassVar[tuple[str, ...]] = ("first", "second")

    def __post_init__(self) -> None:
        """Reject values out of range."""
        _check_fraction("--betas", self.beta1)
        _check_fraction("--betas", self.beta2)
        _check_positive("--epsilon", self.epsilon)
        _check_weight_decay(self.weight_decay)

    def as_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, **asdict(self)}

    def update(
        self,
        theta: _Floats,
        gradient: _Floats,
        slots: _Slots,
        *,
        rate: float,
        step: int,
        scale: float = 1.0,
        threads: int = 1,
    ) -> None:
        """Do one step; see `Optimizer.update`."""
        kept = _checked(self, theta, gradient, slots, step, threads)
        size = rate / (1 - self.beta1**step)
        correction = math.sqrt(1 - self.beta2**step)
        if not _compiled_takes(theta):
            self._update_in_numpy(
                theta, gradient, kept, size=size, correction=correction, scale=scale
            )
            return
        from sparsednn.kernels.updates import adam

        arrays = cast(list[NDArray[np.float32]], [theta, gradient, *kept])
        adam(
            *arrays,
            scale=scale,
            decay=self.weight_decay,
            beta1=self.beta1,
            beta2=self.beta2,
            correction=correction,
            epsilon=self.epsilon,
            size=size,
            threads=threads,
        )

    def _update_in_numpy(
        self,
        theta: _Floats,
        gradient: _Floats,
        slots: Sequence[_Floats],
        *,
        size: float,
        correction: float,
        scale: float,
    ) -> None:
        m, v = slots
        g = scale * gradient + self.weight_decay * theta
        m[:] = self.beta1 * m + (1 - self.beta1) * g
        v[:] = self.beta2 * v + (1 - self.beta2) * (g * g)
        theta -= size * (m / (np.sqrt(v) / correction + self.epsilon))


def make_optimizer(
    name: str,
    *,
    momentum: float | None = None,
    nesterov: bool | None = None,
    weight_decay: float | None = None,
    betas: Sequence[float] | None = None,
    epsilon: float | None = None,
) -> Optimizer:
    """Make an optimizer from options; None is an option that was not given.

    Parameters
    ----------
    name
        One of `OPTIMIZERS`.
    momentum, nesterov
        Of sgd.
    betas, epsilon
        Of adam; two betas.
    weight_decay
        Of both.

    Raises
    ------
    UsageError
        For an unknown name, a value out of range, or an option of another optimizer.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"--optimizer: unknown '{name}': known are {', '.join(OPTIMIZERS)}")
    options: dict[str, dict[str, Any]] = {
        "sgd": {"momentum": momentum, "nesterov": nesterov},
        "adam": {"betas": betas, "epsilon": epsilon},
    }
    for owner, its in options.items():
        for option, value in its.items():
            # --no-nesterov is true of every optimizer.
            if owner != name and value is not None and value is not False:
                raise UsageError(f"--{option} belongs to --optimizer {owner}, not to {name}")
    given: dict[str, Any] = {"weight_decay": weight_decay, **options[name]}
    if betas is not None:
        if len(betas) != 2:
            raise UsageError(f"--betas takes two numbers, found {len(betas)}")
        given["beta1"], given["beta2"] = betas
    given.pop("betas", None)
    given = {key: value for key, value in given.items() if value is not None}
    return SGD(**given) if name == "sgd" else Adam(**given)


def check_rate(rate: float) -> float:
    """Return the base learning rate as it was given.

    Raises
    ------
    UsageError
        If it is not positive and finite.
    """
    _check_positive("--lr", rate)
    return rate


def _compiled_takes(theta: _Floats) -> bool:
    """Whether the compiled loops can: others are float64, or on a device (then CuPy's ufuncs)."""
    return theta.dtype == np.float32 and isinstance(theta, np.ndarray)


def _check_fraction(option: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{option} must be at least 0 and below 1, found {value}")


def _check_positive(option: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UsageError(f"{option} must be above 0 and finite, found {value}")


def _check_weight_decay(value: float) -> None:
    if not 0 <= value < math.inf:
        raise UsageError(f"--weight-decay must be at least 0 and finite, found {value}")


def _checked(
    optimizer: Optimizer, theta: _Floats, gradient: _Floats, slots: _Slots, step: int, threads: int
) -> list[_Floats]:
    """Return the slots in order; the compiled loops go wherever they are told, so look first."""
    if step < 1 or threads < 1:
        raise UsageError(f"steps and threads count from 1, found step {step}, threads {threads}")
    missing = [name for name in optimizer.slots if name not in slots]
    if missing:
        raise ShapeError(f"{optimizer.name}: no array for {', '.join(missing)}")
    kept = [slots[name] for name in optimizer.slots]
    names = ("theta", "gradient", *optimizer.slots)
    for what, array in zip(names, (theta, gradient, *kept), strict=True):
        if array.ndim != 1 or array.shape != theta.shape or array.dtype != theta.dtype:
            raise ShapeError(
                f"{optimizer.name}: {what} is {array.dtype} {array.shape}, "
                f"theta {theta.dtype} {theta.shape}; flat arrays that are alike are needed"
            )
        if not array.flags.c_contiguous:
            raise ShapeError(f"{optimizer.name}: {what} is not C-contiguous")
    return kept
