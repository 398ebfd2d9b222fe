"""Are predictions as sure as they should be? How often the truth lies where 50, 80 and 95 % of it is promised.

    python examples/coverage.py [--n 200] [--test 797]

From `predict_proba`: the smallest set of classes that holds so much probability. From `return_std`: the central
interval of a normal distribution about each of the ten one-hot outputs.
"""

import argparse

import numpy as np
from scipy.stats import norm
from sklearn.datasets import load_digits

from exact_ntk import CNTKClassifier, CNTKRegressor

LEVELS = (0.5, 0.8, 0.95)


def set_coverage(chances: np.ndarray, labels: np.ndarray, level: float) -> tuple[float, float]:
    """How often the set holds the right class, and how many classes it holds on average."""
    order = np.argsort(-chances, axis=1)
    before = np.cumsum(np.take_along_axis(chances, order, 1), axis=1) - np.take_along_axis(chances, order, 1)
    taken = np.empty_like(before, dtype=bool)
    np.put_along_axis(taken, order, before < level, 1)
    return taken[np.arange(len(labels)), labels].mean(), taken.sum(1).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="training images")
    parser.add_argument("--test", type=int, default=797, help="test images")
    given = parser.parse_args()
    n = given.n
    digits = load_digits()
    x, labels = digits.images / 16, digits.target
    x_test, y_test, one_hot = x[-given.test :], labels[-given.test :], np.eye(10)

    print(f"{'promised':30}" + "".join(f"{100 * level:16.0f} %" for level in LEVELS))
    for kernel in ("ntk", "nngp"):
        model = CNTKClassifier(depth=4, kernel=kernel).fit(x[:n], labels[:n])
        chances = model.predict_proba(x_test)
        found = [set_coverage(chances, y_test, level) for level in LEVELS]
        print(f"{kernel}, sets (classes in one)".ljust(30) + "".join(f"{100 * c:10.1f} % ({s:.2f})" for c, s in found))
        soft = CNTKRegressor(depth=4, kernel=kernel).fit(x[:n], one_hot[labels[:n]])
        mean, deviation = soft.predict(x_test, return_std=True)
        away = np.abs(one_hot[y_test] - mean) / deviation
        inside = [(away < norm.ppf(0.5 + level / 2)).mean() for level in LEVELS]
        print(f"{kernel}, intervals".ljust(30) + "".join(f"{100 * c:16.1f} %" for c in inside))


if __name__ == "__main__":
    main()
