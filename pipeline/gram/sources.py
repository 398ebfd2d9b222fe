"""What kernel values depend on: images, a pass and the arithmetic that computed and keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from exact_ntk.config import Gram
from exact_ntk.files import fingerprint
from exact_ntk.kernel_names import KERNEL_VERSION, RESOLVED_BACKENDS, family_of, pooling_of, trained_by_default

if TYPE_CHECKING:
    from torch import Tensor

PRECISIONS = "float32", "float64"  # a later one serves for an earlier


class Images(Protocol):
    """Training images, then test images; a position among them is a row of a store."""

    @property
    def n_train(self) -> int: ...

    @property
    def n_test(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        ...

    @property
    def fields(self) -> dict[str, Any]:
        """What names these images in a fingerprint, `train_images` and `test_images` among it."""
        ...

    @property
    def image_index(self) -> np.ndarray:
        """Position -> index among the training or the test images as they were given."""
        ...

    @property
    def of_a_draw(self) -> bool:
        """Whether these are one draw's images alone, done with when their store is."""
        ...

    def passing(self) -> "Tensor":
        """As the kernels take them, (n_train + n_test, C, H, W)."""
        ...


@dataclass(frozen=True)
class Source:
    """Where kernel values may come from: images, a readout family with its trained ends, a backend, an arithmetic.

    stored: the dtype of the values on disk.
    """

    family: str
    train_first: bool
    train_last: bool
    backend: str
    dtype: str
    images: Images
    stored: str = "float64"

    @property
    def values(self) -> dict[str, Any]:
        """What the values of an NNGP kernel depend on: all but the trained ends."""
        return {
            **self.images.fields,
            "family": self.family,
            "backend": self.backend,
            "dtype": self.dtype,
            "stored": self.stored,
            "kernel_version": KERNEL_VERSION,
        }

    @property
    def fields(self) -> dict[str, Any]:
        """What names a store of it."""
        return {**self.values, "train_first": self.train_first, "train_last": self.train_last}

    @cached_property
    def name(self) -> str:
        """The fingerprint of its fields."""
        return fingerprint(self.fields)


def sources_of(kernel: str, ends: tuple[bool, bool], gram: Gram, images: Images) -> tuple[Source, ...]:
    """Every source that can serve a kernel readout, those of other machines' backends too, as `gram.backend` admits.

    ends: trained first and last layer of its pass; an NNGP kernel, which does not depend on them, may come from any
    other. A float64 pass serves where float32 is asked for, and values kept in float64 where float32 is.
    """
    family, allowed = family_of(kernel), [ends]
    if kernel != pooling_of(kernel):
        default = trained_by_default(family)
        every = [(a, b) for a in (False, True) for b in (False, True)]
        allowed = list(dict.fromkeys([ends, (default, default), *every]))
    backends = [b for b in RESOLVED_BACKENDS if gram.backend in ("auto", b.split("-")[0])]
    dtypes, stored = (PRECISIONS[PRECISIONS.index(asked) :] for asked in (gram.dtype, gram.store))
    return tuple(
        Source(family, first, last, name, dtype, images, kept)
        for dtype in dtypes
        for kept in stored
        for name in backends
        for first, last in allowed
        # The fused kernels compute in float32 only, and the reference Myrtle networks in float64 only.
        if not (dtype == "float64" and name.startswith("fused"))
        if not (dtype == "float32" and name.startswith("reference") and family == "myrtle")
    )


def preferring(sources: Sequence[Source], backend: str | None) -> tuple[Source, ...]:
    """The sources of a column in order of preference; backend: as resolved here, None where nothing can compute.

    What this machine would compute goes before the others.
    """
    return tuple(sorted(sources, key=lambda source: source.backend != backend))
