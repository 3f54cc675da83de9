"""Random changes to slices in Hounsfield units, on whole batches (Vicar et al.: affine, mirror, brightness,
blur/sharpen; noise is ours).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Ranges; each is drawn uniformly and anew for every slice."""

    rotation_deg: float = 20.0
    scale: float = 0.13
    """Relative, in length; each axis may deviate by a third of it more."""
    shift_pixels: float = 8.0
    brightness_hu: float = 5.0
    contrast: float = 0.12
    """Relative, about 35 HU."""
    noise_hu: float = 6.0
    """Largest standard deviation of added noise."""
    sharpen: float = 0.6
    """Unsharp masking by up to this much, blur by as much the other way."""


def augment(
    hu: torch.Tensor, masks: torch.Tensor, size: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change each slice of a batch and cut it to the network's size.

    Parameters
    ----------
    hu
        (batch, planes, size + margin, size + margin) float32, HU; without planes where there is one.
    masks
        (batch, masks, size + margin, size + margin) float32, 0 to 1, moved as the image is.

    Returns
    -------
    tuple of torch.Tensor
        (batch, planes, size, size) float32 HU, as given, and (batch, masks, size, size) float32.
    """
    if hu.ndim == 3:
        one, moved = augment(hu[:, None], masks, size, config, generator)
        return one[:, 0], moved
    batch = len(hu)

    def draw(reach: float) -> torch.Tensor:
        return (torch.rand(batch, generator=generator) * 2 - 1) * reach

    grid = _grid(batch, hu.shape[-1], size, config, draw)
    # air beyond the border: shifting by it makes grid_sample's zero padding mean it
    moved = functional.grid_sample(hu + 1000, grid, align_corners=False) - 1000
    moved_masks = functional.grid_sample(masks, grid, align_corners=False)
    blurred = functional.avg_pool2d(functional.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    strength = draw(config.sharpen).view(-1, 1, 1, 1)
    out = moved + strength * (moved - blurred)
    out = (
        35
        + (out - 35) * (1 + draw(config.contrast)).view(-1, 1, 1, 1)
        + draw(config.brightness_hu).view(-1, 1, 1, 1)
    )
    sigma = (torch.rand(batch, generator=generator) * config.noise_hu).view(-1, 1, 1, 1)
    out = out + torch.randn(out.shape, generator=generator) * sigma
    return out, moved_masks


def centre_crop(x: torch.Tensor, size: int) -> torch.Tensor:
    """(batch, size + margin, size + margin) to (batch, size, size)."""
    start = (x.shape[-1] - size) // 2
    return x[..., start : start + size, start : start + size]


def _grid(batch: int, wide: int, size: int, config: AugmentConfig, draw: object) -> torch.Tensor:
    assert callable(draw)
    angle = draw(math.radians(config.rotation_deg))
    scale = 1 + draw(config.scale)
    scale_x, scale_y = scale * (1 + draw(config.scale / 3)), scale * (1 + draw(config.scale / 3))
    mirror = torch.where(draw(1.0) > 0, 1.0, -1.0)
    shift = 2 * config.shift_pixels / wide
    cosine, sine, zoom = torch.cos(angle), torch.sin(angle), size / wide
    theta = torch.stack(
        [
            torch.stack([zoom * mirror * scale_x * cosine, -zoom * scale_y * sine, draw(shift)], 1),
            torch.stack([zoom * mirror * scale_x * sine, zoom * scale_y * cosine, draw(shift)], 1),
        ],
        1,
    )
    return functional.affine_grid(theta, [batch, 1, size, size], align_corners=False)
