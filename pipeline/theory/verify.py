"""`ntk verify`: every experiment in turn, its claims and figures, and the summary of them all."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from exact_ntk.device import describe
from exact_ntk.files import write_atomic, write_json, write_text
from exact_ntk.networks.precision import arithmetic
from exact_ntk.progress import progress
from exact_ntk.theory import claims, figures, quadrature, summary, theorem_3_1, theorem_3_2
from exact_ntk.theory.criteria import FALLING, Claim
from exact_ntk.theory.summary import Section
from exact_ntk.theory.theorem_3_2 import TrainedWidth, TrainingSize
from exact_ntk.theory.training import LOSS_TARGET


@dataclass(frozen=True)
class Plan:
    """How much each experiment measures; shallow and deep are fully connected."""

    initialisation: theorem_3_1.InitialisationSize
    cnn_initialisation: theorem_3_1.CnnInitialisationSize
    shallow: TrainingSize
    deep: TrainingSize
    kappa: theorem_3_2.KappaSize
    cnn: TrainingSize


def _powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(2**k for k in range(first, last + 1))


QUICK = Plan(
    theorem_3_1.InitialisationSize(_powers(6, 10), seeds=400),
    theorem_3_1.CnnInitialisationSize(_powers(4, 7), seeds=600),
    TrainingSize(_powers(6, 10), seeds=20, hidden_layers=1, share=0.05),
    TrainingSize(_powers(6, 9), seeds=10, hidden_layers=2),
    theorem_3_2.KappaSize((0.1, 0.2, 0.5, 1.0, 2.0, 5.0), width=256, seeds=60),
    TrainingSize(_powers(5, 8), seeds=24, hidden_layers=2, share=0.2, each=1),
)
FULL = Plan(
    theorem_3_1.InitialisationSize(_powers(6, 13), seeds=400, law_seeds=4000),
    theorem_3_1.CnnInitialisationSize(_powers(4, 8), seeds=600),
    TrainingSize(_powers(6, 12), seeds=20, hidden_layers=1, share=0.05),
    TrainingSize(_powers(6, 12), seeds=8, hidden_layers=2),
    theorem_3_2.KappaSize((0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), width=1024, seeds=40),
    TrainingSize(_powers(5, 9), seeds=24, hidden_layers=2, share=0.5, each=2),
)


@dataclass(frozen=True)
class Finding:
    """One experiment's section and its figures: file name -> PNG."""

    section: Section
    figures: dict[str, bytes]


def _finding(title: str, text: str, found: list[Claim], pictures: dict[str, bytes]) -> Finding:
    return Finding(Section(title, text, found, list(pictures)), pictures)


def _quadrature() -> Finding:
    found = quadrature.measure_quadrature()
    text = (
        "Gaussian expectations of an activation and of its derivative, by quadrature against closed forms: the largest "
        "error times c_sigma over correlations from -1 to 1, both variances up to the one that heads the column.\n\n"
    )
    pictures = {"quadrature.png": figures.quadrature_figure(found)}
    return _finding("Quadrature", text + summary.quadrature_table(found), claims.of_quadrature(found), pictures)


def _initialisation(size: theorem_3_1.InitialisationSize, device: torch.device) -> Finding:
    with progress("theorem 3.1", size.networks, "net") as bar:
        found = theorem_3_1.measure_initialisation(size, device, bar.update)
    p_value = theorem_3_1.law_p_value(size, device)
    text = (
        f"Fully connected ReLU networks of L = 1 to {size.deepest} hidden layers: {size.seeds} seeds at each width "
        f"from {size.widths[0]} to {size.widths[-1]}, {size.inputs} digits of norm 1, errors pooled over seeds and "
        "pairs, intervals from whole seeds drawn anew. The finite NTK is the sum over layers of <b, b'> <g, g'>. "
        "The signals g and b are sampled exactly in law without the weight matrices; the first claim checks that "
        f"law against drawn weights ({size.law_seeds} of each, width {theorem_3_1.LAW_WIDTH}, "
        f"L = {theorem_3_1.LAW_LAYERS}). "
        "Theorem 3.1 allows an error of (L + 1) eps at width of order L^6 eps^-4: its bound falls like width^-1/4."
    )
    pictures = {
        "theorem-3.1.png": figures.initialisation_figure(found),
        "theorem-3.1-layers.png": figures.layers_figure(found),
    }
    return _finding("Theorem 3.1: the NTK at initialisation", text, claims.of_initialisation(found, p_value), pictures)


def _cnn_initialisation(size: theorem_3_1.CnnInitialisationSize, device: torch.device) -> Finding:
    with progress("theorem 3.1, CNNs", size.networks, "net") as bar:
        found = theorem_3_1.measure_cnn(size, device, bar.update)
    text = (
        f"CNN-V and CNN-GAP of depth {size.depth}, NTKs by automatic differentiation: {size.seeds} seeds at each "
        f"number of channels from {size.widths[0]} to {size.widths[-1]}, {size.images} digits of 8 x 8 pixels."
    )
    pictures = {"theorem-3.1-cnn.png": figures.cnn_initialisation_figure(found, size.widths)}
    judged = claims.of_cnn_initialisation(found, size.widths)
    return _finding("The convolutional NTK at initialisation", text, judged, pictures)


TRAINED = (
    f"Full-batch gradient descent on 1/2 sum (u - y)^2 until it is at most {LOSS_TARGET:g}. f_ntk is gradient flow "
    "with the limit kernel H* from the same initial function, f_0(x) + ker(x, X) H*^-1 (I - exp(-H* t)) (y - f_0(X))."
)


def _trained(
    label: str, count: int, unit: str, start: Callable[[theorem_3_2.Watch], Iterator[TrainedWidth]]
) -> list[TrainedWidth]:
    """Every run of an experiment, behind a bar that shows the loss."""
    with progress(f"theorem 3.2, {label}", count, unit) as bar:
        runs = []
        for run in start(lambda loss: bar.set_postfix_str(f"loss {loss:.1e}", refresh=False)):
            runs.append(run)
            bar.update()
    return runs


def _training(
    name: str,
    file: str,
    size: TrainingSize,
    experiment: Callable[[TrainingSize, torch.device, theorem_3_2.Watch], Iterator[TrainedWidth]],
    device: torch.device,
    limit: float = FALLING,
) -> Finding:
    runs = _trained(name, len(size.widths), "width", lambda watch: experiment(size, device, watch))
    text = (
        f"{TRAINED} kappa = 1, {size.seeds} seeds at each width from {size.widths[0]} to {size.widths[-1]}, "
        f"{2 * size.each} training and {2 * size.test_each} test digits of two classes, step {size.share:g} / "
        "lambda_max(H*)."
    )
    pictures = {file: figures.training_figure(name, runs)}
    return _finding(f"Theorem 3.2: {name}", text, claims.of_training(name, runs, limit), pictures)


def _kappa(size: theorem_3_2.KappaSize, device: torch.device) -> Finding:
    name = f"L = {size.hidden_layers}, width {size.width}"
    runs = _trained("over kappa", len(size.kappas), "kappa", lambda watch: theorem_3_2.over_kappa(size, device, watch))
    text = (
        f"f_nn = kappa f, {size.seeds} seeds at each kappa. The noise of the initial function is in proportion to "
        "kappa; the smaller kappa, the further the weights, and with them H, have to move."
    )
    pictures = {"theorem-3.2-kappa.png": figures.over_kappa_figure(name, runs)}
    return _finding("Theorem 3.2 over kappa", text, claims.of_kappa(name, runs), pictures)


def measure_all(plan: Plan, device: torch.device) -> list[Finding]:
    """TrainedWidth every experiment of a plan."""
    shallow, deep, cnn = plan.shallow, plan.deep, plan.cnn
    gap = f"CNN-GAP, depth {cnn.hidden_layers + 1}"
    return [
        _quadrature(),
        _initialisation(plan.initialisation, device),
        _cnn_initialisation(plan.cnn_initialisation, device),
        _training(f"L = {shallow.hidden_layers}", "theorem-3.2.png", shallow, theorem_3_2.fully_connected, device),
        _training(f"L = {deep.hidden_layers}", "theorem-3.2-deep.png", deep, theorem_3_2.fully_connected, device),
        _kappa(plan.kappa, device),
        _training(gap, "theorem-3.2-cnn.png", cnn, theorem_3_2.convolutional, device, claims.FALLING_GAP),
    ]


def verify_theorems(plan: Plan, folder: Path, device: torch.device) -> list[Claim]:
    """TrainedWidth a plan and write summary.md, summary.json, provenance.json and the figures; returns every claim.

    summary.json and the figures are the same on a rerun on the same CPU model and thread count.
    """
    start = time.perf_counter()
    with arithmetic("float32", device):
        found = measure_all(plan, device)
    seconds = round(time.perf_counter() - start, 1)
    sections = [f.section for f in found]
    facts = describe(device)
    threads = f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
    made = f"Made by `ntk verify` in {seconds:.0f} s on {facts['device']}, {threads}."
    for name, png in ((name, png) for f in found for name, png in f.figures.items()):
        write_atomic(folder / name, lambda file, png=png: file.write(png))  # type: ignore[misc]
    write_text(folder / "summary.md", summary.summary_page(sections, made))
    write_json(folder / "summary.json", summary.summary_record(sections, asdict(plan)))
    write_json(folder / "provenance.json", {"seconds": seconds, **facts})
    return [claim for section in sections for claim in section.claims]
