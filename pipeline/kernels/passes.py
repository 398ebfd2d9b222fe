"""Which kernels one pass of the recursion yields: a readout family, its depths and its trained end layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from exact_ntk.kernel_names import (
    BLOCKS,
    FAMILIES,
    READOUTS,
    depths_of_myrtle,
    family_of,
    pooling_of,
    trained_by_default,
    window_of,
)

Padding = Literal["zero", "circular"]
PADDINGS: tuple[Padding, ...] = ("zero", "circular")
# The matrix (n1, n2) of a readout at a depth.
Matrices = Mapping[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Pass:
    """One pass of the recursion: every kernel of a readout family, at every depth, for given trained ends.

    depths: depth L of the nets, L - 1 convolutions and a readout each, strictly increasing, at least 2; of the Myrtle
    networks, which have no layers in common, one out of `BLOCKS`.
    readouts: names out of `READOUTS`, lap-C and lap-C-nngp, myrtle and myrtle-nngp, all of `family`. At depth 2 with
    both end layers fixed the NTK is 0.  padding: of the convolutions and of the local averages.
    Raises ValueError on depths that are none, and on Myrtle networks with circular padding.
    """

    family: str
    depths: tuple[int, ...]
    readouts: tuple[str, ...]
    train_first: bool
    train_last: bool
    padding: Padding = "zero"

    def __post_init__(self) -> None:
        if not self.depths or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 2:
            raise ValueError(f"depths must be increasing integers of at least 2, not {self.depths}")
        if self.family == "myrtle" and (len(self.depths) > 1 or self.depths[0] not in BLOCKS):
            raise ValueError(f"a pass has one Myrtle network, {depths_of_myrtle()}, not {self.depths}")
        if self.family == "myrtle" and self.padding != "zero":
            raise ValueError(f"Myrtle networks pad with zeros, not {self.padding!r}")

    @property
    def blocks(self) -> tuple[int, ...]:
        """Of a Myrtle network: convolutions in each block."""
        return BLOCKS[self.depths[0]]

    @property
    def ntk(self) -> bool:
        """Whether the NTK is asked for, and not the NNGP alone."""
        return any(pooling_of(readout) == readout for readout in self.readouts)

    @property
    def poolings(self) -> tuple[str, ...]:
        """How its readouts pool, each once."""
        return tuple(dict.fromkeys(map(pooling_of, self.readouts)))

    def entry_layers(self, pairs: int, height: int, width: int) -> int:
        """Work in entry-layers: pixel pairs times ReLU layers; a Myrtle network's pools leave a 16th of the pairs."""
        pixels = height * width
        if self.family == "myrtle":
            return pairs * sum(layers * (pixels**2 // 16**pools) for pools, layers in enumerate(self.blocks))
        return pairs * (pixels if self.family == "vanilla" else pixels**2) * (self.depths[-1] - 1)


def _named(readout: str) -> bool:
    return readout in READOUTS or window_of(readout) is not None


def plan_passes(
    depths: Sequence[int],
    readouts: Sequence[str],
    train_first: bool | None,
    train_last: bool | None,
    padding: Padding = "zero",
) -> list[Pass]:
    """Group `readouts` into passes: those of a family with the same trained ends, each with its default where None.

    NNGP kernels do not depend on trained ends, and go with what else is there of their family. Raises ValueError for
    names that are no readouts or no padding, and for an NTK under which nothing is trained.
    """
    if not readouts or len(set(readouts)) < len(readouts) or not all(map(_named, readouts)):
        raise ValueError(
            f"readouts must be distinct names out of {', '.join(READOUTS)}, lap-C and lap-C-nngp (C from 0 to 999, the "
            f"window has 2 C + 1 pixels a side), not {list(readouts)}"
        )
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, not {padding!r}")
    groups: dict[tuple[str, bool, bool], list[str]] = {}
    for name in sorted(readouts, key=lambda name: name.endswith("-nngp")):
        family, default = family_of(name), trained_by_default(name)
        ends = default if train_first is None else train_first, default if train_last is None else train_last
        begun = [key for key in groups if key[0] == family]
        key = begun[0] if begun and name.endswith("-nngp") else (family, *ends)
        groups.setdefault(key, []).append(name)
    ordered, passes = tuple(sorted(set(depths))), []
    for (family, first, last), names in sorted(groups.items(), key=lambda group: FAMILIES.index(group[0][0])):
        job = Pass(family, ordered, tuple(r for r in readouts if r in names), first, last, padding)
        if job.ntk and job.depths[0] < 3 and not (first or last):
            ntk = next(r for r in job.readouts if pooling_of(r) == r)
            raise ValueError(
                f"readout {ntk!r} at depth 2 with the first and the last layer fixed trains nothing, so its "
                "kernel is 0: ask for depths of at least 3, or train an end layer"
            )
        passes.append(job)
    return passes
