"""Grad-CAM (Selvaraju et al. 2017): where a network that was taught whole images sees each class."""

from __future__ import annotations

from collections.abc import Callable

import torch


def grad_cam(
    features_of: Callable[[torch.Tensor], torch.Tensor],
    head_of: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
) -> torch.Tensor:
    """Maps of every class, from one run of the convolutions.

    Gradients are taken of the feature maps alone, so neither the convolutions' activations nor gradients of
    weights are held. May be called with gradients off; leaves no trace in the network.

    Parameters
    ----------
    features_of
        From ``x`` to feature maps (batch, channels, h, w).
    head_of
        From feature maps to logits (batch, classes). No image of the batch may look at another.
    x
        (batch, ...), the network's input.

    Returns
    -------
    torch.Tensor
        (batch, classes, h, w), float32 or float64, not negative; their scale means nothing, not even between
        the classes of one image.
    """
    with torch.no_grad():
        maps = features_of(x)  # (batch, channels, h, w)
    # sums over many products in bfloat16 would show steps
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).detach()
    with torch.enable_grad():
        maps.requires_grad_()
        logits = head_of(maps)  # (batch, classes)
        seen = [_weighted(maps, logits[:, number]) for number in range(logits.shape[1])]
    return torch.stack(seen, dim=1)


def _weighted(maps: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    """One class: (batch, channels, h, w) and (batch,) to (batch, h, w), eq. 1 and 2 of the paper."""
    (gradient,) = torch.autograd.grad(logit.sum(), maps, retain_graph=True)
    weights = gradient.mean((2, 3))  # (batch, channels), eq. 1
    # eq. 2: what speaks against the class is cut off
    return torch.einsum("bc,bchw->bhw", weights, maps.detach()).relu()
