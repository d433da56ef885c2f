"""The linear fit on frozen features."""

from __future__ import annotations

import numpy as np

from tunesmith.prediction.features import fit_linear_head


def test_a_dimension_that_hardly_varies_gets_no_weight() -> None:
    """Folding its tiny spread into the weights gave 1e30, and the first gradient of a stage after it overflowed."""
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 4))
    labels = (features[:, 0] > 0).astype(int).tolist()
    features[:, 3] = random.normal(size=200) * 1e-30
    head = fit_linear_head(features, labels, 2)
    assert np.abs(head.weight).max() < 1e3
    assert not head.weight[:, 3].any()
    assert (head.probabilities(features).argmax(1) == np.asarray(labels)).mean() > 0.95


def test_the_folded_weights_are_those_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(1)
    features = random.normal(size=(150, 5)) * [1, 10, 0.1, 3, 1] + 2
    labels = random.integers(0, 3, size=150)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000)).fit(features, labels)
    ours = fit_linear_head(features, labels.tolist(), 3)
    np.testing.assert_allclose(ours.probabilities(features), theirs.predict_proba(features), atol=1e-9)
