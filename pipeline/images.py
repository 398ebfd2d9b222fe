"""Images in store order under one preprocessing, and the same under another, or those of a draw alone."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_ntk.config import Zca
from exact_ntk.copies import Alike, find_alike
from exact_ntk.data import normalise
from exact_ntk.files import digest

if TYPE_CHECKING:
    from torch import Tensor  # imported where one is made: which images there are takes none

log = logging.getLogger("ntk")


@dataclass(frozen=True, eq=False)
class OrderedImages:
    """Training images in order, then test images in order; a position is a row of the Gram store.

    pixels: all of the config's, as they are in the data set (N, H, W, C).  at: which of them these are.  y: labels.
    image_index: position -> index in the data set's own training, then test images.
    dropped: (index, index of the kept copy) of copies among the training images.
    statistics: standard or none -> mean and deviation of each channel.
    preprocess: with every default in place.  fitted_on: the training positions that a ZCA is fitted on, None is all.
    of_a_draw: whether these are one draw's images alone.
    found_alike: by method, what is known of copies; images of one order share it.
    """

    pixels: np.ndarray
    at: np.ndarray
    y: np.ndarray
    n_train: int
    classes: tuple[str, ...]
    image_index: np.ndarray
    dropped: tuple[tuple[int, int], ...]
    order_seed: int
    balanced: bool
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]
    preprocess: str | Zca
    fitted_on: np.ndarray | None = None
    of_a_draw: bool = False
    found_alike: dict[str, Alike] = field(default_factory=dict)

    @property
    def n_test(self) -> int:
        return len(self.at) - self.n_train

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width

    @property
    def nbytes(self) -> int:
        """What `x` takes in memory."""
        return 4 * len(self.at) * math.prod(self.shape)

    @property
    def method(self) -> str:
        """standard, none or zca."""
        return self.preprocess.method if isinstance(self.preprocess, Zca) else self.preprocess

    @property
    def words(self) -> str | None:
        """How they are preprocessed, and what a ZCA is fitted on; None for standard."""
        if isinstance(self.preprocess, Zca):
            return fitted_words(self.preprocess, len(self._fitted_on))
        return "images as they are" if self.preprocess == "none" else None

    @cached_property
    def fields(self) -> dict[str, Any]:
        """What names these images in a fingerprint."""
        return {
            "images": digest(self.pixels[self.at]),
            "train_images": self.n_train,
            "test_images": self.n_test,
            "image_shape": list(self.pixels.shape[1:]),
            **self._preprocess_fields,
        }

    @property
    def _preprocess_fields(self) -> dict[str, Any]:
        if isinstance(self.preprocess, Zca):
            how = self.preprocess.model_dump(exclude_none=True)
            return {"preprocess": {**how, "fitted_on": digest(self._fitted_on)}}
        mean, std = self.statistics[self.preprocess]
        return {"normalisation": {"mean": mean.tolist(), "std": std.tolist()}}

    @property
    def _fitted_on(self) -> np.ndarray:
        return np.arange(self.n_train) if self.fitted_on is None else self.fitted_on

    @cached_property
    def x(self) -> "Tensor":
        """Preprocessed, float32 (n_train + n_test, C, H, W). Raises DataError where nothing can be fitted."""
        return self._preprocessed()

    def passing(self) -> "Tensor":
        """As `x`; of a draw's images alone, which are needed once, nothing is kept."""
        return self._preprocessed() if self.of_a_draw else self.x

    def _preprocessed(self) -> "Tensor":
        if isinstance(self.preprocess, Zca):
            from exact_ntk.data.zca import whitened

            log.info(f"preprocess: {self.words}")
            return whitened(self._raw, len(self.at), self.preprocess, self._fitted_on)
        import torch

        return torch.from_numpy(normalise(self.pixels[self.at], *self.statistics[self.preprocess]))

    def _raw(self, positions: np.ndarray) -> "Tensor":
        """Images as they are, in units of their own: float64 (m, C, H, W)."""
        import torch

        return torch.from_numpy(self.pixels[self.at[positions]].transpose(0, 3, 1, 2).astype(np.float64))

    @property
    def alike(self) -> Alike:
        """Which of the images are equal, multiples of one another, or zero, to the kernels."""
        if self.method not in self.found_alike:
            self.found_alike[self.method] = find_alike(self._compared, len(self.at))
        return self.found_alike[self.method]

    @property
    def alike_or_mirrored(self) -> Alike:
        """The same, an image and its mirror image taken for one: to an average over both they are."""
        key = f"{self.method}, mirrored"
        if key not in self.found_alike:
            one_of_two = partial(_one_of_two, shape=self.shape)
            self.found_alike[key] = find_alike(lambda at: one_of_two(self._compared(at)), len(self.at))
        return self.found_alike[key]

    def _compared(self, positions: np.ndarray) -> np.ndarray:
        # Whitening is a linear map that has an inverse: it tells apart what contrast normalisation does.
        if self.method == "zca":
            from exact_ntk.data.zca import contrast_normalised

            return contrast_normalised(self._raw(positions)).numpy()
        x = normalise(self.pixels[self.at[positions]], *self.statistics[self.method])
        return x.reshape(len(x), -1)

    def under(self, preprocess: str | Zca, fitted_on: np.ndarray | None = None) -> "OrderedImages":
        """The same images under another preprocessing."""
        return replace(self, preprocess=preprocess, fitted_on=fitted_on)

    def with_new(self, pixels: np.ndarray) -> "OrderedImages":
        """These images and then others (m, H, W, C), of their size and kind, preprocessed in the same way."""
        return replace(
            self,
            pixels=np.concatenate([self.pixels, pixels]),
            at=np.concatenate([self.at, len(self.pixels) + np.arange(len(pixels))]),
            found_alike={},
        )

    def alone(self, train: np.ndarray, test: np.ndarray) -> "OrderedImages":
        """Of these images only those at some positions."""
        taken = np.concatenate([train, test])
        return replace(
            self,
            at=self.at[taken],
            y=self.y[taken],
            n_train=len(train),
            image_index=self.image_index[taken],
            fitted_on=None,
            of_a_draw=True,
            found_alike={},
        )


def _one_of_two(rows: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Each flattened image or its mirror image: the same of the two, whichever is given."""
    mirrored = rows.reshape(-1, *shape)[..., ::-1].reshape(rows.shape)
    side = np.random.default_rng(0).standard_normal(rows.shape[1])
    return np.where(((rows - mirrored) @ side < 0)[:, None], mirrored, rows)


def fitted_words(how: Zca, n: int) -> str:
    """What a ZCA is fitted on."""
    e = f"e = {how.epsilon:g}" if how.epsilon is not None else f"e = {how.relative:g} of the mean eigenvalue"
    control = ", rank control" * how.rank_control
    which = "the draw's" if how.fit == "draw" else "all"
    return f"ZCA ({e}{control}) fitted on {which} {n} training images{' and their mirror images' * bool(how.flips)}"
