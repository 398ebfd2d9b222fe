"""One worker: a table's images on a device of its own, loaded once, with which it does one task after another."""

import os
from pathlib import Path

import torch

from exact_ntk.config import Config
from exact_ntk.device import keep_to_cores
from exact_ntk.draws import load_images
from exact_ntk.gram.fill import Filler
from exact_ntk.gram.sources import Source
from exact_ntk.progress import hide_progress
from exact_ntk.table import Table


class Worker:
    """folder: of the run.  threads: how many it may compute on, unless OMP_NUM_THREADS says so."""

    def __init__(self, config: Config, folder: Path, device: torch.device, threads: int):
        hide_progress()
        keep_to_cores()
        if not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(max(1, min(threads, torch.get_num_threads())))
        self.device = device
        self.table = Table(config, load_images(config), device, folder)
        self.filler = Filler(self.table.shelf, device, config.gram.tile)

    def source(self, name: str) -> Source:
        """The source of that fingerprint."""
        every = (s for cell in self.table.kernel_cells for place in cell.places for s in place.sources)
        return next(source for source in every if source.name == name)
