"""How long each stage took, and on what machine: a file a stage in a run's folder, summed over interrupted runs."""

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exact_ntk.errors import NtkError, StoreError
from exact_ntk.files import read_json, write_json
from exact_ntk.locks import locked

if TYPE_CHECKING:
    import torch

log = logging.getLogger("ntk")


def _read(path: Path) -> dict[str, Any]:
    """A stage's facts; nothing where there are none, or where they are damaged: no result depends on them."""
    if not path.exists():
        return {}
    try:
        return dict(read_json(path))
    except (StoreError, ValueError, TypeError):
        log.warning(f"{path} is damaged: its seconds and counts begin anew")
        return {}


def _path(folder: Path, stage: str) -> Path:
    return folder / "provenance" / f"{stage}.json"


def add_provenance(folder: Path, stage: str, device: "torch.device", **facts: Any) -> None:
    """Add a stage's facts to a run's folder: numbers are added, and lists joined, to those of other processes."""
    from exact_ntk.device import describe

    path = _path(folder, stage)
    with _writing(path.parent):
        earlier = _read(path)
        write_json(path, {**{k: _joined(earlier.get(k), v) for k, v in facts.items()}, **describe(device)})


@contextlib.contextmanager
def _writing(provenance: Path) -> Iterator[None]:
    """Alone there, and without what killed writers of any stage have left."""
    with locked(provenance / ".lock") as lock:
        lock.clear_in(provenance)
        yield


def clear_leftovers(folder: Path) -> None:
    """Remove what killed writers have left, where this process may: a stage that has finished writes nothing again."""
    if (folder / "provenance").is_dir():
        with contextlib.suppress(NtkError), _writing(folder / "provenance"):
            pass


def _joined(earlier: Any, now: Any) -> Any:
    """Of a fact of before, or None, and one of now; what is not of one kind is replaced."""
    if isinstance(now, list) and isinstance(earlier, list):
        return earlier + [fact for fact in now if fact not in earlier]
    if isinstance(now, int | float) and isinstance(earlier, int | float):
        return round(earlier + now, 3)
    return now


def read_provenance(folder: Path) -> dict[str, Any]:
    """Every stage's facts, by its name."""
    return {path.stem: _read(path) for path in sorted((folder / "provenance").glob("*.json"))}


def time_left(folder: Path, stage: str, tiles: int) -> str | None:
    """How long so many more tiles take at the store's own pace so far, or None while that is not known."""
    facts = _read(_path(folder, stage))
    if not facts.get("tiles_computed"):
        return None
    return str(timedelta(seconds=round(tiles * facts["seconds"] / facts["tiles_computed"])))
