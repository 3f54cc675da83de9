"""Runs a learner under Lightning: devices, precision, several GPUs, checkpoints, logs and the progress bar.

Everything random in a step follows from the seed and the step's number, and everything random in the network from
the seed and the epoch, so that a run that was killed goes on from its last epoch to the same weights.
"""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import load_file, save_file

from training.batches import Batch, collated
from training.cuts import Cuts
from training.learner import Learner
from training.recipe import Schedule

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"
CHECKPOINT = "checkpoint"


class _Steps(torch.utils.data.Sampler[int]):
    """Numbers of the steps of an epoch; of several processes each gets its own."""

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps, self.epoch = steps_per_epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch it is, also when a run is taken up again."""
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter(range(self.epoch * self.steps, (self.epoch + 1) * self.steps))

    def __len__(self) -> int:
        return self.steps


class _Module(lightning.LightningModule):
    def __init__(self, learner: Learner, seed: int) -> None:
        super().__init__()
        self.learner, self.seed = learner, seed
        self.network = learner.network

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed * 1000003 + self.current_epoch * 1009 + self.global_rank)

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        losses = self.learner.losses(batch)
        total: torch.Tensor = torch.stack(list(losses.values())).sum()
        self.log("loss", total.detach(), prog_bar=True, on_step=False, on_epoch=True, batch_size=1)
        for name, part in losses.items():
            self.log(f"loss/{name}", part.detach(), on_step=False, on_epoch=True, batch_size=1)
        return total

    def configure_optimizers(self) -> Any:
        schedule = self.learner.recipe.schedule
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = make_optimizer(trained, schedule)
        course = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, schedule))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": course, "interval": "step", "name": "rate"},
        }


def make_optimizer(parameters: list[torch.nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """The optimizer that a schedule names."""
    speed, decay = schedule.learning_rate, schedule.weight_decay
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(parameters, speed, momentum=schedule.momentum, weight_decay=decay)
    if schedule.optimizer == "adam":
        return torch.optim.Adam(parameters, speed, weight_decay=decay)
    return torch.optim.AdamW(parameters, speed, weight_decay=decay)


def rate(step: int, schedule: Schedule) -> float:
    """Learning rate of a step as a part of the highest."""
    steps = schedule.epochs * schedule.steps_per_epoch
    if schedule.course == "constant":
        return 1.0
    if schedule.course == "steps":
        passed = sum(step >= m * schedule.steps_per_epoch for m in schedule.milestones)
        return float(0.1**passed)
    warmup = max(1, min(100, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))) + 0.005


def fit(
    learner: Learner,
    cuts: Cuts,
    trained: npt.NDArray[np.bool_],
    out: Path,
    *,
    seed: int,
    accelerator: str = "auto",
    devices: str | int = "auto",
    progress: bool = False,
) -> torch.nn.Module:
    """Train one network, or go on with it, and give it back with its averaged weights, in evaluation mode.

    Parameters
    ----------
    trained
        (scans,) bool: which scans may be seen.
    out
        Folder of checkpoint, logs and, at the end, ``weights.safetensors``. A finished run is read from it.
    seed
        Of initial weights, of what the steps draw and of the network's own chance.
    accelerator, devices
        As Lightning has them: ``cpu``, ``gpu``; a number, ``auto``. Started by ``torchrun`` it uses what that says.
    """
    weights = out / WEIGHTS_FILE
    if weights.is_file():
        learner.network.load_state_dict(load_file(weights))
        return learner.network.eval()
    out.mkdir(parents=True, exist_ok=True)
    schedule = learner.recipe.schedule
    batches = learner.batches(cuts, trained, seed)
    loader = torch.utils.data.DataLoader(
        batches, batch_size=1, sampler=_Steps(schedule.steps_per_epoch), collate_fn=collated
    )
    keep = ModelCheckpoint(
        dirpath=out, filename=CHECKPOINT, every_n_epochs=1, save_top_k=1, enable_version_counter=False
    )
    callbacks: list[Any] = [keep]
    if schedule.average_decay > 0:
        callbacks.append(EMAWeightAveraging(decay=schedule.average_decay))
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=1))
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=schedule.precision,
        max_epochs=schedule.epochs,
        gradient_clip_val=schedule.gradient_norm,
        callbacks=callbacks,
        logger=[
            TensorBoardLogger(out, name="", version="tensorboard"),
            CSVLogger(out, name="", version="csv"),
        ],
        log_every_n_steps=1,
        enable_progress_bar=progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    checkpoint = out / f"{CHECKPOINT}.ckpt"
    if not checkpoint.is_file():
        torch.manual_seed(seed)
        learner.begin()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(
            _Module(learner, seed), loader, ckpt_path=str(checkpoint) if checkpoint.is_file() else None
        )
    network = learner.network.cpu().eval()
    if trainer.is_global_zero:
        _save(network, weights)
        checkpoint.unlink(missing_ok=True)
    return network


def _save(network: torch.nn.Module, weights: Path) -> None:
    temporary = weights.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, temporary)
    temporary.replace(weights)
