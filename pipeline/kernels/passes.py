"""Which kernels one pass of the recursion yields: a readout family, its depths and its trained end layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

FAMILIES = ("vanilla", "gap")
READOUTS = tuple(f + s for f in FAMILIES for s in ("", "-nngp"))
# The paper's setting: vanilla trains every layer, global average pooling fixes the first and the last.
TRAINED_BY_DEFAULT = {"vanilla": True, "gap": False}
# The matrix (n1, n2) of a readout at a depth.
Matrices = Mapping[tuple[str, int], Tensor]


def family_of(readout: str) -> str:
    """The family of a readout: gap for gap and gap-nngp."""
    return readout.removesuffix("-nngp")


@dataclass(frozen=True)
class Pass:
    """One pass of the recursion: every kernel of a readout family, at every depth, for given trained ends.

    depths: depth L of the nets, L - 1 convolutions and a readout each, strictly increasing, at least 2.
    readouts: names out of `READOUTS`, all of `family`. At depth 2 with both end layers fixed the NTK is 0.
    Raises ValueError on depths that are none.
    """

    family: str
    depths: tuple[int, ...]
    readouts: tuple[str, ...]
    train_first: bool
    train_last: bool

    def __post_init__(self) -> None:
        if not self.depths or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 2:
            raise ValueError(f"depths must be increasing integers of at least 2, not {self.depths}")

    @property
    def ntk(self) -> bool:
        """Whether the NTK is asked for, and not the NNGP alone."""
        return self.family in self.readouts

    def entry_layers(self, pairs: int, height: int, width: int) -> int:
        """Work in entry-layers: pixel pairs times ReLU layers."""
        pixels = height * width
        return pairs * (pixels if self.family == "vanilla" else pixels**2) * (self.depths[-1] - 1)


def plan_passes(
    depths: Sequence[int], readouts: Sequence[str], train_first: bool | None, train_last: bool | None
) -> list[Pass]:
    """Group `readouts` by family, each with its default trained ends where None is given.

    Raises ValueError for names that are no readouts, and for an NTK under which nothing is trained.
    """
    unknown = [r for r in readouts if r not in READOUTS]
    if unknown or not readouts or len(set(readouts)) < len(readouts):
        raise ValueError(f"readouts must be distinct names out of {', '.join(READOUTS)}, not {list(readouts)}")
    passes = []
    for family in FAMILIES:
        default = TRAINED_BY_DEFAULT[family]
        names = tuple(r for r in readouts if family_of(r) == family)
        if names:
            first = default if train_first is None else train_first
            last = default if train_last is None else train_last
            job = Pass(family, tuple(sorted(set(depths))), names, first, last)
            if job.ntk and job.depths[0] < 3 and not (first or last):
                raise ValueError(
                    f"readout {family!r} at depth 2 with the first and the last layer fixed trains nothing, so its "
                    "kernel is 0: ask for depths of at least 3, or train an end layer"
                )
            passes.append(job)
    return passes
