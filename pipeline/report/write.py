"""Writing a report: results.json, provenance.json, the table, the figures and report.html."""

from pathlib import Path

from exact_ntk.files import write_atomic, write_json, write_text
from exact_ntk.report.collect import Collected, HeatMap
from exact_ntk.report.figures import accuracy_figure, curves_figure, gram_figure, width_figure
from exact_ntk.report.page import page
from exact_ntk.report.tables import csv_table, markdown_table


def write_report(collected: Collected, heat_map: HeatMap | None, config_yaml: str, folder: Path) -> None:
    """Write every file of the report into `folder`; the same records give the same bytes."""
    results, provenance = collected.results, collected.provenance
    figures = {
        "Test accuracy against depth": ("accuracy.png", accuracy_figure(results)),
        "Networks against width, beside the kernel they tend to": ("width.png", width_figure(results)),
        "Training curves of the networks, a line a seed": ("curves.png", curves_figure(results)),
    }
    if heat_map:
        caption = f"Gram matrix of {heat_map.title}, {len(heat_map.y)} training images sorted by class"
        figures[caption] = ("gram.png", gram_figure(heat_map.k, heat_map.y, heat_map.classes, heat_map.title))
    made = {caption: (name, png) for caption, (name, png) in figures.items() if png}
    write_json(folder / "results.json", results.json_value())
    write_json(folder / "provenance.json", provenance)
    write_text(folder / "config.yaml", config_yaml)
    write_text(folder / "table.md", markdown_table(results))
    write_text(folder / "table.csv", csv_table(results))
    for name, png in made.values():
        write_atomic(folder / name, lambda file, png=png: file.write(png))  # type: ignore[misc]
    pictures = {caption: png for caption, (_, png) in made.items()}
    write_text(folder / "report.html", page(results, provenance, pictures))
