"""Training of system A: one network on one list of slices, resumable after every epoch to the same result."""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from ich_node.model.preprocess import PreprocessConfig, channels
from ich_node.model.vicar_mil import VicarMil, VicarMilConfig
from training.augment import AugmentConfig, augment, centre_crop
from training.bags import TILE, tile_loss
from training.dataset import SliceSet
from training.sampling import Mix, Sampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One recipe. The last epoch's averaged weights are the result: no epoch is picked by its score."""

    network: VicarMilConfig = field(
        default_factory=lambda: VicarMilConfig(widths=(16, 32, 48), attention_width=48, dropout=0.2)
    )
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 28
    steps_per_epoch: int = 20
    pretraining_epochs: int = 20
    """On phantoms alone, before any real slice is seen."""
    mix: Mix = field(default_factory=Mix)
    tile_weight: float = 0.5
    """Weight of the loss over small bags beside that over whole slices."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    average_decay: float = 0.985
    """Of the exponential moving average of the weights, per step."""
    seed: int = 20
    bfloat16: bool = True


def train(
    slices: SliceSet | None,
    train_scans: npt.NDArray[np.intp],
    config: TrainingConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    phantoms: SliceSet | None = None,
    start: dict[str, torch.Tensor] | None = None,
) -> VicarMil:
    """Train one network.

    Parameters
    ----------
    slices
        The real slices; None trains on phantoms alone.
    train_scans
        Indices of the scans that may be looked at.
    seed
        Of initial weights, sampling and augmentation.
    checkpoint
        State after each epoch; taken up again when it exists.
    start
        Weights to begin with instead of random ones.
    """
    torch.manual_seed(seed)
    network: VicarMil = VicarMil(config.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if start is not None:
        network.load_state_dict(start)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    sampler = Sampler(slices, train_scans, config.mix, phantoms)
    steps = config.epochs * config.steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    first = 0
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = int(state["epoch"])
    for epoch in range(first, config.epochs):
        started = time.monotonic()
        # everything random in an epoch follows from its number, so a resumed run repeats the uninterrupted
        # one
        loss = _epoch(network, average, sampler, optimizer, schedule, config, seed * 1000 + epoch)
        logger.info(
            "epoch %d/%d loss %.4f %.1f s", epoch + 1, config.epochs, loss, time.monotonic() - started
        )
        if checkpoint is not None:
            _save(checkpoint, epoch + 1, network, average, optimizer, schedule)
    average.eval()
    return average


def _rate(step: int, steps: int) -> float:
    warmup = max(1, min(100, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) + 0.005


def _epoch(
    network: VicarMil,
    average: VicarMil,
    sampler: Sampler,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    config: TrainingConfig,
    seed: int,
) -> float:
    torch.manual_seed(seed)  # dropout
    generator = torch.Generator().manual_seed(seed)
    network.train()
    losses = []
    rng = np.random.default_rng(seed)
    for _ in range(config.steps_per_epoch):
        batch = sampler.batch(rng)
        hu, masks = augment(batch.hu, batch.masks, config.preprocess.size, config.augment, generator)
        x = channels(hu, config.preprocess).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            out = network(x, masks[:, 0] > 0.5)
        offset = int(rng.integers(TILE))
        loss = functional.binary_cross_entropy_with_logits(out.logit, batch.label)
        loss = loss + config.tile_weight * tile_loss(out, masks[:, 1], batch.located, offset)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        _follow(average, network, config.average_decay)
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    for old, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)


def _save(
    file: Path,
    epoch: int,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> None:
    temporary = file.with_suffix(".tmp")
    state = {
        "epoch": epoch,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    torch.save(state, temporary)
    temporary.replace(file)


@torch.inference_mode()
def slice_logits(network: VicarMil, slices: SliceSet, rows: npt.NDArray[np.intp], config: PreprocessConfig):  # type: ignore[no-untyped-def]
    """(rows,) float64 logit of each slice with its mirror; -inf without intracranial space."""
    network.eval()
    out = []
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        hu = centre_crop(torch.from_numpy(slices.hu[part].astype(np.float32)), config.size)
        mask = centre_crop(torch.from_numpy(slices.mask[part]), config.size)
        x = channels(hu, config).to(memory_format=torch.channels_last)
        logit = (network(x, mask).logit + network(x.flip(-1), mask.flip(-1)).logit) / 2
        logit[~mask.flatten(1).any(1)] = -torch.inf
        out.append(logit.numpy())
    return np.concatenate(out).astype(np.float64)
