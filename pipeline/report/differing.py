"""What the config says of columns: what two of them differ in, in words, and paired differences by that."""

from typing import Any

from exact_ntk.config import RidgeChoice, Zca
from exact_ntk.records import PairedDifference, Results
from exact_ntk.report.paired import CHOICES


def configured(results: Results) -> dict[str, dict[str, Any]]:
    """What the config says of each column, by its name; preprocess also where a column leaves it to the data."""
    default = results.config["data"].get("preprocess", "standard")
    return {column["name"]: {"preprocess": default, **column} for column in results.config["columns"]}


def differences(results: Results) -> dict[str, list[PairedDifference]]:
    """The paired differences by what their columns differ in: mirror images minus none."""
    columns = configured(results)
    groups: dict[str, list[PairedDifference]] = {}
    for p in results.paired:
        groups.setdefault(choice(columns[p.column], columns[p.minus]), []).append(p)
    return groups


def choice(column: dict[str, Any], minus: dict[str, Any]) -> str:
    """What a column has and what the other has in its place: mirror images minus none."""
    key = next((k for k in ("readout", *CHOICES) if column.get(k) != minus.get(k)), "readout")
    return " minus ".join(in_words(key, asked.get(key)) for asked in (column, minus))


def in_words(key: str, value: Any) -> str:
    if key == "preprocess":
        if isinstance(value, dict):
            return "ZCA" + _settings(Zca.model_validate(value))
        return "unprocessed" if value == "none" else f"{value} preprocessing"
    if key == "flips":
        return "mirror images" if value else "none"
    if key == "unit_diagonal":
        return {True: "unit diagonal", "projected": "projected unit diagonal"}.get(value, "none")
    if key == "ridge":
        if isinstance(value, dict):
            return f"ridge by {value['select']}" + _settings(RidgeChoice.model_validate(value))
        return f"ridge {value or 0:g}"
    return str(value)


def _settings(how: Zca | RidgeChoice) -> str:
    """Those that are not the defaults, without which two that differ in them would share a name."""
    given = how.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"method", "select"})
    said = [
        key if value is True else f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in given.items()
    ]
    return f" ({', '.join(said)})" if said else ""
