"""Runs a learner under Lightning: devices, precision, several GPUs, checkpoints, logs and the progress bar.

Everything random in a step follows from the seed and the step's number, and everything random in the network from
the seed and the epoch, so that a run that was killed goes on from its last epoch to the same weights.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import load_file, save_file

from training.batches import collated
from training.cuts import Cuts
from training.recipe import Schedule
from training.whole_file import written_whole

if TYPE_CHECKING:
    from training.learner import StageLearner

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"
CHECKPOINT = "checkpoint"
_KNOWN_WARNINGS = (
    ".*does not have many workers.*",  # a batch is drawn in milliseconds from the page cache
    ".*Checkpoint directory .* exists and is not empty.*",  # it holds the checkpoint that is gone on from
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's own use of torch
)


class Steps(torch.utils.data.Sampler[int]):
    """Numbers of the batches of an epoch; of several processes each gets its own.

    Parameters
    ----------
    steps_per_epoch
        Of each process.
    rank, processes
        Which process this is, and of how many.
    """

    def __init__(self, steps_per_epoch: int, rank: int = 0, processes: int = 1) -> None:
        self.steps, self.epoch = steps_per_epoch, 0
        self.rank, self.processes = rank, processes

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch it is, also when a run is taken up again."""
        self.epoch = epoch

    def __iter__(self) -> Any:
        first, last = self.epoch * self.steps, (self.epoch + 1) * self.steps
        return iter(range(first * self.processes + self.rank, last * self.processes, self.processes))

    def __len__(self) -> int:
        return self.steps


class _Module(lightning.LightningModule):
    def __init__(self, learner: StageLearner, schedule: Schedule, seed: int) -> None:
        super().__init__()
        self.schedule, self.seed = schedule, seed
        self.network = learner.network

        # a function, not the learner: averaging copies the module, and would copy all that the learner holds
        def losses(batch: Any) -> Mapping[str, torch.Tensor]:
            return learner.losses(batch)

        self.losses: Callable[[Any], Mapping[str, torch.Tensor]] = losses

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed * 1000003 + self.current_epoch * 1009 + self.global_rank)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        losses = self.losses(batch)
        total: torch.Tensor = torch.stack(list(losses.values())).sum()
        self.log("loss", total.detach(), prog_bar=True, on_step=False, on_epoch=True, batch_size=1)
        for name, part in losses.items():
            self.log(f"loss/{name}", part.detach(), on_step=False, on_epoch=True, batch_size=1)
        return total

    def configure_optimizers(self) -> Any:
        schedule = self.schedule
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = make_optimizer(trained, schedule)
        course = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, schedule))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": course, "interval": "step", "name": "rate"},
        }


class _Bar(TQDMProgressBar):
    """Without the logger's version, which says nothing here."""

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(*arguments)
        metrics.pop("v_num", None)
        return metrics


class _WholeCheckpoints(TorchCheckpointIO):
    """Lightning moves a checkpoint in from the system's temporary folder: killed between two disks, it is half."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write all of it beside the file, then put it in its place."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as temporary:
            torch.save(checkpoint, temporary)


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
    learner: StageLearner,
    cuts: Cuts,
    trained: npt.NDArray[np.bool_],
    out: Path,
    *,
    seed: int,
    accelerator: str = "auto",
    devices: str | int = "auto",
    progress: bool = False,
    tensorboard: bool = True,
    verbose: bool = False,
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
        Several processes share the batches of an epoch.
    progress
        Whether a bar shows how far it is.
    tensorboard
        Whether the loss is also written for TensorBoard, beside a table.
    verbose
        Whether Lightning says what devices it finds.
    """
    weights = out / WEIGHTS_FILE
    if weights.is_file():
        learner.network.load_state_dict(load_file(weights))
        return learner.network.eval()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / f"{CHECKPOINT}.ckpt"
    for unfinished in out.glob(f".{CHECKPOINT}.*.ckpt"):  # of a run that was killed as it wrote
        unfinished.unlink(missing_ok=True)
    with _quiet(verbose):
        trainer = _trainer(
            learner.recipe.schedule, out, accelerator, devices, progress=progress, tensorboard=tensorboard
        )
        batches = learner.batches(cuts, trained, seed)
        steps = len(batches) // learner.recipe.schedule.epochs  # type: ignore[arg-type]
        schedule = replace(learner.recipe.schedule, steps_per_epoch=max(1, steps // trainer.world_size))
        sampler = Steps(schedule.steps_per_epoch, trainer.global_rank, trainer.world_size)
        loader = torch.utils.data.DataLoader(batches, batch_size=1, sampler=sampler, collate_fn=collated)
        begun = str(checkpoint) if checkpoint.is_file() else None
        if begun is None:
            torch.manual_seed(seed)
            learner.begin()
        learner.network.train()  # an earlier stage may have left parts of it in evaluation mode
        trainer.fit(_Module(learner, schedule, seed), loader, ckpt_path=begun)
    network = learner.network.cpu().eval()
    if trainer.is_global_zero:
        save_weights(network, weights)
        checkpoint.unlink(missing_ok=True)
    return network


def _trainer(
    schedule: Schedule,
    out: Path,
    accelerator: str,
    devices: str | int,
    *,
    progress: bool,
    tensorboard: bool,
) -> lightning.Trainer:
    keep = ModelCheckpoint(
        dirpath=out, filename=CHECKPOINT, every_n_epochs=1, save_top_k=1, enable_version_counter=False
    )
    callbacks: list[Any] = [keep]
    if schedule.average_decay > 0:
        callbacks.append(EMAWeightAveraging(decay=schedule.average_decay))
    if progress:
        callbacks.append(_Bar(refresh_rate=1))
    loggers: list[Any] = [CSVLogger(out, name="", version=f"table{_begun(out)}")]
    if tensorboard:
        loggers.append(TensorBoardLogger(out, name="", version="tensorboard"))
    return lightning.Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=schedule.precision,
        max_epochs=schedule.epochs,
        gradient_clip_val=schedule.gradient_norm,
        callbacks=callbacks,
        logger=loggers,
        plugins=[_WholeCheckpoints()],
        log_every_n_steps=1,
        enable_progress_bar=progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _begun(out: Path) -> int:
    """How often training began here: a table that goes on would replace the one before."""
    return len(list(out.glob("table*")))


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Keep to itself what Lightning says that nobody can act on."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [one.level for one in loggers]
    if not verbose:
        for one in loggers:
            one.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def device_of(accelerator: str) -> torch.device:
    """Where a network runs outside of `fit`: the GPU of this process, if there is one and it may be used."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def save_weights(network: torch.nn.Module, weights: Path) -> None:
    """Write a state dict, whole or not at all."""
    with written_whole(weights) as temporary:
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, temporary)
