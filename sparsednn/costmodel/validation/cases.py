"""`Case`: one configuration that is really run, and predicted. And which ones there are.

All cases are held out: `calibrate` measures kernels, messages and collectives on patterns and
shapes of its own, and never one of these networks. A case that anybody does use to calibrate must
be made with ``held_out=False``.

Must not know: how a case is run, how it is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from sparsednn.errors import FormatError, UsageError

__all__ = ["KINDS", "METHODS", "OPTIMIZERS", "Case", "validation_cases"]

#: In the order in which they are measured: what PyTorch does to a process's memory comes last.
KINDS: Final = ("inference", "training", "cnn")
#: How neurons are divided among the ranks of a group.
METHODS: Final = ("random", "cyclic", "block", "kahypar", "mtkahypar", "joint")
OPTIMIZERS: Final = ("sgd", "momentum", "adam")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration.

    Attributes
    ----------
    kind
        One of `KINDS`: inference of a sparse network, one step of training it, or one step of
        training a dense CNN.
    network
        Name, as `sources.load_network` or `dense.networks.make_network` takes it.
    batch
        Images, of all ranks together: of the run (inference) or of a step.
    ranks, threads
        How many; threads of each rank.
    parts
        Sparse networks: ranks that share the neurons. The images are divided among the
        ``ranks / parts`` groups.
    method
        One of `METHODS` where ``parts > 1``, else "".
    optimizer
        One of `OPTIMIZERS`.
    algorithm
        CNNs on several ranks: one of `dense.grids.ALGORITHMS`, for all layers.
    image
        CNNs: channels, height, width; None for those that are usual.
    held_out
        Whether nothing of it was used to calibrate.

    Raises
    ------
    UsageError
        If these do not go together.
    """

    kind: str
    network: str
    batch: int
    ranks: int = 1
    threads: int = 1
    parts: int = 1
    method: str = ""
    optimizer: str = "sgd"
    algorithm: str = ""
    image: tuple[int, int, int] | None = None
    held_out: bool = True

    def __post_init__(self) -> None:
        """Check that the fields go together."""
        dense = self.kind == "cnn"
        wrong = (
            (self.kind not in KINDS, f"a kind is one of {', '.join(KINDS)}"),
            (min(self.batch, self.ranks, self.threads, self.parts) < 1, "numbers are positive"),
            (self.ranks % self.parts != 0, f"{self.parts} parts do not divide the ranks"),
            (self.method not in ("", *METHODS), f"a method is one of {', '.join(METHODS)}"),
            (bool(self.method) != (self.parts > 1), "a method belongs to more than one part"),
            (self.optimizer not in OPTIMIZERS, f"optimizers are {', '.join(OPTIMIZERS)}"),
            (bool(self.algorithm) != (dense and self.ranks > 1), "ranks of a CNN: an algorithm"),
            (dense and self.parts > 1, "parts belong to sparse networks"),
            (not dense and self.image is not None, "an image belongs to a CNN"),
        )
        for is_wrong, what in wrong:
            if is_wrong:
                raise UsageError(f"case {self.kind} {self.network}: {what}")

    @property
    def groups(self) -> int:
        """Ranks among which the images are divided."""
        return self.ranks // self.parts

    @property
    def how(self) -> str:
        """How it is run, in words.

        >>> Case(kind="inference", network="mlp:8-8", batch=1, ranks=4, parts=2, method="block").how
        '2x2 block'
        """
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        if self.ranks == 1:
            return f"1 rank{threads}"
        if self.kind == "cnn":
            return f"{self.ranks} ranks {self.algorithm}{threads}"
        divided = f" {self.method}" if self.method else ""
        return f"{self.groups}x{self.parts}{divided}{threads}"

    @property
    def name(self) -> str:
        """What is run, and how; no two cases have the same.

        >>> Case(kind="cnn", network="lenet5", batch=64, ranks=2, algorithm="data").name
        'cnn lenet5, batch 64: 2 ranks data'
        """
        image = "" if self.image is None else f" {'x'.join(map(str, self.image))}"
        optimizer = f", {self.optimizer}" if self.kind == "training" else ""
        images = f"{self.batch} images" if self.kind == "inference" else f"batch {self.batch}"
        return f"{self.kind} {self.network}{image}, {images}{optimizer}: {self.how}"

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Case:
        """Read what `as_json` gave.

        Raises
        ------
        FormatError
            If fields are missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if set(told) != known:
            raise FormatError(f"a case has the fields {', '.join(sorted(known))}")
        image = told["image"]
        return cls(**{**told, "image": None if image is None else tuple(image)})


# The networks: rows that share patterns (radixnet, the official one), and rows that do not (mlp).
_RADIX: Final = "radixnet:1024x13"
_WIDE_RADIX: Final = "radixnet:4096x7"
_OFFICIAL: Final = "graph-challenge:1024-24"
_SHORT: Final = "graph-challenge:1024-12"
_SMALL: Final = "mlp:256x9@0.3"
_HALF: Final = "mlp:512x13@0.1"
_MIDDLE: Final = "mlp:1024x9@0.05"
_TWO: Final = "mlp:2048x9@0.03"
_WIDE: Final = "mlp:4096x5@0.02"
_HEAVY: Final = "mlp:4096x7@0.1"
_HEAD: Final = "mlp:2048x4-10@0.1"
_NARROW: Final = "mlp:512x9-10@0.2"


def _inference() -> list[Case]:
    def case(network: str, batch: int, **how: Any) -> Case:
        return Case(kind="inference", network=network, batch=batch, **how)

    two: dict[str, Any] = {"ranks": 2, "parts": 2}
    four: dict[str, Any] = {"ranks": 4, "parts": 4}
    return [
        case(_RADIX, 5000),
        case(_OFFICIAL, 5000),
        case(_MIDDLE, 500),
        case(_SMALL, 20000),
        case(_WIDE, 500),
        case(_HEAVY, 1),
        case(_HEAVY, 64),
        case(_RADIX, 20000, threads=2),
        case(_HALF, 5000, threads=2),
        case(_RADIX, 20000, ranks=2),
        case(_HALF, 5000, ranks=2),
        case(_MIDDLE, 500, **two, method="random"),
        case(_OFFICIAL, 5000, **two, method="joint"),
        case(_WIDE_RADIX, 5000, **two, method="cyclic"),
        case(_TWO, 500, **two, method="block"),
        case(_SHORT, 5000, **two, method="kahypar"),
        case(_HEAVY, 1, **two, method="random"),
        case(_HALF, 5000, ranks=4),
        case(_OFFICIAL, 5000, ranks=4, parts=2, method="joint"),
        case(_MIDDLE, 5000, **four, method="random"),
    ]


def _training() -> list[Case]:
    def case(network: str, batch: int, **how: Any) -> Case:
        return Case(kind="training", network=network, batch=batch, **how)

    two: dict[str, Any] = {"ranks": 2, "parts": 2}
    four: dict[str, Any] = {"ranks": 4, "parts": 2}
    return [
        case(_HEAD, 64, optimizer="momentum"),
        case("mlp:2048x3@0.3", 16),
        case(_NARROW, 128, optimizer="adam"),
        case(_RADIX, 128),
        case("mlp:256x13@0.3", 256, optimizer="momentum"),
        case("mlp:2048x4@0.1", 128, threads=2),
        case(_RADIX, 256, threads=2, optimizer="momentum"),
        case(_HEAD, 256, ranks=2, optimizer="momentum"),
        case("radixnet:1024x9", 256, ranks=2),
        case(_HEAD, 64, **two, method="random", optimizer="momentum"),
        case(_RADIX, 256, **two, method="joint"),
        case("mlp:2048x7@0.01", 256, **two, method="block", optimizer="adam"),
        case(_NARROW, 256, **two, method="cyclic"),
        case(_HEAD, 256, ranks=4, optimizer="momentum"),
        case("radixnet:1024x9", 256, **four, method="joint"),
    ]


def _cnn() -> list[Case]:
    def case(network: str, batch: int, algorithm: str = "", **how: Any) -> Case:
        return Case(
            kind="cnn", network=network, batch=batch, algorithm=algorithm, optimizer="momentum",
            **how,
        )  # fmt: skip

    return [
        case("smallcnn", 128),
        case("lenet5", 128),
        case("resnet20", 16),
        case("alexnet", 16, image=(3, 32, 32)),
        case("lenet5", 128, threads=2),
        case("resnet20", 32, threads=2),
        case("smallcnn", 128, "data", ranks=2),
        case("lenet5", 128, "filter", ranks=2),
        case("lenet5", 128, "2d", ranks=2),
        case("resnet20", 16, "data", ranks=2),
        case("resnet20", 16, "spatial", ranks=2),
        case("resnet20", 16, "3d", ranks=2),
        case("lenet5", 128, "data", ranks=4),
        case("resnet20", 16, "data", ranks=4),
    ]


#: Cases of the quick run, by their places in the lists above: every kind, 1, 2 and 4 ranks.
_QUICK: Final[Mapping[str, tuple[int, ...]]] = {
    "inference": (0, 2, 8, 11, 17),
    "training": (0, 5, 7, 9),
    "cnn": (1, 6, 12),
}


def validation_cases(*, quick: bool = False) -> list[Case]:
    """Return all cases, by kind and then by ranks; or those of the quick run."""
    by_kind = {"inference": _inference(), "training": _training(), "cnn": _cnn()}
    if quick:
        return [by_kind[kind][place] for kind in KINDS for place in _QUICK[kind]]
    return [case for kind in KINDS for case in by_kind[kind]]
