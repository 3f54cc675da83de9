"""System A's network."""

from __future__ import annotations

import pytest
import torch

from ich_node.model.vicar_mil import VicarMil, VicarMilConfig


def slices(count: int = 2, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, size, size, generator=generator)
    mask = torch.zeros(count, size, size, dtype=torch.bool)
    mask[:, 8:24, 8:24] = True
    return x, mask


def network(pooling: str = "attention") -> VicarMil:
    torch.manual_seed(0)
    return VicarMil(VicarMilConfig(pooling=pooling)).eval()


@pytest.mark.parametrize("pooling", ["attention", "max"])
@torch.inference_mode()
def test_output_is_at_a_quarter_of_the_input(pooling: str):
    out = network(pooling)(*slices())
    assert out.logit.shape == (2,)
    assert out.position_logits.shape == out.attention.shape == out.energy.shape == (2, 8, 8)


@pytest.mark.parametrize("pooling", ["attention", "max"])
@torch.inference_mode()
def test_the_bag_holds_nothing_from_outside_the_mask(pooling: str):
    x, mask = slices()
    out = network(pooling)(x, mask)
    assert out.attention.sum((1, 2)).tolist() == pytest.approx([1, 1])
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:6] = False
    assert (out.attention[:, outside] == 0).all()
    assert out.logit.tolist() == pytest.approx(
        (out.attention * out.position_logits).sum((1, 2)).tolist(), abs=1e-6
    )


@torch.inference_mode()
def test_maximum_is_over_the_mask_only():
    x, mask = slices()
    out = network("max")(x, mask)
    assert torch.equal(out.logit, out.position_logits[:, 2:6, 2:6].amax((1, 2)))


@torch.inference_mode()
def test_empty_mask_uses_every_position():
    x, mask = slices()
    out = network()(x, torch.zeros_like(mask))
    assert torch.isfinite(out.logit).all()
    assert (out.attention > 0).all()


@torch.inference_mode()
def test_batch_size_does_not_change_results():
    x, mask = slices(5)
    model = network()
    together = model(x, mask).logit
    alone = torch.cat([model(x[i : i + 1], mask[i : i + 1]).logit for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_every_parameter_learns():
    """Both residual blocks of a level are live, unlike in the published code."""
    model = network().train()
    out = model(*slices(4))
    out.logit.pow(2).sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() < 1e-6]
    # the softmax does not see a constant
    assert dead == ["attention_weight.bias"]


def test_parameter_count_of_the_paper_s_widths():
    assert sum(p.numel() for p in network().parameters()) == 123_302
