"""Fused kernels: a whole offset plane stays close to the arithmetic from the first layer to the last.

`arithmetic.h` is one recursion step for one lane type; `images.h` holds images and normalisers; `cpu.cpp` loops over
planes. float32 arithmetic with float64 sums and a float64 zero offset; any H x W with min(H, W) <= 32 and
max(H, W) <= 64, any number of channels.
"""

SHORT_SIDE, LONG_SIDE = 32, 64


def covers(height: int, width: int) -> bool:
    """Whether images of this size are covered."""
    return min(height, width) <= SHORT_SIDE and max(height, width) <= LONG_SIDE
