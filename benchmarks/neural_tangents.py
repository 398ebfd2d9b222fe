"""neural-tangents and the fused kernels by turns on this CPU: whether they agree, and entry-layers/s of each.

    python benchmarks/neural_tangents.py [--folder FOLDER] [--rounds 3] [--depth 21] [--pairs 2x3 100x100]

The first run makes an environment of its own for neural-tangents in FOLDER, with the versions below (2 GB). Both
compute the CNTK with every layer trained; images are random, the first size of --pairs is of GAP and the second of
vanilla. Each round times one block of neural-tangents, compiled before, and then one of ours, larger, since a small one
ends in milliseconds; printed are the medians and ranges as a table. Agreement is of 8 x 8 images in float64, at the
scale that `docs/coming-from.md` gives: ours = C x theirs (GAP) and C H W x theirs (vanilla).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PINNED = ["neural-tangents==0.6.5", "jax==0.5.3", "jaxlib==0.5.3", "tf2jax==0.3.6", "numpy<2", "scipy<1.13"]
# The fastest setting found: with its newer CPU runtime XLA is several times slower here.
FLAGS = {"XLA_FLAGS": "--xla_cpu_use_thunk_runtime=false", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
CHANNELS, SIDE, SMALL_SIDE, SMALL_DEPTH = 3, 32, 8, 5
OURS = {"gap": (24, 24), "vanilla": (600, 600)}  # seconds on two cores


def theirs(readout: str, depth: int, first: int, second: int, side: int) -> None:
    """In the other environment: answer each line on stdin with the seconds of a block, or with its values' file."""
    import jax
    from neural_tangents import stax

    layers = [
        layer for _ in range(depth - 1) for layer in (stax.Conv(1, (3, 3), padding="SAME", W_std=2**0.5), stax.Relu())
    ]
    _, _, kernel = stax.serial(*layers, stax.GlobalAvgPool() if readout == "gap" else stax.Flatten(), stax.Dense(1))
    block = jax.jit(lambda x, y: kernel(x, y, "ntk"))
    x, y = (images.transpose(0, 2, 3, 1) for images in random_images(first, second, side))
    block(x, y).block_until_ready()
    for line in sys.stdin:
        start = time.perf_counter()
        values = block(x, y).block_until_ready()
        seconds = time.perf_counter() - start
        if line.strip():
            np.save(line.strip(), np.asarray(values))
        print(seconds, flush=True)


def random_images(first: int, second: int, side: int) -> list[np.ndarray]:
    """(first, C, side, side) and (second, C, side, side), float64, the same in both environments."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal((n, CHANNELS, side, side)) for n in (first, second)]


def environment(folder: Path) -> Path:
    """The Python of an environment with neural-tangents, made at first use."""
    python = folder / "bin" / "python"
    done = folder / "installed.txt"
    if not done.exists() or done.read_text().split("\n") != PINNED:
        print(f"installing {', '.join(PINNED)} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINNED], check=True)
        done.write_text("\n".join(PINNED))
    return python


class Theirs:
    """A process of the other environment that holds one block of images and its compiled kernel."""

    def __init__(self, python: Path, readout: str, depth: int, shape: tuple[int, int], side: int, **settings: str):
        arguments = [__file__, "--theirs", readout, *map(str, (depth, *shape, side))]
        self.process = subprocess.Popen(
            [python, "-P", *arguments],  # this file has the name of the package
            env={**os.environ, **FLAGS, **settings, "PYTHONPATH": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, keep: str = "") -> float:
        """Of one block; keep: a file to write its values to."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{keep}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("neural-tangents failed: see above")
        return float(line)

    def close(self) -> None:
        self.process.communicate()


def ours(readout: str, depth: int, shape: tuple[int, int], side: int, **how: Any) -> tuple[float, np.ndarray]:
    """Seconds and values of one block."""
    import torch

    from exact_ntk.kernels import cntk

    x, y = map(torch.from_numpy, random_images(*shape, side))
    start = time.perf_counter()
    values = cntk(x, y, depths=(depth,), readouts=(readout,), train_first=True, train_last=True, **how)[0, 0]
    return time.perf_counter() - start, values.numpy()


def disagreement(python: Path, readout: str) -> float:
    """The largest |difference| over sqrt(K(x, x) K(x', x')), both in float64, at the scale of the two."""
    import torch

    shape = (4, 4)
    with tempfile.TemporaryDirectory() as folder:
        other = Theirs(python, readout, SMALL_DEPTH, shape, SMALL_SIDE, JAX_ENABLE_X64="1")
        other.seconds(f"{folder}/theirs.npy")
        other.close()
        values = np.load(f"{folder}/theirs.npy")
    scale = CHANNELS * (1 if readout == "gap" else SMALL_SIDE**2)
    _, mine = ours(readout, SMALL_DEPTH, shape, SMALL_SIDE, dtype=torch.float64)
    return float(np.abs(scale * values - mine).max() / np.abs(mine).max())


def lines(python: Path, depth: int, rounds: int, shapes: dict[str, tuple[int, int]]) -> Iterator[str]:
    """The table, a line a readout."""
    yield "| readout | theirs | ours | times | disagreement in float64 |"
    yield "|---|---:|---:|---:|---:|"
    for readout, shape in shapes.items():
        other = Theirs(python, readout, depth, shape, SIDE)
        other.seconds()
        ours(readout, depth, (2, 2), SIDE)  # compiles
        found = [(other.seconds(), ours(readout, depth, OURS[readout], SIDE)[0]) for _ in range(rounds)]
        other.close()
        pixels = SIDE**2 if readout == "vanilla" else SIDE**4

        def rate(n: tuple[int, int], seconds: float, pixels: int = pixels) -> float:
            return n[0] * n[1] * pixels * (depth - 1) / seconds

        rates = [(rate(shape, a), rate(OURS[readout], b)) for a, b in found]
        times = sorted(b / a for a, b in rates)
        medians = [statistics.median(side) for side in zip(*rates, strict=True)]
        yield (
            f"| {readout} | {medians[0]:.2g} | {medians[1]:.2g} | {statistics.median(times):.0f} "
            f"({times[0]:.0f} to {times[-1]:.0f}) | {disagreement(python, readout):.1e} |"
        )


def as_shape(text: str) -> tuple[int, int]:
    """2x3 -> (2, 3)."""
    first, second = map(int, text.split("x"))
    return first, second


def main() -> None:
    """Print the table, and what it was measured on."""
    parser = argparse.ArgumentParser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    parser.add_argument("--folder", type=Path, default=cache / "ntk" / "neural-tangents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=21)
    parser.add_argument("--pairs", type=as_shape, nargs=2, default=[(2, 3), (100, 100)])
    chosen = parser.parse_args()
    from exact_ntk.device import describe, keep_to_cores, resolve_device

    keep_to_cores()
    python = environment(chosen.folder)
    machine = describe(resolve_device("cpu"))
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
    load = os.getloadavg()[0]
    print(f"{machine['device']}, {machine['threads']} threads, load {load:.1f} before; {versions}; {', '.join(PINNED)}")
    print(f"entry-layers/s at {SIDE} x {SIDE} x {CHANNELS}, depth {chosen.depth}, {chosen.rounds} rounds\n")
    for line in lines(python, chosen.depth, chosen.rounds, dict(zip(("gap", "vanilla"), chosen.pairs, strict=True))):
        print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--theirs"]:
        theirs(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
