"""The figures of `ntk verify`: errors against width with fitted rates, training beside gradient flow. PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from exact_ntk.canvas import subplots, to_png, viridis
from exact_ntk.theory.quadrature import VARIANCES, QuadratureErrors
from exact_ntk.theory.rates import Rate, fit_rates
from exact_ntk.theory.theorem_3_1 import Initialisation
from exact_ntk.theory.theorem_3_2 import TrainedWidth, largest
from exact_ntk.theory.training import LOSS_TARGET

GUIDE: dict[str, Any] = dict(color="0.35", linewidth=1.2)
QUANTILES = (0.5, 0.9)


def _shades(count: int) -> np.ndarray:
    return viridis(np.linspace(0.0, 0.88, count))


def _label(name: str, rate: Rate) -> str:
    return f"{name}: {rate.slope:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def _rates(axis: Any, x: Sequence[float], named: Mapping[str, Sequence[np.ndarray]], quantile: float) -> list[Rate]:
    """A line for each name, its fitted exponent in the legend."""
    found = []
    for colour, (name, errors) in zip(_shades(len(named)), named.items(), strict=True):
        (rate,) = fit_rates(x, errors, (quantile,))
        axis.plot(x, rate.values, "o-", color=colour, markersize=4, linewidth=1.3, label=_label(name, rate))
        found.append(rate)
    return found


def _log_axes(axis: Any, x: Sequence[float], x_label: str, title: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(x)
    axis.set(xlabel=x_label, title=title)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom * (bottom / top) ** 0.5, top)  # room for the legend below every line


def _power(axis: Any, x: Sequence[float], start: float, exponent: float, style: str, label: str) -> None:
    axis.plot(x, start * (np.asarray(x) / x[0]) ** exponent, style, label=label, **GUIDE)


def quadrature_figure(found: Sequence[QuadratureErrors]) -> bytes:
    """Largest error against variance, a line an activation."""
    figure, axis = subplots(1, 1, (6.6, 4.4))
    for colour, q in zip(_shades(len(found)), found, strict=True):
        style = "o-" if q.rule == "polar" else "s--"
        errors = np.maximum(q.errors, 1e-17)
        axis.plot(VARIANCES, errors, style, color=colour, markersize=4, label=f"{q.activation}, {q.rule}")
    axis.axhline(1e-10, linestyle=":", **GUIDE)
    axis.axvline(1.0, linestyle=":", **GUIDE)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set(
        xlabel="largest variance",
        ylabel="largest error × c_σ",
        title="Quadrature against closed forms (asked: 1e-10 up to 1)",
    )
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    return to_png(figure)


def initialisation_figure(found: Initialisation) -> bytes:
    """Median and 90 % quantile of the NTK's error against width, a line a depth, with the bound's shape."""
    figure, axes = subplots(1, 2, (11.5, 4.8))
    for axis, quantile, name in zip(axes, QUANTILES, ("median", "90 % quantile"), strict=True):
        rates = _rates(axis, found.widths, {f"L = {k}": e for k, e in found.ntk.items()}, quantile)
        _power(axis, found.widths, rates[0].values[0] * 0.7, -0.5, ":", "width^-1/2")
        _power(axis, found.widths, rates[-1].values[0] * 1.5, -0.25, "--", "shape of theorem 3.1's bound: width^-1/4")
        _log_axes(axis, found.widths, "width", f"{name}: fitted exponent [95 % interval]")
    axes[0].set_ylabel("|⟨∂f(x)/∂θ, ∂f(x′)/∂θ⟩ − Θ(x, x′)|")
    figure.suptitle("The empirical NTK at initialisation against its limit")
    return to_png(figure)


def layers_figure(found: Initialisation) -> bytes:
    """Median errors of <g, g'> and <b, b'> against width, a line a layer, in the deepest network."""
    figure, axes = subplots(1, 2, (11.5, 4.8))
    parts = (("|⟨g, g′⟩ − Σ|", found.forward), ("|⟨b, b′⟩ − Π Σ̇|", found.backward))
    for axis, (label, by_layer) in zip(axes, parts, strict=True):
        rates = _rates(axis, found.widths, {f"h = {h}": e for h, e in by_layer.items()}, 0.5)
        _power(axis, found.widths, min(r.values[0] for r in rates) * 0.7, -0.5, ":", "width^-1/2")
        _log_axes(axis, found.widths, "width", f"L = {max(by_layer)}: fitted exponent [95 % interval]")
        axis.set_ylabel(f"median {label}")
    figure.suptitle("Layer by layer: forward and backward signals against their limits")
    return to_png(figure)


def cnn_initialisation_figure(found: dict[str, list[np.ndarray]], widths: Sequence[int]) -> bytes:
    """Median error of CNN-V's and CNN-GAP's NTK against channels."""
    figure, axis = subplots(1, 1, (6.2, 4.6))
    named = {"CNN-V": found["vanilla"], "CNN-GAP": found["gap"]}
    rates = _rates(axis, widths, named, 0.5)
    _power(axis, widths, min(r.values[0] for r in rates) * 0.7, -0.5, ":", "channels^-1/2")
    _log_axes(axis, widths, "channels", "NTK at initialisation against the CNTK")
    axis.set_ylabel("median |error| / mean diagonal")
    return to_png(figure)


def _over_time(axis: Any, runs: Sequence[TrainedWidth], series: Sequence[Tensor], y_label: str, title: str) -> None:
    """Median over the seeds against time, a line a width; time in units of 1 / lambda_max(H*)."""
    for colour, run, values in zip(_shades(len(runs)), runs, series, strict=True):
        unit = 1.0 / float(np.linalg.eigvalsh(run.limit.numpy())[-1])
        axis.plot(run.training.times / unit, values.median(1).values, color=colour, linewidth=1.3, label=f"{run.width}")
    axis.set_xscale("symlog", linthresh=0.1, linscale=0.4)
    axis.set_xlim(left=0)
    axis.set(xlabel="time × λmax(H*)", ylabel=y_label, title=title)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, title="width", title_fontsize=8, ncols=2)


def training_figure(name: str, runs: Sequence[TrainedWidth]) -> bytes:
    """Predictions against width; training curves, the kernel's drift and its distance from H* against time."""
    figure, axes = subplots(2, 2, (11.5, 8.6))
    (predictions, curves), (drift, distance) = axes
    widths = [run.width for run in runs]
    named = {
        "at the same time": [r.test_error for r in runs],
        "at t = ∞": [r.test_error_at_infinity for r in runs],
        "largest ‖H(t) − H(0)‖ / ‖H(0)‖": [largest(r.drift) for r in runs],
    }
    rates = _rates(predictions, widths, named, 0.5)
    _power(predictions, widths, min(r.values[0] for r in rates) * 0.7, -0.5, ":", "width^-1/2")
    _log_axes(predictions, widths, "width", "test |f_nn − f_ntk| and drift: fitted exponent [95 % interval]")
    predictions.set_ylabel("median")
    _over_time(curves, runs, [r.training.losses(r.problem.y) for r in runs], "½ Σ (u − y)²", "training curve")
    flow = runs[-1].flow.train
    limit = (flow - runs[-1].problem.y).square().sum(2) / 2
    unit = 1.0 / float(np.linalg.eigvalsh(runs[-1].limit.numpy())[-1])
    curves.plot(runs[-1].training.times / unit, limit.median(1).values, "k--", linewidth=1.2, label="exp(−H* t)")
    curves.axhline(LOSS_TARGET, linestyle=":", **GUIDE)
    curves.set_yscale("log")
    curves.set_ylim(bottom=LOSS_TARGET / 30)  # networks of one width train on until the last of them is done
    curves.legend(frameon=False, fontsize=8, title="width", title_fontsize=8, ncols=2)
    _over_time(drift, runs, [r.drift for r in runs], "‖H(t) − H(0)‖ / ‖H(0)‖", "the kernel's drift in training")
    _over_time(
        distance, runs, [r.from_limit for r in runs], "‖H(t) − H*‖ / ‖H*‖", "the kernel's distance from its limit"
    )
    distance.set_ylim(0, 1.4 * distance.get_ylim()[1])  # room for the legend above every line
    figure.suptitle(f"{name}: median over {runs[0].training.train.shape[1]} seeds")
    return to_png(figure)


def over_kappa_figure(name: str, runs: Sequence[TrainedWidth]) -> bytes:
    """Noise and drift against kappa, and what both do to the distance from plain kernel regression."""
    figure, (parts, whole) = subplots(1, 2, (11.5, 4.6))
    kappas = [run.kappa for run in runs]
    title = f"{name}: fitted exponent [95 % interval]"
    named = {"noise |f_0|": [r.noise for r in runs], "largest ‖H(t) − H(0)‖ / ‖H(0)‖": [largest(r.drift) for r in runs]}
    _rates(parts, kappas, named, 0.5)
    deviations = {"f_0 accounted for": [r.test_error_at_infinity for r in runs], "not": [r.deviation for r in runs]}
    for colour, (label, errors) in zip(_shades(2), deviations.items(), strict=True):
        whole.plot(kappas, [np.median(e) for e in errors], "o-", color=colour, markersize=4, label=label)
    for axis, heading in ((parts, title), (whole, "distance of the trained net from kernel regression")):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(kappas, [f"{k:g}" for k in kappas])
        axis.minorticks_off()
        axis.set(xlabel="κ", ylabel="median", title=heading)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    whole.set_ylabel("median test |f_nn − f_ntk|")
    return to_png(figure)
