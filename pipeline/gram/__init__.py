"""Gram matrices on disk: which stores and tiles a config needs, how they are filled, and how they are read."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exact_ntk.gram.tensors import StoredKernels, gram_store

__all__ = ["StoredKernels", "gram_store"]


def __getattr__(name: str) -> Any:
    """These when they are first asked for: they import every other room of this one."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from exact_ntk.gram import tensors

    return getattr(tensors, name)
