"""What kernel values are called, apart from all that computes them: readouts, their families, backends, a version."""

import re

# What a pass computes: pixel pairs p = p', all of them, or all of them with 2 x 2 pools on the way.
FAMILIES = ("vanilla", "gap", "myrtle")
READOUTS = tuple(f + s for f in ("vanilla", "gap") for s in ("", "-nngp"))
# Myrtle networks by depth, of which the readout is one layer: convolutions in each block, with a pool between blocks.
BLOCKS = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}
DIVISOR = 4  # of the sides of a Myrtle network's images
WINDOW = re.compile(r"lap-(0|[1-9][0-9]{0,2})")
RESOLVED_BACKENDS = ("fused-cuda", "fused-cpu", "reference-cuda", "reference-cpu")
# Bump by hand when any backend's values change beyond rounding: stores of another version are not reused.
KERNEL_VERSION = 2


def is_pooling(name: str) -> bool:
    """Whether a readout can pool so: vanilla, gap, myrtle, lap-0 to lap-999."""
    return name in FAMILIES or WINDOW.fullmatch(name) is not None


def pooling_of(readout: str) -> str:
    """How a readout pools: gap for gap and gap-nngp, lap-4 for lap-4 and lap-4-nngp."""
    return readout.removesuffix("-nngp")


def window_of(readout: str) -> int | None:
    """c of local average pooling over (2 c + 1)^2 pixels, None for the other readouts."""
    match = WINDOW.fullmatch(pooling_of(readout))
    return int(match[1]) if match else None


def family_of(readout: str) -> str:
    """The family of a readout: vanilla, myrtle, or gap, whose passes hold the local averages too."""
    pooling = pooling_of(readout)
    return pooling if pooling in FAMILIES else "gap"


def depths_of_myrtle() -> str:
    """The depths of the Myrtle networks, in words."""
    *others, last = BLOCKS
    return f"{', '.join(map(str, others))} or {last}"


def trained_by_default(readout: str) -> bool:
    """Whether the end layers are trained where nothing is said: in global average pooling they are not (the paper)."""
    return pooling_of(readout) != "gap"
