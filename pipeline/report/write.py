"""Writing a report: results.json, provenance.json, the tables, the figures and report.html; never an emptier one."""

from pathlib import Path

from exact_ntk.errors import Incomplete, StoreError
from exact_ntk.files import write_json, write_text
from exact_ntk.locks import locked
from exact_ntk.records import Results, read_record
from exact_ntk.report.collect import Collected
from exact_ntk.report.drawing import standalone
from exact_ntk.report.figures import drawings
from exact_ntk.report.page import beside, page
from exact_ntk.report.spectra import kept_drawings
from exact_ntk.report.tables import csv_table, latex_table, markdown_table

# What of a column does not change what its cells are.
DISPLAY = ("name", "depths", "paper")


def lost_cells(new: Results, old: Results) -> list[str]:
    """The cells of an earlier table that the new config still asks for and the new table does not hold.

    A cell that failed is known to be none, and takes the place of what stood there.
    """
    if any(new.config[key] != old.config[key] for key in ("data", "order")):
        return []

    def asked(results: Results) -> dict[str, dict]:
        return {c["name"]: {k: v for k, v in c.items() if k not in DISPLAY} for c in results.config["columns"]}

    before, now = asked(old), asked(new)
    lost = [(before[r.column], r.depth) for r in old.records]
    return [f"{m.column}/{m.depth}" for m in new.missing if not m.failed and (now[m.column], m.depth) in lost]


def _refuse_to_lose(new: Results, folder: Path) -> None:
    path = folder / "results.json"
    if not new.missing or not path.exists():
        return
    try:
        lost = lost_cells(new, read_record(path, Results))
    except StoreError as error:
        raise Incomplete(
            f"{error}, or run `ntk run` first: the new table would have {len(new.missing)} cells missing, and what "
            "the one there holds cannot be told"
        ) from error
    if lost:
        raise Incomplete(
            f"{folder}: the table there is kept: a new one would lose {', '.join(lost)}, which this config still "
            "asks for: run `ntk run`, or move the folder away"
        )


def write_report(collected: Collected, config_yaml: str, folder: Path) -> None:
    """Write every file of the report into `folder`, one process at a time; the same records give the same bytes.

    Raises Incomplete, and leaves the table that is there, where the new one would lose a cell that the config still
    asks for.
    """
    results = collected.results
    with locked(folder.parent / f".{folder.name}.lock", remove=True) as lock:
        _refuse_to_lose(results, folder)
        lock.clear_in(folder, "**/.*@*.partial")
        made = [*drawings(results), *kept_drawings(collected)]
        write_json(folder / "results.json", results.json_value())
        write_json(folder / "provenance.json", collected.provenance)
        write_text(folder / "config.yaml", config_yaml)
        write_text(folder / "table.md", markdown_table(results))
        write_text(folder / "table.csv", csv_table(results))
        write_text(folder / "table.tex", latex_table(results))
        panels = {f"{p.name}.svg": standalone(p.svg) for d in made for p in d.panels}
        _write_figures(folder / "figures", panels | beside(made))
        write_text(folder / "report.html", page(collected, made, config_yaml))


def _write_figures(folder: Path, figures: dict[str, str]) -> None:
    """Panels and their values; those of an earlier table that this one lacks go."""
    for name, svg in figures.items():
        write_text(folder / name, svg)
    for old in folder.glob("*"):
        if old.suffix in (".svg", ".csv") and old.name not in figures:
            old.unlink()
