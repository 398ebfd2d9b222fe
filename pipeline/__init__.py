"""Exact computation with infinitely wide convolutional networks, stage by stage."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exact_ntk.data.folder import load_folder
    from exact_ntk.estimators import CNTKClassifier, CNTKRegressor

__version__ = "0.1.0"
__all__ = ["CNTKClassifier", "CNTKRegressor", "__version__", "load_folder"]
_WHERE = {
    "CNTKClassifier": "exact_ntk.estimators",
    "CNTKRegressor": "exact_ntk.estimators",
    "load_folder": "exact_ntk.data.folder",
}


def __getattr__(name: str) -> Any:
    """What is exported, when it is first asked for: torch and scikit-learn take seconds to import."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    """What completion and help() list, though not imported yet."""
    return sorted({*globals(), *__all__})
