"""Arrays that are not in the host's memory, as far as anybody can tell: a device without one.

`ForeignArray` holds a NumPy array and mixes with none: arithmetic with one, or assigning one,
raises TypeError, as CuPy does, and so does NumPy's conversion. `xp` is a module like `numpy` whose
functions take and give such arrays. `ForeignBackend` computes with them, so that whatever forgets a
copy between host and device fails.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsednn.dense.local.reference import ReferenceBackend


class ForeignArray:
    """An array of a device that is none."""

    __array_priority__ = 1000.0

    def __init__(self, inside: Any) -> None:
        self._inside = inside

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion of a foreign array to NumPy")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = tuple(_inside(one) for one in out)
        result = getattr(ufunc, method)(*(_inside(one) for one in inputs), **kwargs)
        return out[0] if out is not None else _wrapped(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _wrapped(
            function(*_inside(list(args)), **{k: _inside(v) for k, v in kwargs.items()})
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self._inside, name)
        if not callable(found) or isinstance(found, type):
            return _wrapped(found)
        return lambda *args, **kwargs: _wrapped(
            found(*map(_inside, args), **{key: _inside(value) for key, value in kwargs.items()})
        )

    def __getitem__(self, key: Any) -> Any:
        return _wrapped(self._inside[_inside(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._inside[_inside(key)] = _inside(value)

    def __len__(self) -> int:
        return len(self._inside)

    def __iter__(self) -> Any:
        return (_wrapped(one) for one in self._inside)


def _inside(value: Any) -> Any:
    if isinstance(value, ForeignArray):
        return value._inside
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("an array of NumPy among foreign ones")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_inside, value))
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ForeignArray(value)
    if isinstance(value, (tuple, list)) and any(isinstance(one, np.ndarray) for one in value):
        return type(value)(map(_wrapped, value))
    return value


def _operator(name: str) -> Any:
    def method(self: ForeignArray, *others: Any) -> Any:
        result = getattr(self._inside, name)(*map(_inside, others))
        if result is NotImplemented:
            return result
        return self if result is self._inside else _wrapped(result)

    return method


_OPERATORS = (
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv",
    "itruediv", "pow", "eq", "ne", "gt", "lt", "ge", "le", "and", "or", "neg", "matmul",
)  # fmt: skip

for _name in _OPERATORS:
    setattr(ForeignArray, f"__{_name}__", _operator(f"__{_name}__"))


class _Module:
    """`numpy`, for foreign arrays."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *args, **kwargs: _wrapped(
            found(*map(_inside, args), **{key: _inside(value) for key, value in kwargs.items()})
        )


xp = _Module()


class ForeignBackend(ReferenceBackend):
    """Computes with foreign arrays."""

    name = "foreign"
    on_device = True

    def __init__(self) -> None:
        super().__init__(xp=xp)

    def to_host(self, a: Any) -> Any:
        assert isinstance(a, ForeignArray), type(a)
        return a._inside

    def from_host(self, a: Any) -> Any:
        assert isinstance(a, np.ndarray), type(a)
        return ForeignArray(a.copy())
