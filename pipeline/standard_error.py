"""The standard error of what a table claims: a mean accuracy over test images and over draws, or seeds."""

from collections.abc import Sequence

import numpy as np


def standard_error(images: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> float:
    """Of the mean of the scores, over the choice of test images and over the draws (or seeds); in points (%).

    images: for each draw d, the test images (n_d,) it is tested on, as integers that name them.
    scores: for each draw, a number an image (n_d,): 1 or 0 for right or wrong, a share of epochs, a difference of two.

    With e_di the score of image i in draw d minus the mean of that draw, N the number of pairs (d, i) and D of draws:

        test = sum_i (sum_d e_di)^2 / N^2              images are drawn; what they share over draws does not average out
        draw = variance of the draws' means / D        0 for one draw, whose luck is then in no error bar
        c^2  = mean over images scored in two draws or more of the variance of e_di within the image
        SE^2 = max(test, test + draw - c^2 / N)        else the noise of image by draw counts twice

    Where every score of every draw is the same (100 %), nothing varies: the share of the others is then taken to be
    (1/2) / (n + 1) of n images.
    """
    name, pair = np.unique(np.concatenate(images), return_inverse=True)
    if all(np.ptp(s) == 0 for s in scores):
        q = 0.5 / (len(name) + 1)
        return 100.0 * (q * (1 - q) / len(name)) ** 0.5
    e = np.concatenate([s - s.mean() for s in scores])
    times = np.bincount(pair)
    total = np.bincount(pair, weights=e)
    test = np.sum(total**2) / len(e) ** 2
    means = [s.mean() for s in scores]
    draw = np.var(means, ddof=1) / len(means) if len(means) > 1 else 0.0
    several = times > 1
    within = (np.bincount(pair, weights=e**2) - total**2 / times)[several] / (times[several] - 1)
    interaction = within.mean() / len(e) if several.any() else 0.0
    return 100.0 * float(max(test, test + draw - interaction)) ** 0.5
