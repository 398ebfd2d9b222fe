"""The CNTK and Myrtle kernels of one image pair by nested Python loops: as written on paper, and nothing clever."""

import math

import numpy as np

OFFSETS = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]


def _box(m):
    h, w = m.shape[:2]
    out = np.zeros_like(m)
    for i, j, u, v in np.ndindex(m.shape):
        for a, b in OFFSETS:
            if 0 <= i + a < h and 0 <= j + b < w and 0 <= u + a < h and 0 <= v + b < w:
                out[i, j, u, v] += m[i + a, j + b, u + a, v + b]
    return out


def _relu_step(sxy, sxx, syy):
    k, kdot = np.zeros_like(sxy), np.zeros_like(sxy)
    for p in np.ndindex(sxy.shape):
        n = math.sqrt(sxx[p[:2] + p[:2]] * syy[p[2:] + p[2:]])
        if n == 0:
            continue
        lam = min(1.0, max(-1.0, sxy[p] / n))
        if lam > 1 - 1e-15:
            lam = 1.0
        k[p] = 2 / 9 * n * (lam * (math.pi - math.acos(lam)) + math.sqrt(1 - lam * lam)) / (2 * math.pi)
        kdot[p] = 2 / 9 * (math.pi - math.acos(lam)) / (2 * math.pi)
    return k, kdot


def slow_cntk(x, y, depth, train_first, train_last):
    """x, y (C, H, W): {"vanilla", "vanilla-nngp", "gap", "gap-nngp"} -> float, all with the given trained ends.

    And what they sum up, (H, W, H, W): "pixels" and "pixels-nngp".
    """
    products = [np.einsum("chw,cij->hwij", a, b) for a, b in ((x, y), (x, x), (y, y))]
    sxy, sxx, syy = (_box(m) for m in products)
    t = sxy.copy() if train_first else np.zeros_like(sxy)
    for layer in range(1, depth):
        k, kdot = _relu_step(sxy, sxx, syy)
        r = kdot * t + k
        if layer < depth - 1:
            kxx, kyy = _relu_step(sxx, sxx, sxx)[0], _relu_step(syy, syy, syy)[0]
            sxy, sxx, syy, t = _box(k), _box(kxx), _box(kyy), _box(r)
    ntk = r if train_last else r - k
    pixels = x.shape[1] * x.shape[2]

    def trace(m):
        return float(np.einsum("hwhw->", m))

    return {
        "vanilla": trace(ntk),
        "vanilla-nngp": trace(k),
        "gap": float(ntk.sum()) / pixels**2,
        "gap-nngp": float(k.sum()) / pixels**2,
        "pixels": ntk,
        "pixels-nngp": k,
    }


def _pool(m):
    height, width = m.shape[:2]
    out = np.zeros((height // 2, width // 2, height // 2, width // 2))
    for i, j, u, v in np.ndindex(m.shape):
        out[i // 2, j // 2, u // 2, v // 2] += m[i, j, u, v] / 16
    return out


def slow_myrtle(x, y, blocks, train_first, train_last):
    """x, y (C, H, W), convolutions in each block: {"ntk", "nngp"} -> float."""
    k, kxx, kyy = (np.einsum("chw,cij->hwij", a, b) for a, b in ((x, y), (x, x), (y, y)))
    r, first = k, True
    for block, convolutions in enumerate(blocks):
        if block:
            k, kxx, kyy, r = map(_pool, (k, kxx, kyy, r))
        for _ in range(convolutions):
            sxy, sxx, syy, t = map(_box, (k, kxx, kyy, r))
            if first and not train_first:
                t = np.zeros_like(t)
            k, kdot = _relu_step(sxy, sxx, syy)
            kxx, kyy = _relu_step(sxx, sxx, sxx)[0], _relu_step(syy, syy, syy)[0]
            r, first = kdot * t + k, False
    return {"ntk": float((r if train_last else r - k).mean()), "nngp": float(k.mean())}
