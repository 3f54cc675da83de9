"""Which of a CNN's pooled features go on to a sequence model (Burduja et al. 2020, their feature selection).

Neighbouring features say much the same: 120 of 2048 suffice, and a small LSTM learns them from fewer scans.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ich_node.errors import ConfigurationError

SelectionKind = Literal["pca", "largest", "smallest", "deviation", "none"]
_KINDS: tuple[str, ...] = get_args(SelectionKind)


class Selection(nn.Module):
    """From all features of a slice to those that the LSTM gets; fitted by `fit_selection`, never by gradients.

    Before it is fitted it takes the first ones.
    """

    def __init__(self, kind: SelectionKind, features: int, selected: int) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ConfigurationError(f"selection {kind!r} is none of {', '.join(_KINDS)}")
        if kind != "none" and not 1 <= selected <= features:
            raise ConfigurationError(f"{selected} features cannot be selected from {features}")
        self.kind = kind
        self.selected = features if kind == "none" else selected
        self.mean: torch.Tensor
        self.components: torch.Tensor
        self.indices: torch.Tensor
        if kind == "pca":
            self.register_buffer("mean", torch.zeros(features))
            self.register_buffer("components", torch.eye(selected, features))
        elif kind != "none":
            self.register_buffer("indices", torch.arange(selected))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., features) to (..., selected)."""
        if self.kind == "none":
            return features
        if self.kind == "pca":
            # no whitening: the first components stay the loudest
            return (features - self.mean) @ self.components.T
        return features[..., self.indices]


def fit_selection(
    kind: SelectionKind,
    selected: int,
    features: npt.NDArray[np.floating[Any]],
    classifier_weights: npt.NDArray[np.floating[Any]],
) -> dict[str, torch.Tensor]:
    """Find the features to keep.

    Parameters
    ----------
    features
        (slices, features), pooled features of training slices; the paper takes about 30,000 slices.
    classifier_weights
        (classes, features), weight of the CNN's last layer.

    Returns
    -------
    dict of str to torch.Tensor
        State dict of `Selection`, float32 and int64. Of components the largest entry is positive, so that the
        same features give the same components; indices are ascending.

    Raises
    ------
    ValueError
        There are fewer features, or no more slices, than are to be selected.
    """
    if kind == "none":
        return {}
    if selected > features.shape[1] or (kind == "pca" and selected >= len(features)):
        raise ValueError(f"{selected} cannot be selected from {features.shape}")
    if kind == "pca":
        return _principal_components(np.asarray(features, np.float64), selected)
    # the paper does not say how a feature's six weights become one: here the sum of their magnitudes
    magnitude = np.abs(np.asarray(classifier_weights, np.float64)).sum(axis=0)
    rank = {
        "largest": -magnitude,
        "smallest": magnitude,
        "deviation": -np.std(features, axis=0, dtype=np.float64),
    }[kind]
    best = np.sort(np.argsort(rank, kind="stable")[:selected])
    return {"indices": torch.from_numpy(best)}


def _principal_components(features: npt.NDArray[np.float64], selected: int) -> dict[str, torch.Tensor]:
    mean = features.mean(axis=0)
    # the triangular factor has the right singular vectors of the whole, and 2048 rows instead of 30,000
    triangle = np.linalg.qr(features - mean, mode="r")
    components = np.linalg.svd(triangle, full_matrices=False)[2][:selected]  # (selected, features)
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(selected), largest])[:, None]
    return {"mean": torch.from_numpy(mean).float(), "components": torch.from_numpy(components).float()}
