"""What the stages leave on disk for the report: the schema of results.json and of the files it is collected from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exact_ntk.config import Readout
from exact_ntk.errors import StoreError

# |K alpha - y| / |y| above which alpha is no solution, and what it predicts no result.
LARGEST_RESIDUAL = 1e-3


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def json_value(self) -> dict[str, Any]:
        """Plain data for JSON, every key in the order of the schema."""
        return self.model_dump(mode="json")


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R:
    """A record from its JSON file. Raises StoreError, naming file and key, unless it holds such a record."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        why = f"{where}: {first['msg']}"
    except OSError as error:
        why = str(error)
    raise StoreError(f"cannot read {path} ({why}): delete it to have it made again")


class EarlyStopped(Record):
    """Gradient flow on the images that are not held out; accuracies in percent.

    time: where accuracy on the held-out images peaks, in units of 1 / lambda_max; None is infinity.
    held_out, test: accuracies there.  n_held_out: images held out.
    """

    time: float | None
    held_out: float
    held_out_at_infinity: float
    test: float
    test_at_infinity: float
    n_held_out: int


class EarlyStoppedCell(EarlyStopped):
    """Means over the draws that have a flow, and the median of their times; how many have one, and how many none."""

    draws: int
    draws_without_flow: int


class RidgeCurve(Record):
    """A draw's ridge, chosen by the squared error of training images left out, one by one or held out.

    ridges: relative, see `exact_ntk.config.RidgeChoice`.  errors: means over images and outputs, None where the matrix
    is not positive definite.  ridge: that of least error, the larger of equals.
    """

    select: Literal["loo", "holdout"]
    ridge: float
    ridges: list[float]
    errors: list[float | None]

    @property
    def at_the_top(self) -> bool:
        """Whether a ridge above the grid might have done better."""
        return len(self.ridges) > 1 and self.ridge == self.ridges[-1]


class DrawRecord(Record):
    """Kernel regression on one draw.

    residual: |K alpha - y| / |y|.  one_norm, inverse_one_norm: the 1-norm of what was solved, ridge included, and an
    estimate from below of its inverse's; condition: their product, the condition number in the 1-norm, None where it
    is not finite.
    indefinite: the order of the first leading minor that is not positive, or None.  overlaps: whether the draw shares
    training images with another.  ridge: how it was chosen, None where the config gives it.
    """

    accuracy: float
    residual: float
    one_norm: float
    inverse_one_norm: float | None
    condition: float | None
    indefinite: int | None
    overlaps: bool
    early_stopping: EarlyStopped | None
    ridge: RidgeCurve | None = None


class _CellRecord(Record):
    """A column at a depth. accuracy, standard_error: in percent and points, see `exact_ntk.standard_error`; std: of the
    draws' or seeds' accuracies, None for one. copies_tested: tested images that equal a training image of their draw,
    over all draws; None in earlier records. preprocessed: how the images were, None for standard. fingerprint: of all
    that the accuracy depends on."""

    column: str
    readout: Readout
    depth: int
    accuracy: float
    standard_error: float
    std: float | None
    n_train: int
    n_test: int
    test_from: Literal["test", "undrawn", "both"]
    copies_tested: int | None = None
    preprocessed: str | None = None
    fingerprint: str


class KernelRecord(_CellRecord):
    """Kernel regression, the mean over draws. ridge: None where each draw chose its own."""

    model: Literal["cntk", "nngp"]
    draws: int
    ridge: float | None
    flips: bool = False
    unit_diagonal: bool | Literal["projected"] = False
    indefinite: bool
    backend: str
    dtype: str
    stored: str
    dropped_duplicates: int
    by_draw: list[DrawRecord]
    early_stopping: EarlyStoppedCell | None

    @property
    def residual(self) -> float:
        """The largest of its draws'."""
        return max(d.residual for d in self.by_draw)

    @property
    def condition(self) -> float | None:
        """The largest of its draws', or None where one is not finite."""
        found = [d.condition for d in self.by_draw]
        return None if None in found else max(c for c in found if c is not None)


class History(Record):
    """A run's epochs: the loss, training and test accuracy (%) of each."""

    loss: list[float]
    train_accuracy: list[float]
    test_accuracy: list[float]


class RunRecord(Record):
    """One training run; accuracies in percent, None where it diverged.

    fitted_at: the epoch after which training accuracy was 100 %, or None.  diverged: why it did, or None.
    """

    seed: int
    accuracy: float | None
    train_accuracy: float | None
    epochs: int
    fitted_at: int | None
    diverged: str | None
    history: History


class Divergence(Record):
    """A run that diverged: its learning rate, and as a share of the largest stable one where there is one."""

    lr: float | None
    lr_share: float | None
    seed: int
    part: Literal["all", "fit"]
    why: str


class NetworkRecord(_CellRecord):
    """Finite networks, the mean over the seeds that did not diverge."""

    model: Literal["cnn"]
    seeds: int
    seeds_diverged: int
    lr: float
    lr_share: float | None
    lr_unit: Literal["max", "absolute"]
    lr_rule: Literal["single", "holdout", "test"]
    loss: str
    batch_size: int
    momentum: float
    train_accuracy: float
    epochs: float
    diverged: list[Divergence]
    width: int
    kappa: float
    parameters: int
    runs: list[RunRecord]


CellRecord = Annotated[KernelRecord | NetworkRecord, Field(discriminator="model")]


class SolvedDraw(Record):
    """What the solve stage keeps of a draw of a kernel cell; its arrays are beside it as npz.

    backend, dtype, stored: of the kernel values, their arithmetic and what they are rounded to.  fields: all that the
    result depends on.
    """

    record: DrawRecord
    backend: str
    dtype: str
    stored: str
    provenance: dict[str, Any]
    fields: dict[str, Any]


class LargestRate(Record):
    """The largest stable learning rate of a cell's seed-0 network, or None and why there is none."""

    lr_max: float | None
    why: str | None
    fields: dict[str, Any]


class TrainedRun(Record):
    """What the train-cnn stage keeps of a run.

    right: for each test image, the share of the epochs averaged in which it was classified right; empty if it diverged.
    lr: the learning rate itself, None where the network was dead and had none.  lr_max: the largest stable one.
    """

    result: RunRecord
    right: list[float]
    lr: float | None
    lr_max: float | None
    parameters: int
    fingerprint: str
    fields: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def lr_share(self) -> float | None:
        """The learning rate as a share of the largest stable one."""
        return self.lr / self.lr_max if self.lr and self.lr_max else None


class ColumnHead(Record):
    """A column of the table; paper: published accuracies, one a depth, or none."""

    name: str
    model: Literal["cntk", "nngp", "cnn"]
    readout: Readout
    depths: list[int]
    paper: list[float]

    def paper_value(self, depth: int) -> float | None:
        """The published accuracy of a cell, where the config names one."""
        return dict(zip(self.depths, self.paper, strict=False)).get(depth)


class PairedDifference(Record):
    """Accuracy of `column` minus that of `minus` on the same images, in points, with its standard error."""

    column: str
    minus: str
    depth: int
    difference: float
    standard_error: float


class MissingCell(Record):
    """A cell without a result, and what it needs; failed: what there is to compute has been, and is no result."""

    column: str
    depth: int
    needs: str
    failed: bool = False


def by_need(missing: Iterable[MissingCell]) -> dict[tuple[bool, str], list[str]]:
    """Of cells without a result the names, as column/depth, by what they need and whether they have failed."""
    found: dict[tuple[bool, str], list[str]] = {}
    for cell in missing:
        found.setdefault((cell.failed, cell.needs), []).append(f"{cell.column}/{cell.depth}")
    return found


class Results(Record):
    """results.json: what a rerun on the same CPU or GPU model and thread count reproduces."""

    name: str
    config: dict[str, Any]
    columns: list[ColumnHead]
    records: list[CellRecord]
    paired: list[PairedDifference]
    missing: list[MissingCell]

    def cell(self, column: str, depth: int) -> KernelRecord | NetworkRecord | None:
        """The record of a cell, or None."""
        return next((r for r in self.records if (r.column, r.depth) == (column, depth)), None)

    def of_column(self, column: str) -> list[KernelRecord | NetworkRecord]:
        """A column's records by depth."""
        return sorted((r for r in self.records if r.column == column), key=lambda r: r.depth)
