"""Figures as PNG bytes, drawn by Agg alone: no screen, and no backend that the environment names, is asked for."""

import contextlib
import io
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@cache
def _import_matplotlib() -> Any:
    """A notebook's kernel exports a backend of its own, and matplotlib fails at import where that is not installed."""
    first, named = "matplotlib" not in sys.modules, os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if first and named is not None:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = named  # for whoever shows figures in this process
    return matplotlib


def subplots(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple["Figure", Any]:
    """A figure of `size` inches and its panels, laid out so that nothing overlaps; options: of `Figure.subplots`."""
    _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def viridis(at: Any) -> Any:
    """The colours, red to alpha, of places in [0, 1]: of lines that come in an order."""
    return _import_matplotlib().colormaps["viridis"](at)


def to_png(figure: "Figure") -> bytes:
    """The same figure gives the same bytes."""
    out = io.BytesIO()
    # No software or date in the file.
    figure.savefig(out, format="png", dpi=140, metadata={"Software": None})
    return out.getvalue()
