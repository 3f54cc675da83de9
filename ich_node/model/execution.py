"""Where and how networks run: device, precision, and batches that get smaller when memory does not suffice."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ich_node.errors import ConfigurationError, RejectionReason, StudyRejected

logger = logging.getLogger(__name__)

Precision = Literal["float64", "float32", "bfloat16"]
Item = TypeVar("Item")
Result = TypeVar("Result")
BATCH = 16
"""Slices at once, where nothing else is said."""
_DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,2})?", re.ASCII)


class Execution:
    """How the networks of one predictor run.

    Parameters
    ----------
    device
        ``auto`` (CUDA where there is any), ``cpu``, ``cuda`` or ``cuda:N``.
    precision
        ``float32``; ``bfloat16`` runs convolutions and matrix products in bfloat16; ``float64`` is a reference.
    batch
        Slices in memory at once, at most.

    Raises
    ------
    ConfigurationError
        The device is not there, or is none of those.
    ValueError
        A batch of less than one slice.
    """

    def __init__(self, device: str = "auto", precision: Precision = "float32", batch: int = BATCH) -> None:
        if batch < 1:
            raise ValueError(f"a batch of {batch} slices reads nothing")
        self.device = _device(device)
        self.precision = precision
        self.batch = batch

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and inputs."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def place(self, network: torch.nn.Module) -> torch.nn.Module:
        """Bring a network to the device, in evaluation mode and without gradients of its weights.

        The network is changed: normalizations become part of the convolutions before them, and weights lie with
        their channels last, which processors work through in half the time. What it says stays the same but for
        rounding.
        """
        network = network.to(self.device, self.dtype).eval().requires_grad_(False)
        _fold_normalizations(network)
        channels_last(network)
        return network

    def tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """Bring an array to the device; floating point in the precision of the weights."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def casting(self) -> AbstractContextManager[Any]:
        """Context in which networks are called."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def in_batches(
        self, items: Sequence[Item], run: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> Iterator[Result]:
        """Run batches of items and give the results one by one, in order.

        When a GPU's memory does not suffice, the batch is halved, for good, and run again; a single item that
        does not fit is an error.

        Parameters
        ----------
        run
            From a batch of items to as many results. Called with gradients off; who needs them turns them on.
        """
        start = 0
        while start < len(items):
            part = items[start : start + self.batch]
            results: Sequence[Result] | None = None
            try:
                with torch.no_grad(), self.casting():
                    results = run(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
            if results is None:
                # not in the handler: there the error still holds the tensors of the batch that did not fit
                self._halve(len(part))
                continue
            if len(results) != len(part):
                raise ValueError(f"{len(part)} items gave {len(results)} results")
            yield from results
            start += len(part)

    def _halve(self, tried: int) -> None:
        self.batch = tried // 2
        logger.warning("The GPU's memory does not suffice; going on with batches of %d.", self.batch)
        torch.cuda.empty_cache()


def halves_gradients(x: torch.Tensor) -> bool:
    """Whether autocast would let a processor find gradients in half precision.

    Where those of a depthwise or transposed convolution are wanted, it runs in single precision: the networks here
    then train in half to two thirds of the time.
    """
    return x.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")


def channels_last(network: torch.nn.Module) -> None:
    """Lay the weights of convolutions with their channels last, which processors work through in less time."""
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


def _fold_normalizations(network: torch.nn.Module) -> None:
    """Of each convolution and the batch normalization that comes next in a sequence."""
    for sequence in [part for part in network.modules() if isinstance(part, torch.nn.Sequential)]:
        for number, (before, after) in enumerate(pairwise(list(sequence))):
            # No subclass: one of timm's normalizes and activates.
            if type(before) is torch.nn.Conv2d and type(after) is torch.nn.BatchNorm2d:
                sequence[number] = fuse_conv_bn_eval(before, after)
                sequence[number + 1] = torch.nn.Identity()


def finite(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    """Bring a network's output to the host.

    Raises
    ------
    StudyRejected
        INVALID_MODEL_OUTPUT: it holds NaN or infinity.
    """
    if not torch.isfinite(tensor).all():
        raise StudyRejected(
            RejectionReason.INVALID_MODEL_OUTPUT, "The model's output is not a number; the weights are unfit."
        )
    return tensor.detach().double().cpu().numpy()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not _DEVICE.fullmatch(name):
        raise ConfigurationError(f"model.device: {name!r} is none of auto, cpu, cuda and cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"model.device: {name} is not there; torch sees {torch.cuda.device_count()} GPUs"
        )
    return device
