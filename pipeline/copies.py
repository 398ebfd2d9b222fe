"""Images that the kernels cannot tell apart: copies, positive multiples of one another, and zero images.

Every kernel here, NTK or NNGP, vanilla or pooled, of any depth, is homogeneous of degree one in each image: K(c x, x')
is c K(x, x') for c > 0, and K(0, x') is 0. Hence a zero image, or two of one direction, make a Gram matrix singular.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

# Of an image's norm: rounding to float32 leaves differences of 1e-7, one grey level of one pixel of 224 x 224 x 3 4e-5.
TOLERANCE = 1e-6
PROJECTIONS = 8
# A projection on a Gaussian direction stretches a difference by a standard normal factor; ten is never met.
STRETCH = 10.0
CHUNK = 1024
ZERO = -1


@dataclass(frozen=True)
class Alike:
    """direction: (n,), the same number for images that are multiples of one another, ZERO for zero images.

    copy: (n,), the same number for images that are equal. norm: (n,). Numbers are positions of a first image.
    """

    direction: np.ndarray
    copy: np.ndarray
    norm: np.ndarray


def find_alike(rows: Callable[[np.ndarray], np.ndarray], n: int) -> Alike:
    """Compare n images, up to rounding in float32. rows: increasing positions (m,) -> normalised images (m, pixels)."""
    norm, places = _projections(rows, n)
    zero = are_zero(norm)
    direction, copy = np.arange(n), np.arange(n)
    direction[zero], copy[zero] = ZERO, np.argmax(zero)
    for members in _neighbours(places, np.flatnonzero(~zero)):
        left = members
        while len(left):
            near = _distances(rows, norm, left) <= TOLERANCE
            direction[left[near]] = left[0]
            _number_copies(copy, norm, left[near])
            left = left[~near]
    return Alike(direction, copy, norm)


def are_zero(norm: np.ndarray) -> np.ndarray:
    """Which images are zero up to rounding, by the norms of all (n,)."""
    return norm <= TOLERANCE * np.sqrt((norm**2).mean())


def _projections(rows: Callable[[np.ndarray], np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Each image's norm (n,), and its direction's places on Gaussian vectors (n, PROJECTIONS); 0 for a zero image."""
    norm, places = np.empty(n), np.empty((n, PROJECTIONS))
    gaussian: np.ndarray | None = None
    for start in range(0, n, CHUNK):
        at = np.arange(start, min(n, start + CHUNK))
        x = rows(at).astype(np.float64)
        if gaussian is None:
            gaussian = np.random.default_rng(0).standard_normal((x.shape[1], PROJECTIONS))
        norm[at] = np.sqrt(np.einsum("ij,ij->i", x, x))
        places[at] = (x @ gaussian) / np.where(norm[at] > 0, norm[at], 1)[:, None]
    return norm, places


def _neighbours(places: np.ndarray, at: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of positions, increasing, outside which no two of `at` are closer than the tolerance.

    On each projection in turn every group is split wherever two successive places are further apart than that.
    """
    group = np.zeros(len(at), np.int64)
    for place in places[at].T:
        order = np.lexsort((place, group))
        split = (np.diff(group[order]) != 0) | (np.diff(place[order]) > STRETCH * TOLERANCE)
        group[order] = np.concatenate([[0], np.cumsum(split)])[: len(at)]
    crowded = np.flatnonzero(np.bincount(group)[group] > 1) if len(group) else group
    order = crowded[np.argsort(group[crowded], kind="stable")]
    if len(order):
        for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            yield at[members]


def _distances(rows: Callable[[np.ndarray], np.ndarray], norm: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How far the direction of each image is from that of the first."""
    first = rows(at[:1])[0].astype(np.float64) / norm[at[0]]
    found = np.empty(len(at))
    for start in range(0, len(at), CHUNK):
        part = slice(start, start + CHUNK)
        found[part] = np.linalg.norm(rows(at[part]) / norm[at[part], None] - first, axis=1)
    return found


def _number_copies(copy: np.ndarray, norm: np.ndarray, at: np.ndarray) -> None:
    """Give those of one direction that have one length the number of their first."""
    order = at[np.argsort(norm[at], kind="stable")]
    longer = np.diff(norm[order]) > TOLERANCE * norm[order[1:]]
    for same in np.split(order, np.flatnonzero(longer) + 1):
        copy[same] = same.min()
