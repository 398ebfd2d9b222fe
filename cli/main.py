"""The `ntk` command. Heavy imports wait until a command runs, so that --help answers at once."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer

from exact_ntk.cli.defaults import RESULTS, RUNS

app = typer.Typer(
    name="ntk",
    help="Exact kernels of infinitely wide convolutional networks (Arora et al. 2019), and their accuracy table.\n\n"
    "Every stage reads what the one before it left on disk and skips what is done, so any command can be killed and "
    "run again. Start with `ntk run`: the bundled digits table, offline, in minutes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _show_version(asked: bool) -> None:
    """As the first line of a bug report needs it."""
    if asked:
        from importlib.metadata import PackageNotFoundError, version
        from platform import python_version

        try:
            own = version("exact-ntk")
        except PackageNotFoundError:
            own = "(not installed)"
        print(f"ntk {own}, torch {version('torch')}, Python {python_version()}")
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the versions and exit.")
    ] = False,
) -> None:
    from exact_ntk.cli.console import show_log

    show_log()


def _complete_config(incomplete: str) -> list[str]:
    from exact_ntk.settings import bundled

    return [name for name in bundled() if name.startswith(incomplete)]


def _expanded(path: Path) -> Path:
    if not str(path).startswith("~"):
        return path
    # A shell leaves the ~ of --runs=~/scratch alone.
    from exact_ntk.files import expanded

    return expanded(path)


ConfigName = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A bundled config (digits, digits-width, digits-beyond, cifar10, cifar10-2k, cifar10-beyond) or the path "
        "of a YAML file.",
        autocompletion=_complete_config,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the config, for instance --set columns.0.ridge=1.0e-4; * is every item of a list. "
        "May be repeated.",
    ),
]
Runs = Annotated[
    Path, typer.Option(help="Root of the heavy files: Gram stores, checkpoints, predictions.", callback=_expanded)
]
Results = Annotated[
    Path, typer.Option(help="Root of the small files: tables, figures, provenance.", callback=_expanded)
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1, ..., or auto: a GPU where there is one. cuda:0,2 or cuda:all: several, a process each."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What a solve may take, for instance 8GB; by default 80 % of the machine's, its cgroup's or the GPU's "
        "memory. It decides what is in memory and what in files, and no result.",
        show_default=False,
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="auto|ADDRESS",
        help="Compute on a Ray cluster: an actor a GPU, or with --device cpu a share of the cores. --runs has to lie "
        "on a file system that all its machines share.",
        show_default=False,
    ),
]
Pictures = Annotated[
    bool,
    typer.Option(
        "--pictures",
        help="Show in the report some images that one column gets right and another wrong. Those of the digits "
        "always are; others may be private.",
    ),
]
WorkerCores = Annotated[
    int, typer.Option("--worker-cores", min=1, help="Cores of each worker of a cluster without GPUs.")
]
CORES = 4


def _be_quiet(asked: bool) -> None:
    if asked:
        from exact_ntk.cli.console import be_quiet

        be_quiet()


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_be_quiet, help="Only results, warnings and errors: no progress.")
]
Json = Annotated[bool, typer.Option("--json", help="Print what is found as JSON, on stdout alone.")]


def _stages() -> ModuleType:
    """The commands' module, and torch with it."""
    from exact_ntk.cli import stages

    return stages


def _shard(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
        raise typer.BadParameter(f"{text}: should be k/n with 1 <= k <= n, for instance 2/4")
    return int(k), int(n)


@app.command()
def run(
    config: ConfigName = "digits",
    overrides: Overrides = None,
    runs: Runs = RUNS,
    results: Results = RESULTS,
    device: Device = "auto",
    memory: Memory = None,
    pictures: Pictures = False,
    quiet: Quiet = False,
) -> None:
    """Run every stage in order, skipping what is done: download, compute-gram, solve, train-cnn, report."""
    _stages().begin(config, overrides, runs, results, device, memory=memory, pictures=pictures).run()


@app.command()
def download(config: ConfigName = "digits", overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Fetch the config's data set and verify its checksums."""
    _stages().begin(config, overrides, RUNS, RESULTS, "cpu").download()


@app.command("compute-gram")
def compute_gram(
    config: ConfigName = "digits",
    overrides: Overrides = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    shard: Annotated[
        str,
        typer.Option(metavar="K/N", help="Compute the K-th of N shares of the tiles: one a host."),
    ] = "1/1",
    repair: Annotated[bool, typer.Option("--repair", help="First set aside tiles whose checksum fails.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Also the tiles that only draws already solved need.")] = False,
    cluster: Cluster = None,
    worker_cores: WorkerCores = CORES,
    quiet: Quiet = False,
) -> None:
    """Compute the Gram matrices that the config's kernel columns need, tile by tile.

    A finished tile is never computed again. Any number of processes may fill one store at once.
    """
    share = _shard(shard)
    on = (cluster, worker_cores) if cluster else None
    _stages().begin(config, overrides, runs, RESULTS, device, cluster=on).compute_gram(share, repair, every)


@app.command()
def solve(
    config: ConfigName = "digits",
    overrides: Overrides = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    memory: Memory = None,
    quiet: Quiet = False,
) -> None:
    """Kernel regression in float64 for every cell of the kernel columns; predictions are saved.

    Memory, disk and time are said first. A large factorisation goes on where it was interrupted.
    """
    _stages().begin(config, overrides, runs, RESULTS, device, memory=memory).solve()


@app.command("train-cnn")
def train_cnn(
    config: ConfigName = "digits",
    overrides: Overrides = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    only: Annotated[str | None, typer.Option(metavar="COLUMN[/DEPTH]", help="For instance CNN-GAP/21.")] = None,
    lr: Annotated[float | None, typer.Option(help="Only this learning rate of the config's list.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Only this seed, counted from 0; without --lr at every rate of the list.")
    ] = None,
    shard: Annotated[str, typer.Option(metavar="K/N", help="Train the K-th of N shares of the runs.")] = "1/1",
    cluster: Cluster = None,
    worker_cores: WorkerCores = CORES,
    quiet: Quiet = False,
) -> None:
    """Train the finite networks: learning rates x seeds x depths, each run once, each with a checkpoint.

    A learning rate that diverges ends its run at once and is reported, never averaged.
    """
    share, on = _shard(shard), (cluster, worker_cores) if cluster else None
    _stages().begin(config, overrides, runs, RESULTS, device, cluster=on).train_cnn(only, lr, seed, share)


@app.command()
def report(
    config: ConfigName = "digits",
    overrides: Overrides = None,
    runs: Runs = RUNS,
    results: Results = RESULTS,
    device: Device = "auto",
    pictures: Pictures = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write results.json, the table, the figures and report.html; missing cells say what would fill them."""
    _stages().begin(config, overrides, runs, results, device, pictures=pictures).report(as_json)


Column = Annotated[str, typer.Option(help="A kernel column, by its name in the table, for instance CNTK-GAP-500.")]
Depth = Annotated[int, typer.Option(help="One of the column's depths.")]


@app.command()
def predict(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A bundled config or the path of a YAML file.")],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES.npz", help="An npz file with the array x or images.", callback=_expanded)
    ],
    column: Column,
    depth: Depth,
    draw: Annotated[int | None, typer.Option(help="One draw; without it the mean of all.", show_default=False)] = None,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    device: Device = "auto",
) -> None:
    """Labels and outputs for new images, from a solved kernel column: CSV on stdout, a row an image.

    The images are normalised as the training images were; outputs are those of exact regression.
    """
    _stages().begin(config, overrides, runs, RESULTS, device, quiet=True).predict(column, depth, draw, images)


@app.command()
def export(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A bundled config or the path of a YAML file.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the .npy files go.", callback=_expanded)],
    column: Column,
    depth: Depth,
    what: Annotated[
        Literal["gram", "labels", "predictions", "spectrum"],
        typer.Option(help="Kernel matrices, labels, outputs on the test images, or eigenvalues."),
    ],
    draw: Annotated[int, typer.Option(help="Counted from 0.")] = 0,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    memory: Memory = None,
) -> None:
    """A draw of a kernel column as .npy files, with the index of its images in the data set."""
    session = _stages().begin(config, overrides, runs, RESULTS, device, quiet=True, memory=memory)
    session.export(column, depth, draw, what, folder)


@app.command()
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="DIR", help="A results folder, such as results/digits.", callback=_expanded)
    ],
    second: Annotated[Path, typer.Argument(metavar="DIR", help="Another.", callback=_expanded)],
) -> None:
    """Two tables side by side: cells of one column and depth, their difference and its error, differing config fields.

    Reads results.json alone.
    """
    from exact_ntk.report import compare as tables

    print(tables.compare_results(*map(tables.read_results, (first, second))))


@app.command()
def status(
    config: ConfigName = "digits",
    overrides: Overrides = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every finished tile, record and checkpoint and check its checksum.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What is done, missing or damaged, and the time left. Exits with status 3 while anything is missing."""
    from exact_ntk.cli.state import show_status

    show_status(config, overrides or [], runs, device, verify, as_json)


@app.command()
def plan(
    config: ConfigName = "digits",
    overrides: Overrides = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    memory: Memory = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What is still to compute, column by column: work, time at rates measured here, files, disk and memory.

    Says what does not fit and what would make it fit. Computes and writes nothing.
    """
    _stages().begin(config, overrides, runs, RESULTS, device, quiet=True, memory=memory).plan(as_json)


@app.command()
def verify(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller widths: two minutes on two cores.")] = False,
    results: Results = RESULTS,
    device: Device = "auto",
) -> None:
    """Measure theorems 3.1 and 3.2: NTKs at initialisation, in training, and trained nets beside kernel regression.

    Writes a summary with every claim, its measured value, criterion and verdict, and figures, to theory/ (with
    --quick: theory-quick/) under the results. Exits with status 1 unless every claim holds.
    """
    _stages()
    from exact_ntk.cli.verify import verify_claims

    verify_claims(quick, results, device)


@app.command()
def bench(
    results: Results = RESULTS,
    device: Device = "auto",
    seconds: Annotated[float, typer.Option(min=0.01, help="About half of what each figure may take.")] = 2.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure every kernel backend here: entry-layers/s, the share of the machine's limit, the full table's time.

    V and GAP, 8 x 8 and 32 x 32 images, depths 3 and 21; about two minutes. Writes results/bench/DEVICE.json.
    """
    _stages().measure_speed(results, device, seconds, as_json)


def _out_of_memory(error: Exception) -> str | None:
    """One line for the errors by which Python and torch say that memory is out, or None for others."""
    text = str(error).strip().partition("\n")[0]
    if type(error).__name__ == "OutOfMemoryError":
        return f"the GPU is out of memory ({text}): give --device cpu, or lower gram.tile, batch_size or width"
    if isinstance(error, MemoryError) or "not enough memory" in text or "can't allocate memory" in text:
        return f"out of memory ({text}): lower train.n, gram.tile, batch_size or width, or use a larger machine"
    return None


# These measure from the start each time; every other command goes on from what is on disk.
STARTS_ANEW = ("verify", "bench")


def _wait_briefly() -> None:
    """Have torch's threads sleep soon when they wait for one another, unless the user has said how they are to wait.

    By default they keep their cores busy for milliseconds, at every step: where other programs want the cores, which
    those threads are waiting for too, training took ten times as long. It must be said before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main() -> None:
    """Run the command line; errors meant for the user are one line on stderr and an exit status."""
    from exact_ntk.cli.console import pasteable, steady_streams
    from exact_ntk.cli.stop import Stopped, be_silent, stoppable

    _wait_briefly()
    with steady_streams():
        try:
            with stoppable():
                app()
        except Stopped as stopped:
            be_silent()
            way = "start anew" if sys.argv[1:2] and sys.argv[1] in STARTS_ANEW else "go on"
            print(f"stopped; run the same command to {way}", file=sys.stderr)
            sys.exit(stopped.exit_status)
        except Exception as error:
            from exact_ntk.errors import NtkError

            if _out_of_memory(error):
                print(f"error: {_out_of_memory(error)}", file=sys.stderr)
                sys.exit(1)
            if not isinstance(error, NtkError | OSError):
                raise
            print(pasteable(f"error: {error}"), file=sys.stderr)
            sys.exit(getattr(error, "exit_status", 1))


if __name__ == "__main__":
    main()
