"""Which features are kept, by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ich_node.errors import ConfigurationError
from ich_node.model.feature_selection import Selection, SelectionKind, fit_selection

WEIGHTS = np.array([[2.0, -3.0, 0.0, 1.8], [-2.2, 0.1, 0.0, 1.7]])
"""Magnitudes 4.2, 3.1, 0 and 3.5; the largest single weight is the second's."""
FEATURES = np.array([[1.0, 0.0, 5.0, 2.0], [1.5, 0.1, -5.0, 2.0], [1.0, 0.2, 5.0, 2.0]])
"""Standard deviations about .24, .08, 4.7 and 0."""


def fitted(
    kind: SelectionKind, selected: int, features: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> Selection:
    selection = Selection(kind, features.shape[1], selected)
    selection.load_state_dict(fit_selection(kind, selected, features, weights))
    return selection.double()


def correlated(count: int = 300, width: int = 12) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(7)
    mixed = rng.normal(size=(count, width)) * np.geomspace(8, 0.1, width) @ rng.normal(size=(width, width))
    return np.asarray(mixed + rng.normal(size=width), np.float64)


@pytest.mark.parametrize(
    ("kind", "indices"), [("largest", [0, 3]), ("smallest", [1, 2]), ("deviation", [0, 2])]
)
def test_features_by_weight_and_by_deviation(kind: SelectionKind, indices: list[int]):
    selection = fitted(kind, 2, FEATURES, WEIGHTS)
    assert selection.indices.tolist() == indices
    assert selection(torch.from_numpy(FEATURES)).tolist() == FEATURES[:, indices].tolist()


def test_equal_features_are_taken_from_the_front():
    assert fit_selection("largest", 2, FEATURES, np.ones((6, 4)))["indices"].tolist() == [0, 1]


def test_none_keeps_all():
    assert fit_selection("none", 2, FEATURES, WEIGHTS) == {}
    selection = Selection("none", 4, 2)
    assert selection.selected == 4
    x = torch.from_numpy(FEATURES)
    assert selection(x) is x


def test_principal_components_are_uncorrelated_largest_first_and_not_whitened():
    features = correlated()
    shown = fitted("pca", 5, features, np.ones((6, 12)))(torch.from_numpy(features)).numpy()
    assert shown.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-4)
    covariance = np.cov(shown.T)
    variances = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1][:5]
    assert np.diag(covariance) == pytest.approx(variances, rel=1e-5)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-4 * variances[0]
    assert (np.diff(np.diag(covariance)) < 0).all()


def test_components_are_orthonormal_and_their_largest_entry_is_positive():
    components = fit_selection("pca", 5, correlated(), np.ones((6, 12)))["components"].double()
    assert torch.allclose(components @ components.T, torch.eye(5).double(), atol=1e-6)
    largest = components.abs().argmax(1)
    assert (components[torch.arange(5), largest] > 0).all()


def test_two_dimensions_by_hand():
    """Points on a line along (3, 4) / 5 around (1, 2)."""
    features = np.array([1.0, 2.0]) + np.outer([-2.0, -1.0, 3.0], [0.6, 0.8])
    state = fit_selection("pca", 1, features, np.ones((6, 2)))
    assert state["mean"].tolist() == pytest.approx([1.0, 2.0])
    assert state["components"].tolist()[0] == pytest.approx([0.6, 0.8])
    selection = fitted("pca", 1, features, np.ones((6, 2)))
    assert selection(torch.from_numpy(features))[:, 0].tolist() == pytest.approx([-2.0, -1.0, 3.0], abs=1e-6)


def test_the_order_of_the_slices_does_not_matter():
    features = correlated()
    there, back = (fit_selection("pca", 4, f, np.ones((6, 12))) for f in (features, features[::-1].copy()))
    assert torch.allclose(there["components"], back["components"], atol=1e-6)


def test_what_cannot_be_selected_is_refused():
    with pytest.raises(ValueError, match="5 cannot be selected"):
        fit_selection("largest", 5, FEATURES, WEIGHTS)
    with pytest.raises(ValueError, match="3 cannot be selected"):
        fit_selection("pca", 3, FEATURES, WEIGHTS)
    with pytest.raises(ConfigurationError, match="121 features"):
        Selection("pca", 120, 121)
    with pytest.raises(ConfigurationError, match="'pcs' is none of pca, largest"):
        Selection("pcs", 4, 2)  # type: ignore[arg-type]
