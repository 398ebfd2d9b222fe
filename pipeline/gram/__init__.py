"""Gram matrices on disk: which stores and tiles a config needs, how they are filled, and how they are read."""
