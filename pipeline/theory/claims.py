"""What the theory says of each experiment's data: the claims of the summary, section by section."""

from collections.abc import Sequence

from exact_ntk.theory.criteria import FALLING, QUADRATURE, Claim, at_most, rate_below, rate_inside, same_law
from exact_ntk.theory.quadrature import VARIANCES, QuadratureErrors
from exact_ntk.theory.theorem_3_1 import Initialisation
from exact_ntk.theory.theorem_3_2 import TrainedWidth, largest
from exact_ntk.theory.training import LOSS_TARGET

QUANTILES = (0.5, 0.9)
MEDIAN = 0.5
# The initial function is kappa f_0 to the letter; what is left is the noise of finitely many seeds.
NOISE_BAND = (0.85, 1.15)
DRIFT_OVER_KAPPA = -0.5
# CNTK-GAP is ill-conditioned: at a few hundred channels H is too far from H* for errors to be small perturbations.
FALLING_GAP = -0.1


def _named(quantile: float) -> str:
    return "median" if quantile == MEDIAN else f"{100 * quantile:g} % quantile"


def of_quadrature(found: Sequence[QuadratureErrors]) -> list[Claim]:
    """Closed forms and quadrature agree at variances of at most 1."""
    k = VARIANCES.index(1.0)
    return [
        at_most(
            f"{q.activation}: closed form and {q.rule} quadrature agree, variances up to 1", q.errors[k], QUADRATURE
        )
        for q in found
    ]


def of_initialisation(found: Initialisation, law_p_value: float) -> list[Claim]:
    """The NTK at initialisation tends to Theta^(L) like width^-1/2, and so does each factor of each layer."""
    claims = [same_law("sampled signals have the law of those of drawn weights", law_p_value)]
    claims += [
        rate_inside(f"L = {depth}: {_named(q)} of the NTK's error falls like width^-1/2", found.widths, errors, q)
        for depth, errors in found.ntk.items()
        for q in QUANTILES
    ]
    deepest = max(found.ntk)
    for what, layers in (("<g, g'> tends to Sigma", found.forward), ("<b, b'> tends to prod Sigmadot", found.backward)):
        claims += [
            rate_inside(
                f"L = {deepest}, h = {h}: {what}, {_named(MEDIAN)} error like width^-1/2", found.widths, e, MEDIAN
            )
            for h, e in layers.items()
        ]
    return claims


def of_cnn_initialisation(found: dict[str, list], widths: Sequence[int]) -> list[Claim]:
    """The NTKs of CNN-V and CNN-GAP tend to the CNTK."""
    names = {"vanilla": "CNN-V", "gap": "CNN-GAP"}
    return [
        rate_inside(f"{names[r]}: {_named(MEDIAN)} of the NTK's error falls like channels^-1/2", widths, errors, MEDIAN)
        for r, errors in found.items()
    ]


def of_training(name: str, runs: Sequence[TrainedWidth], limit: float = FALLING) -> list[Claim]:
    """A trained network tends to kernel regression, and its kernel stays put. limit: of the exponents."""
    widths = [run.width for run in runs]

    def falls(what: str, errors: list) -> Claim:
        return rate_below(f"{name}: {what}", widths, errors, MEDIAN, limit)

    return [
        at_most(f"{name}: every network is trained to the end (largest loss)", _worst_loss(runs), LOSS_TARGET),
        falls("test |f_nn - f_ntk| at the same time falls with width", [r.test_error for r in runs]),
        falls("test |f_nn - f_ntk| at t = infinity falls with width", [r.test_error_at_infinity for r in runs]),
        falls("largest ||H(t) - H(0)|| / ||H(0)|| falls with width", [largest(r.drift) for r in runs]),
        falls("largest ||H(t) - H*|| / ||H*|| falls with width", [largest(r.from_limit) for r in runs]),
        falls("training curve tends to exp(-H* t)", [largest(r.curve_error) for r in runs]),
    ]


def _worst_loss(runs: Sequence[TrainedWidth]) -> float:
    losses = [run.final_loss for run in runs]
    # max() lets NaN slip through when it does not come first.
    return max(losses) if all(loss == loss for loss in losses) else float("nan")


def of_kappa(name: str, runs: Sequence[TrainedWidth]) -> list[Claim]:
    """Kappa's two effects: initial noise falls with it, drift grows as it falls."""
    kappas = [run.kappa for run in runs]
    noise, drift = [r.noise for r in runs], [largest(r.drift) for r in runs]
    return [
        at_most(
            f"{name}, over kappa: every network is trained to the end (largest loss)", _worst_loss(runs), LOSS_TARGET
        ),
        rate_inside(f"{name}: the noise |f_0| falls with kappa", kappas, noise, MEDIAN, NOISE_BAND),
        rate_below(f"{name}: the drift of H grows as kappa falls", kappas, drift, MEDIAN, DRIFT_OVER_KAPPA),
    ]
