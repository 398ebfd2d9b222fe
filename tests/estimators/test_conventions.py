"""The estimators keep scikit-learn's conventions."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from exact_ntk import CNTKClassifier, CNTKRegressor


@pytest.mark.filterwarnings("ignore")  # some checks warn on purpose
@parametrize_with_checks([CNTKClassifier(depth=3, device="cpu"), CNTKRegressor(depth=3, device="cpu")])
def test_a_check_of_scikit_learn_passes(estimator, check):
    check(estimator)
