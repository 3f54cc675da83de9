"""Grad-CAM, where its closed form is known."""

from __future__ import annotations

import torch
from torch import nn

from ich_node.model.grad_cam import grad_cam


def convolution() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(2, 5, 3, padding=1)


def pooled(linear: nn.Linear, maps: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = linear(maps.mean((2, 3)))
    return logits


def test_of_pooled_maps_and_a_linear_layer_it_is_the_class_activation_map():
    """Selvaraju et al. 2017, section 3.1: there the weights are the classifier's, over the number of places."""
    conv, linear = convolution(), nn.Linear(5, 3)
    x = torch.randn(2, 2, 4, 6)
    seen = grad_cam(conv, lambda maps: pooled(linear, maps), x)
    cam = torch.einsum("kc,bchw->bkhw", linear.weight, conv(x)).relu() / 24
    assert seen.shape == (2, 3, 4, 6)
    assert torch.allclose(seen, cam, atol=1e-6)
    assert (seen == 0).any()
    assert (seen > 0).any()


def test_numbers_by_hand():
    maps = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # (1, 2 channels, 1, 2)
    # d/dA of 2 (a0 + a1) - (b0 + b1) is 2 in channel a and -1 in b; of a0 b1 it is b1 = 0 at a0, a0 = 1 at b1
    seen = grad_cam(
        lambda x: x,
        lambda a: torch.stack(
            [2 * a[:, 0].sum((1, 2)) - a[:, 1].sum((1, 2)), a[:, 0, 0, 0] * a[:, 1, 0, 1]], dim=1
        ),
        maps,
    )
    assert seen[0, 0].tolist() == [[0.0, 4.0]]  # 2 * 1 - 3 is cut off, 2 * 2 - 0
    assert seen[0, 1].tolist() == [[1.5, 0.0]]  # b's mean gradient 1/2, times 3 and 0


def test_images_of_a_batch_do_not_see_each_other():
    conv, linear = convolution(), nn.Linear(5, 3)
    x = torch.randn(3, 2, 4, 4)
    together = grad_cam(conv, lambda maps: pooled(linear, maps).sigmoid(), x)
    alone = torch.cat([grad_cam(conv, lambda maps: pooled(linear, maps).sigmoid(), one[None]) for one in x])
    assert torch.allclose(together, alone, atol=1e-7)


def test_runs_with_gradients_off_and_leaves_none_behind():
    conv, linear = convolution(), nn.Linear(5, 3)
    x = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        off = grad_cam(conv, lambda maps: pooled(linear, maps), x)
    assert torch.equal(off, grad_cam(conv, lambda maps: pooled(linear, maps), x))
    assert not off.requires_grad
    assert all(p.grad is None for p in (*conv.parameters(), *linear.parameters()))


def test_frozen_weights_are_no_hindrance():
    conv, linear = convolution().requires_grad_(False), nn.Linear(5, 3).requires_grad_(False)
    assert grad_cam(conv, lambda maps: pooled(linear, maps), torch.randn(1, 2, 4, 4)).max() > 0


def test_maps_in_bfloat16_are_summed_in_float32():
    conv = convolution().bfloat16()
    seen = grad_cam(conv, lambda maps: maps.mean((2, 3)), torch.randn(1, 2, 4, 4).bfloat16())
    assert seen.dtype == torch.float32
    double = grad_cam(
        convolution().double(), lambda maps: maps.mean((2, 3)), torch.randn(1, 2, 4, 4).double()
    )
    assert double.dtype == torch.float64
