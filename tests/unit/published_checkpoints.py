"""Checkpoints with the names and shapes of the published ones and random weights."""

from __future__ import annotations

import torch

_UNITS = {
    "init_conv": (3, 12),
    **{f"layers.{n}": (12, 12) for n in range(6)},
    "layers.6": (12, 24),
    **{f"layers.{n}": (24, 24) for n in range(7, 13)},
    "layers.13": (24, 36),
    **{f"layers.{n}": (36, 36) for n in range(14, 20)},
}
_HEADS = {
    "attention": {
        "attention.conv_tanh": (36, 36, 1),
        "attention.conv_sigm": (36, 36, 1),
        "attention.conv_w": (36, 1, 1),
        "attention.conv_final": (36, 1, 1),
    },
    "max": {"conv_final": (36, 1, 3)},
}


def vicar_checkpoint(pooling: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of Vicar et al. with ``attention`` or ``max`` pooling."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    state = {}
    for name, (before, after) in _UNITS.items():
        state[f"{name}.conv.weight"] = random(after, before, 3, 3) * (2 / (9 * before)) ** 0.5
        state[f"{name}.conv.bias"] = random(after) * 0.1
        state[f"{name}.bn.weight"] = 1 + random(after) * 0.1
        state[f"{name}.bn.bias"] = random(after) * 0.1
        state[f"{name}.bn.running_mean"] = random(after) * 0.1
        state[f"{name}.bn.running_var"] = 1 + random(after).abs()
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1000)
    for name, (before, after, size) in _HEADS[pooling].items():
        state[f"{name}.weight"] = random(after, before, size, size) * (1 / (size * size * before)) ** 0.5
        state[f"{name}.bias"] = random(after) * 0.1
    return state
