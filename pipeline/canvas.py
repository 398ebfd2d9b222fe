"""Figures as PNG or SVG, drawn by Agg alone: no screen, and no backend that the environment names, is asked for."""

import contextlib
import io
import os
import re
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


def to_svg(figure: "Figure", name: str) -> str:
    """An SVG element without background, black in currentColor; the same figure gives the same text.

    name: of what the figure shows; it begins every id, so that one page may hold several.
    """
    out = io.StringIO()
    figure.patch.set_visible(False)
    for axis in figure.axes:
        axis.patch.set_visible(False)
    with _import_matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": "ntk"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*|(?<=px )'DejaVu Sans'[^;\"]*", "font-family: system-ui, sans-serif", text)
    text = text.replace("#000000", "currentColor")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r"\n\s*(?=\n)", "", text).replace("<svg ", '<svg fill="currentColor" ', 1)


def picture_png(shades: Any, **options: Any) -> bytes:
    """An image (H, W, 3) of red, green and blue from 0 to 1; options: of matplotlib's `imsave`."""
    _import_matplotlib()
    from matplotlib.image import imsave

    out = io.BytesIO()
    no_software: dict[str, Any] = {"Software": None}
    imsave(out, shades, format="png", metadata=no_software, **options)
    return out.getvalue()


def heat_png(values: Any, low: float, high: float) -> bytes:
    """A matrix, a pixel an entry, dark at `low` and below to bright at `high` and above."""
    return picture_png(values, vmin=low, vmax=high, cmap="magma")
