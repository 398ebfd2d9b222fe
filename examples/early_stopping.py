"""When to stop training, from the spectrum: digits of which a fifth of the labels are drawn at random.

    python examples/early_stopping.py [--n 500]

Gradient flow learns the part of the labels along an eigenvector of K at the rate of its eigenvalue. What all images of
a class have in common lies along the large ones; single wrong labels along all of them. So accuracy on images with
clean labels peaks, and falls again while the network fits what is wrong.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits

from exact_ntk.kernels import cntk
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.regression.solve import targets

REDRAWN = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="training images; as many others choose the time")
    n = parser.parse_args().n
    digits, rng = load_digits(), np.random.default_rng(0)
    x, y = (digits.images[: 2 * n + 500, None] - 4.9) / 6.0, digits.target[: 2 * n + 500]
    given = np.where(rng.random(n) < REDRAWN, rng.integers(0, 10, n), y[:n])

    k = cntk(x, x[:n], depths=(4,), readouts=("vanilla",))[0, 0]
    train = (k[:n] + k[:n].T) / 2
    flow = GradientFlow(train, targets(given, 10))
    held_out, test = slice(n, 2 * n), slice(2 * n, None)
    over_time = flow.early_stopping(k[held_out], torch.from_numpy(y[held_out]))

    for t, accuracy in list(zip(over_time.times, over_time.accuracies, strict=True))[::20]:
        learnt = int((flow.eigenvalues * t > 1).sum())
        print(f"t = {t * flow.largest_eigenvalue:9.3g} / lambda_max: {learnt:4} of {n} modes, {accuracy:.1f} %")
    for name, t in (("stopped there", over_time.best_time), ("never stopped", float("inf"))):
        right = flow.predict(k[test], t).argmax(1).numpy() == y[test]
        print(f"{name}: {100 * right.mean():.1f} % of {len(right)} test images")


if __name__ == "__main__":
    main()
