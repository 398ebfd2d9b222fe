"""What a table is made of: the models of the YAML config, with their defaults. `settings` loads them."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    model_validator,
)

from exact_ntk.kernel_names import BLOCKS, depths_of_myrtle, is_pooling, trained_by_default

SHORT = {"vanilla": "V", "gap": "GAP", "myrtle": "Myrtle"}


def _number(value: Any) -> Any:
    """YAML 1.1 reads 5e-5 (no dot) as text; take it for the number that it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _count(value: Any) -> int | str:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("should be 'all' or an integer of at least 1")


def _epochs(value: Any) -> int | tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in values):
        raise ValueError("should be an integer of at least 1, or a list of one for each depth")
    return tuple(values) if isinstance(value, list | tuple) else value


def _readout(value: Any) -> str:
    if isinstance(value, str) and is_pooling(value):
        return value
    raise ValueError("should be 'vanilla', 'gap', 'myrtle' or 'lap-C' with C from 0 to 999, such as 'lap-4'")


def _unit_diagonal(value: Any) -> bool | str:
    if isinstance(value, bool) or value == "projected":
        return value
    raise ValueError("should be true, false or 'projected'")


def _tile(value: Any) -> int | str:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096):
        return value
    raise ValueError("should be 'auto' or an integer from 1 to 4096")


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Readout = Annotated[str, PlainValidator(_readout)]
Count = Annotated[int | Literal["all"], PlainValidator(_count)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Zca(_Model):
    """Contrast-normalised, whitened images (see `data.zca`), with e absolute (epsilon) or relative to the mean of M's
    eigenvalues: 1.0e-5 and 0.1 are usual on CIFAR-10.

    rank_control: directions that no image fitted on has a part in keep their length; else they grow by e^-1/2.  fit: on
    the training images of each draw, which then shares no kernel value with any other, or on the full training set.
    flips: fitted on mirror images, too; by default where the column uses flips.
    """

    method: Literal["zca"] = "zca"
    relative: Annotated[Number, Field(gt=0)] | None = None
    epsilon: Annotated[Number, Field(gt=0)] | None = None
    rank_control: bool = False
    fit: Literal["draw", "full"] = "draw"
    flips: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.relative is not None and self.epsilon is not None:
            raise ValueError("give epsilon, which is absolute, or relative, not both")
        return self

    def resolved(self, flips: bool) -> "Zca":
        """With its defaults in place. flips: whether the column uses them."""
        relative = RELATIVE if self.relative is None and self.epsilon is None else self.relative
        return self.model_copy(update={"relative": relative, "flips": flips if self.flips is None else self.flips})


RELATIVE = 0.1


def method_spelled_out(value: Any) -> Any:
    """`preprocess: zca` in full: {method: zca}."""
    return {"method": value} if value == "zca" else value


Preprocess = Annotated[
    Annotated[Literal["standard", "none"], Tag("plain")] | Annotated[Zca, Tag("whitened")],
    Discriminator(lambda value: "whitened" if isinstance(value, dict | Zca) else "plain"),
    BeforeValidator(method_spelled_out),
]


class _Data(_Model):
    """preprocess: of columns that do not say: each channel by mean and deviation over the training images (standard),
    the images as they are (none), or whitened (zca)."""

    preprocess: Preprocess = "standard"


class Digits(_Data):
    """scikit-learn's bundled 8 x 8 handwritten digits: the first 1,000 train, the last 797 test."""

    dataset: Literal["digits"]


class Cifar10(_Data):
    """CIFAR-10, downloaded by torchvision into `root`."""

    dataset: Literal["cifar10"]
    root: Path = Path("data")


class Keys(_Model):
    """What the arrays of an archive are called."""

    x_train: str = "x_train"
    y_train: str = "y_train"
    x_test: str = "x_test"
    y_test: str = "y_test"


class Npz(_Data):
    """A NumPy archive with x_train, y_train, x_test, y_test, or others named by `keys`.

    Images N x H x W (x C), uint8 or float in [0, 1]; layout: nchw for N x C x H x W.  Labels: integers, whole floats,
    names or one-hot rows.
    """

    dataset: Literal["npz"]
    path: Path
    layout: Literal["nhwc", "nchw"] | None = None
    keys: Keys = Keys()


class Order(_Model):
    """The seeded permutation of the training images out of which every draw is a block.

    balanced: the classes interleaved, so that every block holds nearly as many images of each.
    """

    seed: int = Field(0, ge=0)
    balanced: bool = True


class Gram(_Model):
    """How Gram matrices are computed and kept.

    dtype: of the arithmetic.  store: of the values on disk; float32 halves that.  tile: its side in images (auto: half
    a minute of work).
    """

    backend: Literal["auto", "fused", "reference"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    store: Literal["float32", "float64"] = "float64"
    tile: Annotated[int | Literal["auto"], PlainValidator(_tile)] = "auto"


class Train(_Model):
    """Training sets: `draws` blocks of `n` images, disjoint as far as the images go round."""

    n: Count = "all"
    draws: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _one_draw_of_all(self) -> Self:
        if self.n == "all" and self.draws > 1:
            raise ValueError("there is only one draw of all images: give n, or draws: 1")
        return self


class Test(_Model):
    """Which images accuracy is measured on: the test set, the training images outside the draw, or both."""

    source: Literal["test", "undrawn", "both"] = Field("test", alias="from")
    n: Count = "all"


def spelled_out(value: Any) -> Any:
    """`test: both` in full: {from: both}."""
    return {"from": value} if isinstance(value, str) else value


def _require_myrtle(depths: tuple[int, ...]) -> None:
    others = [depth for depth in depths if depth not in BLOCKS]
    if others:
        raise ValueError(f"the Myrtle networks have depth {depths_of_myrtle()}, not {others[0]}")


class _Column(_Model):
    readout: Readout
    depths: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]
    train: Train = Train()
    test: Annotated[Test, BeforeValidator(spelled_out)] = Test()
    train_first: bool | None = None
    train_last: bool | None = None
    preprocess: Preprocess | None = None
    name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")] = ""
    paper: tuple[Number, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.depths) != sorted(set(self.depths)):
            raise ValueError("depths should increase")
        if self.readout == "myrtle":
            _require_myrtle(self.depths)
        if self.paper and len(self.paper) != len(self.depths):
            raise ValueError(f"paper should hold one value for each of the {len(self.depths)} depths, or none")
        return self

    @property
    def trains_first(self) -> bool:
        """Whether the first convolution is trained: by default not under global average pooling."""
        return trained_by_default(self.readout) if self.train_first is None else self.train_first

    @property
    def trains_last(self) -> bool:
        """Whether the readout layer is trained: by default not under global average pooling."""
        return trained_by_default(self.readout) if self.train_last is None else self.train_last

    def _refuse_untrained(self) -> None:
        if self.depths[0] == 2 and not (self.trains_first or self.trains_last):
            raise ValueError("at depth 2 with both end layers fixed nothing is trained: start at depth 3")


class EarlyStopping(_Model):
    """Gradient flow on all but a held-out share of each draw's training images, stopped where accuracy on it peaks."""

    holdout: Number = Field(0.1, gt=0, lt=1)


# The largest ridge to choose from, over the smallest.
WIDEST_GRID = 1e100


class RidgeChoice(_Model):
    """The ridge of least squared error on training images left out: one by one (loo), or a held-out share of them.

    Every draw chooses its own, out of half decades from `from` to `to`; of equals the larger. holdout: the share.
    """

    select: Literal["loo", "holdout"]
    smallest: Number = Field(1e-8, alias="from", gt=0)
    largest: Number = Field(1e-1, alias="to", gt=0)
    holdout: Number = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"from {self.smallest:g} should be at most to {self.largest:g}")
        if self.largest > WIDEST_GRID * self.smallest:
            raise ValueError(
                f"from {self.smallest:g} to {self.largest:g} should be a factor of {WIDEST_GRID:g} at most"
            )
        return self

    @property
    def grid(self) -> tuple[float, ...]:
        """The relative ridges to choose from, each to three digits, so that what is printed is what was used."""
        count = int(2 * math.log10(self.largest / self.smallest) + 1e-6) + 1
        return tuple(float(f"{self.smallest * 10 ** (k / 2):.3g}") for k in range(count))


def selection_spelled_out(value: Any) -> Any:
    """`ridge: loo` in full: {select: loo}."""
    return {"select": value} if value in ("loo", "holdout") else value


def _is_choice(value: Any) -> str:
    return "choice" if isinstance(value, dict | RidgeChoice) else "number"


Ridge = Annotated[
    Annotated[Number, Field(ge=0), Tag("number")] | Annotated[RidgeChoice, Tag("choice")],
    Discriminator(_is_choice),
    BeforeValidator(selection_spelled_out),
]


class KernelColumn(_Column):
    """Kernel regression with the CNTK, or with the NNGP kernel of the same net at initialisation.

    readout: vanilla, gap, or lap-C, the local average over (2 C + 1)^2 pixels (Li et al. 2019); or myrtle, the networks
    of Shankar et al. 2020, which pool twice on the way to a global average, of depth 5, 7 or 10.
    ridge: r stands for K + r mean(diag K) I; or how each draw chooses it.  on_indefinite: what to do when K is not
    positive definite.  flips: train on mirror images, too, by averaging the kernel over them.  unit_diagonal: scale to
    K(x, x') / sqrt(K(x, x) K(x', x')), before that average; projected: and take an NNGP kernel through one more ReLU
    (Shankar et al. 2020).  early_stopping: report beside the regression what stopping gradient flow early would give;
    none by default.
    """

    model: Literal["cntk", "nngp"]
    ridge: Ridge = 0.0
    on_indefinite: Literal["lu", "stop"] = "lu"
    flips: bool = False
    unit_diagonal: Annotated[bool | Literal["projected"], PlainValidator(_unit_diagonal)] = False
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _trained(self) -> Self:
        if self.model == "cntk":
            self._refuse_untrained()
            if self.unit_diagonal == "projected":
                raise ValueError("unit_diagonal: projected is one more ReLU of an NNGP kernel: of the NTK ask for true")
        elif self.train_first is not None or self.train_last is not None:
            raise ValueError("the NNGP kernel is that of an untrained net: leave out train_first and train_last")
        return self

    @property
    def kernel(self) -> str:
        """The kernel readout's name: vanilla, gap, lap-4, vanilla-nngp, ..."""
        return self.readout if self.model == "cntk" else f"{self.readout}-nngp"


class CnnColumn(_Column):
    """The finite network of the same depth and readout, trained by SGD on 1/2 |f - y|^2, mean over the batch.

    width: channels; in the YAML a list stands for a column each, CNN-GAP-w8, CNN-GAP-w16, ...  kappa: factor on the
    output.  lr: learning rates to choose from, as shares of the largest stable one (lr_unit: max) or as they are
    (absolute).  select: choose by accuracy on a held-out share of the training images, or, as the paper did, on the
    test images.  epochs: the limit, or one for each depth; training stops `settle` epochs after training accuracy has
    reached 100 %, and accuracy is the mean over those.  zero_output: subtract the initial function, so that the output
    starts at 0.
    """

    model: Literal["cnn"]
    readout: Literal["vanilla", "gap"]
    width: int = Field(1024, ge=1)
    kappa: Number = Field(0.05, gt=0)
    seeds: int = Field(3, ge=1)
    lr: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], Field(min_length=1)] = (0.125, 0.25, 0.5)
    lr_unit: Literal["max", "absolute"] = "max"
    select: Literal["holdout", "test"] = "holdout"
    holdout: Number = Field(0.1, gt=0, lt=1)
    batch_size: int = Field(128, ge=1)
    momentum: Number = Field(0.0, ge=0, lt=1)
    epochs: Annotated[int | tuple[int, ...], PlainValidator(_epochs)] = 200
    settle: int = Field(10, ge=1)
    zero_output: bool = False
    precision: Literal["float32", "tf32", "bf16"] = "float32"

    @model_validator(mode="after")
    def _trained(self) -> Self:
        self._refuse_untrained()
        if self.train.draws > 1:
            raise ValueError("a cnn column has seeds, not draws")
        if len(set(self.lr)) < len(self.lr):
            raise ValueError("lr holds a learning rate twice")
        if isinstance(self.epochs, tuple) and len(self.epochs) != len(self.depths):
            raise ValueError(f"epochs should be one number, or one for each of the {len(self.depths)} depths")
        return self

    def epochs_at(self, depth: int) -> int:
        """The limit of the column's runs at one of its depths."""
        return self.epochs[self.depths.index(depth)] if isinstance(self.epochs, tuple) else self.epochs


Column = Annotated[KernelColumn | CnnColumn, Field(discriminator="model")]


def default_name(column: KernelColumn | CnnColumn) -> str:
    """The paper's name for a column: CNTK-GAP, CNN-V, CNTK-V-2K, ..., and after it CNTK-LAP-4."""
    name = f"{column.model.upper()}-{SHORT.get(column.readout, column.readout.upper())}"
    if column.train.n == "all":
        return name
    n = int(column.train.n)
    return f"{name}-{n // 1000}K" if n % 1000 == 0 else f"{name}-{n}"


def _flips(column: KernelColumn | CnnColumn) -> bool:
    return isinstance(column, KernelColumn) and column.flips


# What a resolved column holds only where it is not this.
ABSENT = (("early_stopping", None), ("preprocess", None), ("flips", False), ("unit_diagonal", False))


class Config(_Model):
    """A table: a data set, how its images are ordered, and the columns."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: Annotated[Digits | Cifar10 | Npz, Field(discriminator="dataset")]
    order: Order = Order()
    gram: Gram = Gram()
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = self.column_names
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two columns are called {twice[0]}: give one of them a name")
        return self

    @model_validator(mode="after")
    def _mirrored(self) -> Self:
        for name, column in zip(self.column_names, self.columns, strict=True):
            how = self.preprocess_of(column)
            if _flips(column) and isinstance(how, Zca) and not how.flips:
                raise ValueError(
                    f"column {name}: flips needs K(Fx, Fx') = K(x, x') for mirror images F, which a ZCA fitted without "
                    "them breaks: leave out preprocess.flips, or set it to true"
                )
        return self

    @property
    def column_names(self) -> list[str]:
        """One name a column, in order; networks that would share one add their width."""
        names = [c.name or default_name(c) for c in self.columns]
        return [
            f"{name}-w{c.width}" if isinstance(c, CnnColumn) and names.count(name) > 1 else name
            for name, c in zip(names, self.columns, strict=True)
        ]

    def preprocess_of(self, column: KernelColumn | CnnColumn) -> Literal["standard", "none"] | Zca:
        """How a column's images are prepared, with every default in place."""
        how = self.data.preprocess if column.preprocess is None else column.preprocess
        return how.resolved(_flips(column)) if isinstance(how, Zca) else how

    @property
    def tested(self) -> bool:
        """Whether a column is tested on the test images."""
        return any(column.test.source != "undrawn" for column in self.columns)

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults and column names included, as plain data; of the data, only what is not its default."""
        values = self.model_dump(mode="json", by_alias=True)
        for key, default in (("preprocess", "standard"), ("layout", None), ("keys", Keys().model_dump())):
            if values["data"].get(key, ...) == default:
                del values["data"][key]
        for column, name in zip(values["columns"], self.column_names, strict=True):
            column["name"] = name
            for key, absent in ABSENT:
                if column.get(key, ...) == absent:
                    del column[key]
        return values
