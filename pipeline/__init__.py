"""Exact computation with infinitely wide convolutional networks, stage by stage."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exact_ntk.estimators import CNTKClassifier, CNTKRegressor

__version__ = "0.1.0"
__all__ = ["CNTKClassifier", "CNTKRegressor", "__version__"]


def __getattr__(name: str) -> Any:
    """The estimators when they are first asked for: torch and scikit-learn take seconds to import."""
    if name not in ("CNTKClassifier", "CNTKRegressor"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from exact_ntk import estimators

    return getattr(estimators, name)
