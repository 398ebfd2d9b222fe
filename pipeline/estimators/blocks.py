"""A matrix of kernels some images at a time beside a bar, for whoever waits for it."""

from collections.abc import Callable

import torch
from torch import Tensor

from exact_ntk.progress import progress

# So many images a side are seconds of two CPU cores at 32 x 32 with pooling, or a moment of a GPU.
CPU_IMAGES, GPU_IMAGES = 32, 512


def in_blocks(
    compute: Callable[[Tensor, Tensor | None], Tensor], x1: Tensor, x2: Tensor | None, device: torch.device
) -> Tensor:
    """`compute(x1, x2)`, the kernels (readouts, n1, n2) of images on a device: the same values, with progress shown."""
    side = CPU_IMAGES if device.type == "cpu" else GPU_IMAGES
    second = x1 if x2 is None else x2
    n1, n2 = len(x1), len(second)
    out: Tensor | None = None
    with progress("kernel", n1 * (n1 + 1) // 2 if x2 is None else n1 * n2, "pair") as bar:
        for i in range(0, n1, side):
            for j in range(0, i + 1 if x2 is None else n2, side):
                rows, columns = slice(i, i + side), slice(j, j + side)
                own = x2 is None and i == j
                values = compute(x1[rows], None if own else second[columns])
                if out is None:
                    out = values.new_empty((len(values), n1, n2))
                out[:, rows, columns] = values
                if x2 is None and not own:
                    out[:, columns, rows] = values.mT
                height, width = values.shape[1:]
                bar.update(height * (height + 1) // 2 if own else height * width)
    assert out is not None
    return out
