"""Exact computation with infinitely wide convolutional networks, stage by stage."""

__version__ = "0.1.0"
