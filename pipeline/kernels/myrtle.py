"""The Myrtle kernels of Shankar et al. 2020: 3 x 3 convolutions in three blocks with 2 x 2 mean pools between them.

Every convolution is followed by the activation, two pools halve each side, and a linear readout takes the mean over the
pixels that are left. In the scale of `cntk`, with (c_sigma / q^2) in K, the NNGP kernel has Shankar et al.'s values:

    S_0 = box(<x_p, x'_p'>), T_0 = S_0 where the first layer is trained;  then as `cntk`, S = box(K), T = box(R)
    after a block  K <- pool(K), R <- pool(R): the mean over the 2 x 2 pixels of p and of p', which has no weights
    NTK: mean of R (last layer trained) or of R - K;  NNGP: mean of K;  all over p and p'
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from exact_ntk.kernel_names import BLOCKS, DIVISOR
from exact_ntk.kernels.arccos import relu_duals, snap_to_unit
from exact_ntk.kernels.backends import require_memory, resolve_myrtle
from exact_ntk.kernels.fused import cpu as fused_cpu
from exact_ntk.kernels.fused import gpu_myrtle as fused_gpu_myrtle
from exact_ntk.kernels.inputs import Values, as_device, as_flag, as_image_sets, as_names, require_range
from exact_ntk.kernels.passes import Pass
from exact_ntk.kernels.reference import (
    PIXEL_PAIRS,
    TENSORS_ALIVE,
    PixelPairs,
    activation_layer,
    box,
    bytes_a_tensor,
    equal_images,
    pairs_at_once,
)

READOUTS = ("ntk", "nngp", "nngp-unit")

Duals = Callable[[Tensor], tuple[Tensor, Tensor]]


def gaussian_duals(lam: Tensor) -> tuple[Tensor, Tensor]:
    """kappa_1 and kappa_0, both exp(lam - 1): Shankar et al.'s Gaussian kernel in place of the ReLU's."""
    kappa = torch.exp(lam - 1)
    return kappa, kappa.clone()


ACTIVATIONS: dict[str, Duals] = {"relu": relu_duals, "gaussian": gaussian_duals}


def _pool(m: Tensor) -> Tensor:
    """(pairs, H, W, H, W), the mean over 2 x 2 pixels of both images."""
    n, height, width = m.shape[:3]
    sides = (height // 2, 2, width // 2, 2)
    return m.view(n, *sides, *sides).mean((2, 4, 6, 8))


def _through(
    x1: Tensor,
    x2: Tensor,
    tables: tuple[Sequence[Tensor], Sequence[Tensor]] | None,
    blocks: Sequence[int],
    duals: Duals,
    ntk: bool,
    train_first: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Mean R, mean K, and sqrt(S[p, p]) before each activation, of pairs (x1[i], x2[i]) in float64.

    tables: those roots of the first and of the second images with themselves; None where the pairs are such.
    """
    family, equal = PixelPairs(torch.float64), equal_images(x1, x2)
    k = family.inner_products(x1, x2)
    r, first, seen = k, True, list[Tensor]()
    for block, convolutions in enumerate(blocks):
        if block:
            k, r = _pool(k), _pool(r) if ntk else k
        for _ in range(convolutions):
            s = box(k, PIXEL_PAIRS)
            t = None if not ntk else box(r, PIXEL_PAIRS) if train_first or not first else torch.zeros_like(s)
            seen.append(family.zero_offset(s).clamp_min(0).sqrt())
            a, b = (table[len(seen) - 1] for table in tables) if tables else (seen[-1], seen[-1])
            k, r = activation_layer(s, t, a, b, equal, family, duals)
            first = False
    return r.mean((1, 2, 3, 4)), k.mean((1, 2, 3, 4)), seen


def reference_pass(
    x1: Tensor,
    x2: Tensor | None,
    blocks: Sequence[int],
    *,
    duals: Duals = relu_duals,
    ntk: bool = True,
    train_first: bool = True,
    train_last: bool = True,
    diagonal: bool = False,
    byte_budget: int | None = None,
) -> tuple[Tensor | None, Tensor]:
    """The NTK, None unless it is asked for, and the NNGP kernel: (n1, n2) each, or with `diagonal` (n1).

    Float64 on the images' device, some pairs at a time: working memory stays near `byte_budget`, as in `reference`.
    """
    other = x1 if x2 is None else x2
    x1, other = x1.double(), other.double()
    step = pairs_at_once(TENSORS_ALIVE * bytes_a_tensor("gap", torch.float64, *x1.shape[2:]), x1.device, byte_budget)
    settings = blocks, duals, ntk, train_first

    def own(x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        found = [_through(part, part, None, *settings) for part in x.split(step)]
        tables = [torch.cat(of_layer) for of_layer in zip(*(tables for _, _, tables in found), strict=True)]
        return torch.cat([r for r, _, _ in found]), torch.cat([k for _, k, _ in found]), tables

    def kernels(r: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor]:
        return (r if train_last else r - k) if ntk else None, k

    first = own(x1)
    if diagonal:
        return kernels(*first[:2])
    second = first if x2 is None else own(other)
    every = torch.ones(len(x1), len(other), dtype=torch.bool, device=x1.device)
    rows, columns = torch.nonzero(every.tril(-1) if x2 is None else every, as_tuple=True)
    r, k = x1.new_empty((2, len(x1), len(other)))
    if x2 is None:
        r.fill_diagonal_(0).diagonal().copy_(first[0])
        k.diagonal().copy_(first[1])
    for i, j in zip(rows.split(step), columns.split(step), strict=True):
        tables = [d[i] for d in first[2]], [d[j] for d in second[2]]
        r[i, j], k[i, j], _ = _through(x1[i], other[j], tables, *settings)
        if x2 is None:
            r[j, i], k[j, i] = r[i, j], k[i, j]
    return kernels(r, k)


def myrtle_pass(
    x1: Tensor, x2: Tensor | None, job: Pass, *, backend: str, duals: Duals = relu_duals, diagonal: bool = False
) -> tuple[Tensor | None, Tensor]:
    """As `reference_pass`, on a resolved backend (see `resolve_myrtle`); those that are fused have the ReLU's duals."""
    if backend.startswith("fused"):
        compute = fused_cpu.myrtle_pass if backend == "fused-cpu" else fused_gpu_myrtle.myrtle_pass
        return compute(x1, x2, job, diagonal)
    ends = dict(train_first=job.train_first, train_last=job.train_last)
    return reference_pass(x1, x2, job.blocks, duals=duals, ntk=job.ntk, **ends, diagonal=diagonal)


def _unit(k: Tensor, a: Tensor, b: Tensor, duals: Duals) -> Tensor:
    """kappa_1 of the correlation K(x, x') / sqrt(K(x, x) K(x', x')): 1 on the diagonal, 0 for a blank image."""
    scale = a.sqrt() * b.sqrt()
    kappa_1, _ = duals(snap_to_unit(torch.where(scale > 0, k / scale, 0.0)))
    return torch.where(scale > 0, kappa_1, 0.0)


def myrtle(
    x1: Values,
    x2: Values | None = None,
    *,
    variant: int,
    readouts: Sequence[str] = ("ntk", "nngp", "nngp-unit"),
    activation: str = "relu",
    train_first: bool = True,
    train_last: bool = True,
    backend: str = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    diagonal: bool = False,
) -> Tensor:
    """The exact kernels of the infinitely wide Myrtle-5, -7 and -10 networks.

    Arguments:
        x1: normalised images (n1, C, H, W), H and W divisible by 4, as a tensor, a NumPy array or nested lists.
        x2: normalised images (n2, C, H, W), or None for x1 with itself: symmetric.
        variant: 5, 7 or 10: (2, 1, 1), (2, 2, 2) or (3, 3, 3) convolutions in the three blocks.
        readouts: out of "ntk", "nngp", and "nngp-unit": one more activation's kernel of the NNGP kernel's correlations
            K(x, x') / sqrt(K(x, x) K(x', x')), 1 on the diagonal; that of a blank image is 0.
        activation: "relu", or "gaussian", whose K is n exp(lam - 1) in place of the ReLU's.
        train_first, train_last: whether the first convolution and the readout layer are trained.
        backend: "auto", "fused" (ReLU, images up to 32 x 64) or "reference".
        device: where to compute; None is x1's device.
        dtype: arithmetic: torch.float32 with sums, equal and nearly equal images in float64, which is what the fused
            kernels have, or torch.float64, which the reference has. None is the one that the backend has.
        diagonal: only each image of x1 with itself; x2 is then None.

    Returns (len(readouts), n1, n2), or with `diagonal` (len(readouts), n1), in float64 on `device`.
    Raises ValueError for malformed images, sides that are not divisible by 4, unknown names, variants and types, and
    backends that cannot run; MemoryError where not even one pair fits, or memory runs out.
    """
    names = as_names(readouts, "readouts")
    if not names or len(set(names)) < len(names) or not set(names) <= set(READOUTS):
        raise ValueError(f"readouts must be distinct names out of {', '.join(READOUTS)}, not {list(names)}")
    if isinstance(variant, bool) or variant not in BLOCKS:
        raise ValueError(f"variant must be one of {', '.join(map(str, BLOCKS))}, not {variant!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    first, last = as_flag(train_first, "train_first"), as_flag(train_last, "train_last")
    x1, x2 = as_image_sets(x1, x2, diagonal)
    height, width = x1.shape[2:]
    if height % DIVISOR or width % DIVISOR:
        raise ValueError(f"Myrtle networks pool twice: sides must be divisible by {DIVISOR}, not {height} x {width}")
    target = as_device(device, x1)
    resolved = resolve_myrtle(backend, target, dtype, activation, height, width)
    require_memory(resolved, target, "myrtle", torch.float64, height, width)
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            require_range(x, name, resolved, torch.float64)

    def both(a: Tensor, b: Tensor | None, ntk: bool, own: bool) -> tuple[Tensor | None, Tensor]:
        kernels = ("myrtle", "myrtle-nngp") if ntk else ("myrtle-nngp",)
        job = Pass("myrtle", (variant,), kernels, first is not False, last is not False)
        return myrtle_pass(a, b, job, backend=resolved, duals=ACTIVATIONS[activation], diagonal=own)

    x1, x2 = x1.to(target), None if x2 is None else x2.to(target)
    ntk, nngp = both(x1, x2, "ntk" in names, bool(diagonal))
    found = {"ntk": ntk, "nngp": nngp}
    if "nngp-unit" in names:
        own1 = nngp if diagonal else nngp.diagonal() if x2 is None else both(x1, None, False, True)[1]
        own2 = own1 if x2 is None else both(x2, None, False, True)[1]
        around = (own1, own2) if diagonal else (own1[:, None], own2[None, :])
        found["nngp-unit"] = _unit(nngp, *around, ACTIVATIONS[activation])
    return torch.stack([kernel for name in names if (kernel := found[name]) is not None])
