"""Cholesky factorisation in a memory budget: blocked, left-looking, in panels of fixed width.

Every panel takes in the panels before it one by one and in order, whichever of them are in memory: the budget decides
how many are, and never the bits. Finished panels are kept in files where that is asked for, or where not all can be in
memory, and an interrupted factorisation goes on from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from exact_ntk.regression.matrix import Matrix, place, select
from exact_ntk.regression.panels import PanelFiles, Trapezoid


class NotPositiveDefinite(Exception):
    """minor: the order of the first leading minor that is not positive."""

    def __init__(self, minor: int):
        super().__init__(f"leading minor {minor} is not positive")
        self.minor = minor


@dataclass
class Cholesky:
    """L with L L^T = K + shift I.

    groups: panels that are in memory together (see `Trapezoid.groups`); where there are several, `files` keep the rest.
    bar: told the floating-point operations as they are done.  pivots (n,): the diagonal of L, once it is there.
    """

    matrix: Matrix
    shift: float
    device: torch.device
    groups: Sequence[range]
    files: PanelFiles | None
    bar: tqdm

    def __post_init__(self) -> None:
        self.trapezoid = Trapezoid(self.matrix.shape[0])
        assert self.files or len(self.groups) == 1
        held = max(self.trapezoid.size(*group) for group in self.groups)
        passing = self.trapezoid.size(0) if len(self.groups) > 1 else 0
        self._buffer = torch.empty(held, dtype=torch.float64, device=self.device)
        self._passing = torch.empty(passing, dtype=torch.float64, device=self.device)
        self._held = range(0)
        self.pivots = torch.empty(self.trapezoid.n, dtype=torch.float64, device=self.device)

    def factorise(self) -> None:
        """Every panel that no file holds. Raises NotPositiveDefinite; NtkError where a file cannot be written."""
        done = self._done()
        for group in self.groups:
            todo = range(max(group.start, done), max(group.stop, done))
            self.bar.update(sum(self.trapezoid.panel_flops(k) for k in group if k not in todo))
            if todo or group is self.groups[-1]:
                self._load(group, todo)
            for i in range(group.start) if todo else ():
                panel = self._panel(i)
                for j in todo:
                    self._subtract(i, panel, j)
            for j in todo:
                for i in range(group.start, j):
                    self._subtract(i, self._panel(i), j)
                self._finish(j)

    def solve(self, b: Tensor) -> Tensor:
        """(L L^T)^-1 b for b (n, columns) on the factor's device; every panel is read twice."""
        # Column-major: the products and triangular solves then work in place.
        x = b.T.clone(memory_format=torch.contiguous_format).T
        for k in range(len(self.trapezoid)):
            at, panel = self.trapezoid.columns(k), self._panel(k)
            width = at.stop - at.start
            x[at] = torch.linalg.solve_triangular(panel[:width], x[at], upper=False)
            x[at.stop :].addmm_(panel[width:], x[at], alpha=-1)
        for k in reversed(range(len(self.trapezoid))):
            at, panel = self.trapezoid.columns(k), self._panel(k)
            width = at.stop - at.start
            x[at].addmm_(panel[width:].T, x[at.stop :], alpha=-1)
            x[at] = torch.linalg.solve_triangular(panel[:width].T, x[at], upper=True)
        return x

    def inverse_diagonal(self) -> Tensor:
        """The diagonal of (L L^T)^-1 (n,): of each column of L^-1 the sum of squares. As much work as the factor.

        It ends the factor where panels lie in files: what was held makes room for columns of L^-1.
        """
        diagonal = torch.zeros_like(self.pivots)
        in_files = len(self.groups) > 1
        groups: Sequence[range] = self.groups if in_files else [range(j, j + 1) for j in range(len(self.trapezoid))]
        buffer = self._buffer if in_files else self._buffer.new_empty(self.trapezoid.size(0))
        if in_files:
            self._held = range(0)
        for group in groups:
            starts = [self.trapezoid.size(*range(group.start, j)) for j in group]
            inverse = {j: self.trapezoid.view(j, buffer[start:]) for j, start in zip(group, starts, strict=True)}
            for x in inverse.values():
                x.zero_().diagonal().fill_(1.0)
            for k in range(group.start, len(self.trapezoid)):
                at, panel = self.trapezoid.columns(k), self._panel(k)
                for j in range(group.start, min(k + 1, group.stop)):
                    diagonal[self.trapezoid.columns(j)] += self._next_rows(inverse[j], panel, j, at)
                    self.bar.update(self.trapezoid.update_flops(j, k))
        return diagonal

    def _next_rows(self, x: Tensor, panel: Tensor, j: int, at: slice) -> Tensor:
        """Rows `at` of panel j of L^-1 found, and taken from those below; the sums of their squares by column."""
        top, width = self.trapezoid.columns(j).start, at.stop - at.start
        rows = x[at.start - top : at.stop - top]
        rows.copy_(torch.linalg.solve_triangular(panel[:width], rows, upper=False))
        x[at.stop - top :].addmm_(panel[width:], rows, alpha=-1)
        return rows.square().sum(0)

    def _done(self) -> int:
        """How many of the first panels lie finished in files."""
        for k in range(len(self.trapezoid) if self.files else 0):
            assert self.files
            flat = self._buffer[: self.trapezoid.size(k)]
            if not self.files.fetch(k, flat):
                return k
            self.pivots[self.trapezoid.columns(k)] = self.trapezoid.view(k, flat).diagonal()
        return len(self.trapezoid) if self.files else 0

    def _flat(self, k: int) -> Tensor:
        """The numbers of a panel that is held."""
        start = self.trapezoid.size(*range(self._held.start, k))
        return self._buffer[start : start + self.trapezoid.size(k)]

    def _panel(self, k: int) -> Tensor:
        """A finished panel, from its file where it is not held; that is overwritten by the next such."""
        if k in self._held:
            return self.trapezoid.view(k, self._flat(k))
        assert self.files
        self.files.read(k, self._passing[: self.trapezoid.size(k)])
        return self.trapezoid.view(k, self._passing)

    def _load(self, group: range, todo: range) -> None:
        """Hold a group: what is `todo` from K, each piece read once, finished panels from their files."""
        self._held = group
        for k in group:
            if k not in todo and self.files:
                self.files.read(k, self._flat(k))
        if not todo:
            return
        columns = slice(self.trapezoid.columns(todo[0]).start, self.trapezoid.columns(todo[-1]).stop)
        for i, j, values in self.matrix.pieces(slice(columns.start, self.trapezoid.n), columns):
            for k in todo:
                at = self.trapezoid.columns(k)
                below, inside = (i >= at.start).nonzero()[0], ((j >= at.start) & (j < at.stop)).nonzero()[0]
                if len(below) and len(inside):
                    panel = self.trapezoid.view(k, self._flat(k))
                    place(panel, i[below] - at.start, j[inside] - at.start, select(values, below, inside))
        if self.shift:
            for k in todo:
                self.trapezoid.view(k, self._flat(k)).diagonal().add_(self.shift)

    def _subtract(self, i: int, panel: Tensor, j: int) -> None:
        """Take the finished panel i into panel j."""
        at, top = self.trapezoid.columns(j), self.trapezoid.columns(i).start
        below = panel[at.start - top :]
        self.trapezoid.view(j, self._flat(j)).addmm_(below, below[: at.stop - at.start].T, alpha=-1)
        self.bar.update(self.trapezoid.update_flops(i, j))

    def _finish(self, k: int) -> None:
        """Factorise a panel that has taken in all before it, and keep it."""
        panel = self.trapezoid.view(k, self._flat(k))
        width = panel.shape[1]
        factor, info = torch.linalg.cholesky_ex(panel[:width])
        if int(info):
            raise NotPositiveDefinite(self.trapezoid.columns(k).start + int(info))
        panel[:width], self.pivots[self.trapezoid.columns(k)] = factor, factor.diagonal()
        torch.linalg.solve_triangular(factor.T, panel[width:], upper=True, left=False, out=panel[width:])
        if self.files:
            self.files.write(k, self._flat(k))
        self.bar.update(width**2 * panel.shape[0])
