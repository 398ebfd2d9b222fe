"""How a system is solved in a budget of memory: what is held, what lies in files, and how much that is."""

import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from exact_ntk.errors import NtkError
from exact_ntk.memory import gigabytes
from exact_ntk.progress import duration
from exact_ntk.regression.condition import COLUMNS
from exact_ntk.regression.panels import WIDTH, Trapezoid

# A factorisation that takes less, or less than its panels take to be written, is started again and not resumed.
FILES_FROM_SECONDS, FILE_BYTES_PER_SECOND = 3.0, 5e8
# Up to this size K is kept on a CPU too: its tiles take longer to be read several times than the system to be solved.
HELD_BYTES = 1 << 30
# Copies of the right-hand sides: the sides, the solution, and what triangular solves work on.
SIDES = 6
# What an eigendecomposition takes, in n^3 operations at the rate of a matrix product: much of it is bound by memory.
EIGEN_FLOPS = 30


@dataclass(frozen=True)
class SolvePlan:
    """A Cholesky factorisation in groups of panels that are in memory together.

    budget: bytes that it may take.  working: bytes of all but the panels.
    """

    n: int
    groups: tuple[range, ...]
    budget: int
    working: int

    @property
    def trapezoid(self) -> Trapezoid:
        return Trapezoid(self.n)

    @property
    def in_memory(self) -> bool:
        """Whether the whole factor is."""
        return len(self.groups) == 1

    def keeps_files(self, device: torch.device) -> bool:
        """Whether finished panels go to files: to be resumed from, or because memory cannot hold them."""
        worth = max(FILES_FROM_SECONDS, self.trapezoid.bytes / FILE_BYTES_PER_SECOND)
        return not self.in_memory or self.seconds(device) >= worth

    def kernel_bytes(self, device: torch.device) -> int:
        """Of K where it is kept beside its factor, else 0: a GPU would mostly wait while it is read again."""
        kernel = 8 * self.n**2
        worth = device.type == "cuda" or kernel <= HELD_BYTES
        return kernel if worth and self.in_memory and self.bytes + kernel <= self.budget else 0

    @property
    def flops(self) -> int:
        """Floating-point operations of the factorisation."""
        return self.trapezoid.flops

    @property
    def bytes(self) -> int:
        """What it takes at most."""
        passing = 0 if self.in_memory else self.trapezoid.size(0)
        return self.working + 8 * (passing + max(self.trapezoid.size(*group) for group in self.groups))

    @property
    def lu_bytes(self) -> int:
        """What LU takes, should the matrix not be positive definite."""
        return self.working + 8 * self.n**2

    @property
    def batch_bytes(self) -> int:
        """How much of K may be read at once where the factor is gone: one batch is worked on while the next is read."""
        return (self.bytes - self.working) // 2

    def seconds(self, device: torch.device) -> float:
        """How long the factorisation takes at the measured rate."""
        return self.flops / flops_per_second(device)

    def words(self, device: torch.device) -> str:
        """One line: the path, bytes and time."""
        trapezoid, rate = self.trapezoid, flops_per_second(device)
        panels = "1 panel" if len(trapezoid) == 1 else f"{len(trapezoid)} panels"
        held = "all in memory" if self.in_memory else f"in files, {len(self.groups)} groups of them in memory by turns"
        kernel = self.kernel_bytes(device)
        beside = f" beside K, {gigabytes(kernel)}" if kernel else ""
        return (
            f"{self.n:,} images: {panels} of the factor, {gigabytes(trapezoid.bytes)}, {held}{beside}; takes "
            f"{gigabytes(self.bytes + kernel)} of {gigabytes(self.budget)}, about {duration(self.seconds(device))} at "
            f"{rate / 1e9:.0f} GFLOP/s"
        )


def plan_solve(n: int, outputs: int, piece_bytes: int, budget: int) -> SolvePlan:
    """The plan for n training images that takes at most `budget` bytes.

    piece_bytes: of the largest piece in which K is read. Raises NtkError, with the number that would do, where none
    does.
    """
    trapezoid = Trapezoid(n)
    panel = 8 * trapezoid.size(0)
    # A triangular solve from the right takes a panel of its own.
    working = piece_bytes + 8 * n * SIDES * (outputs + COLUMNS) + panel
    whole = (range(len(trapezoid)),)
    if working + trapezoid.bytes <= budget:
        return SolvePlan(n, whole, budget, working)
    least = working + min(2 * panel, trapezoid.bytes)
    if least > budget:
        raise DoesNotFit(f"a system of {n:,} images", least, budget)
    return SolvePlan(n, tuple(trapezoid.groups(budget - working - panel)), budget, working)


class DoesNotFit(NtkError):
    """What does not fit in memory, how much it would take, and how much there is."""

    def __init__(self, what: str, need: int, budget: int):
        super().__init__(f"{what} takes {gigabytes(need)} of memory, and {gigabytes(max(0, budget))} are left for it")
        self.missing = need - budget


def eigen_seconds(n: int, device: torch.device) -> float:
    """How long an eigendecomposition of n x n takes at the measured rate."""
    return EIGEN_FLOPS * n**3 / flops_per_second(device)


@lru_cache
def flops_per_second(device: torch.device) -> float:
    """Measured on the product that takes in one panel, the better of two tries."""
    panel = torch.zeros((WIDTH, 8 * WIDTH), dtype=torch.float64, device=device).T
    target = torch.zeros_like(panel)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        target.addmm_(panel, panel[:WIDTH].T, alpha=-1)
        float(target[0, 0])  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return 2 * 8 * WIDTH**3 / min(seconds[1:])
