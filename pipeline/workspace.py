"""Where a config's files lie: heavy ones in runs/NAME, small ones to keep in results/NAME."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exact_ntk.config import Config
from exact_ntk.errors import ConfigError
from exact_ntk.files import fingerprint, write_text
from exact_ntk.locks import locked
from exact_ntk.settings import load_config


@dataclass(frozen=True)
class Workspace:
    """A checked config with its two folders; overrides that change it have results of their own."""

    config: Config
    run: Path
    results: Path

    @property
    def yaml(self) -> str:
        """The resolved config, defaults included: a line a column."""
        values = self.config.resolved()

        def flow(value: Any) -> str:
            return (
                yaml.safe_dump(value, sort_keys=False, width=10**6, default_flow_style=True)
                .removesuffix("...\n")
                .strip()
            )

        head = [f"{key}: {flow(value)}" for key, value in values.items() if key != "columns"]
        return "\n".join([*head, "columns:", *(f"  - {flow(column)}" for column in values["columns"])]) + "\n"

    def save_config(self) -> Path:
        """Keep the resolved config beside what it produces, one file for each variant; returns its path."""
        path = self.run / "configs" / f"{fingerprint(self.config.resolved())}.yaml"
        with locked(path.with_suffix(".lock"), remove=True) as lock:
            lock.clear(path)
            write_text(path, self.yaml)
        return path


def _plain(config: str) -> Config | None:
    """The config without overrides, or None where it needs them."""
    try:
        return load_config(config)
    except ConfigError:
        return None


def open_workspace(config: str, overrides: list[str], runs: Path, results: Path) -> Workspace:
    """Load a config and name its folders. Raises ConfigError."""
    loaded = load_config(config, overrides)
    for option, root in (("--runs", runs), ("--results", results)):
        if root.exists() and not root.is_dir():
            raise ConfigError(f"{option} {root}: is a file, not a folder")
    folder = results / loaded.name
    if overrides and loaded != _plain(config):
        folder = folder / "variants" / fingerprint(loaded.resolved())
    return Workspace(loaded, runs / loaded.name, folder)
