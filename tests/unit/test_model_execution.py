"""Devices, batches that get smaller when memory does not suffice, and memory that does not grow with the study."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ich_node.errors import ConfigurationError, RejectionReason, StudyRejected
from ich_node.findings import IchSubtype
from ich_node.model.execution import BATCH, Execution, Precision, finite
from ich_node.model.predict import Predictor, load_predictor
from ich_node.testing.phantom import head_phantom
from tests.system_bundles import ARCHITECTURES, small_bleed, write_system_bundle

of_all = pytest.mark.parametrize("architecture", ARCHITECTURES)


# --- batches


class Memory:
    """Squares numbers, as long as there are no more at once than fit."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.tried: list[int] = []
        self.done: list[int] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.tried.append(len(items))
        if len(items) > self.fits:
            raise torch.OutOfMemoryError
        self.done += items
        return [item**2 for item in items]


@pytest.mark.parametrize(
    ("count", "fits", "tried", "left"),
    [
        (5, 16, [5], 16),
        (16, 16, [16], 16),
        (20, 16, [16, 4], 16),
        (20, 15, [16, 8, 8, 4], 8),
        (20, 3, [16, 8, 4, 2, *[2] * 9], 2),
        (5, 4, [5, 2, 2, 1], 2),  # half of what was tried, not of what might have been
        (3, 1, [3, 1, 1, 1], 1),
        (0, 1, [], 16),
    ],
)
def test_batches_get_smaller_until_they_fit(count: int, fits: int, tried: list[int], left: int) -> None:
    execution, memory = Execution("cpu"), Memory(fits)
    items = range(100, 100 + count)
    assert list(execution.in_batches(items, memory)) == [item**2 for item in items]
    assert memory.tried == tried
    assert memory.done == list(items)  # each once, in order
    assert execution.batch == left


def test_batches_stay_small_for_the_next_study() -> None:
    execution, memory = Execution("cpu"), Memory(3)
    list(execution.in_batches(range(8), memory))
    memory.tried.clear()
    assert list(execution.in_batches(range(4), memory)) == [0, 1, 4, 9]
    assert memory.tried == [2, 2]


@pytest.mark.parametrize("count", [1, 7])
def test_an_item_that_does_not_fit_by_itself_is_an_error(count: int) -> None:
    memory = Memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        list(Execution("cpu").in_batches(range(count), memory))
    assert memory.tried[-1] == 1
    assert memory.tried.count(1) == 1
    assert memory.done == []


def test_the_batch_that_did_not_fit_is_let_go_before_memory_is_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the error is handled it holds the batch's tensors, and freeing gives the GPU nothing back."""
    alive: list[weakref.ref[torch.Tensor]] = []
    when_freed: list[list[bool]] = []

    def run(items: Sequence[int]) -> Sequence[int]:
        activations = torch.zeros(len(items))
        alive.append(weakref.ref(activations))
        if len(items) > 2:
            raise torch.OutOfMemoryError
        return items

    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: when_freed.append([each() is not None for each in alive])
    )
    assert list(Execution("cpu").in_batches(range(8), run)) == list(range(8))
    assert when_freed == [[False], [False, False]]


@pytest.mark.parametrize("answer", [[], [1], [1, 2, 3]])
def test_results_that_are_not_one_for_each_item_are_an_error(answer: list[int]) -> None:
    with pytest.raises(ValueError, match=f"2 items gave {len(answer)} results"):
        list(Execution("cpu").in_batches([1, 2], lambda _: answer))


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_nothing_is_refused(batch: int) -> None:
    with pytest.raises(ValueError, match="reads nothing"):
        Execution("cpu", batch=batch)


def test_gradients_are_off_and_come_back() -> None:
    seen = list(Execution("cpu").in_batches([0], lambda _: [torch.is_grad_enabled()]))
    assert seen == [False]
    assert torch.is_grad_enabled()


@contextmanager
def memory_for(reader: Predictor, slices: int) -> Iterator[list[int]]:
    """Let every network's first convolution run out of memory above so many slices; gives the sizes tried."""
    tried: list[int] = []

    def check(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(inputs[0]))
        if len(inputs[0]) > slices:
            raise torch.OutOfMemoryError

    hooks = []
    for network in reader.system.networks:
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        hooks.append(first.register_forward_pre_hook(check))
    yield tried
    for hook in hooks:
        hook.remove()


@of_all
def test_a_system_that_runs_out_of_memory_reads_the_same(tmp_path: Path, architecture: str) -> None:
    reader = load_predictor(write_system_bundle(tmp_path / "small", architecture), "cpu")
    head = small_bleed()
    whole = reader.predict(head.hu, head.spacing_mm)
    with memory_for(reader, 3) as tried:
        parts = reader.predict(head.hu, head.spacing_mm)
    assert max(tried) > 3
    assert reader.system.execution.batch <= 3
    assert parts.suspicion == pytest.approx(whole.suspicion, abs=1e-5)
    assert len(parts.slices) == len(whole.slices)
    for a, b in zip(parts.slices, whole.slices, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
    with memory_for(reader, 0), pytest.raises(torch.OutOfMemoryError):
        reader.predict(head.hu, head.spacing_mm)


# --- devices and precision


def test_auto_takes_what_there_is() -> None:
    there = "cuda" if torch.cuda.is_available() else "cpu"
    assert Execution().device.type == Execution("auto").device.type == there
    assert Execution("cpu").device == torch.device("cpu")
    assert Execution("cpu").batch == BATCH


@pytest.mark.parametrize("device", ["cuda:7", "cuda:99"])
def test_a_gpu_that_is_not_there_is_refused(device: str) -> None:
    if torch.cuda.device_count() > 7 and device == "cuda:7":
        pytest.skip("there are eight GPUs")
    with pytest.raises(ConfigurationError, match=rf"model\.device: {device} is not there"):
        Execution(device)


@pytest.mark.parametrize(
    "device", ["nonsense", "", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:1000", "meta", "cpu:0"]
)
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.device: .* is none of auto, cpu, cuda and cuda:N"):
        Execution(device)


@pytest.mark.parametrize(
    ("precision", "weights", "products"),
    [
        ("float64", torch.float64, torch.float64),
        ("float32", torch.float32, torch.float32),
        ("bfloat16", torch.float32, torch.bfloat16),
    ],
)
def test_precision_of_weights_and_products(
    precision: Precision, weights: torch.dtype, products: torch.dtype
) -> None:
    execution = Execution("cpu", precision)
    network = execution.place(nn.Linear(2, 2))
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {weights}
    assert not any(p.requires_grad for p in network.parameters())
    x = execution.tensor(torch.ones(1, 2).numpy())
    assert x.dtype == weights
    (out,) = execution.in_batches([x], lambda part: [network(part[0])])
    assert out.dtype == products
    assert execution.tensor(torch.ones(2, dtype=torch.bool).numpy()).dtype == torch.bool


class NormalizationAndActivation(nn.BatchNorm2d):
    """As timm has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, NormalizationAndActivation])
def test_placing_a_network_changes_nothing_but_rounding(norm: type[nn.BatchNorm2d]) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.Sequential(nn.Conv2d(8, 8, 3, groups=2, bias=False), norm(8))
    )
    x = torch.randn(4, 3, 12, 12)
    for _ in range(3):  # takes the statistics of what it sees
        network(x)
    before = network.eval()(x).detach()
    folded = sum(isinstance(part, nn.Identity) for part in Execution("cpu").place(network).modules())
    assert folded == (2 if norm is nn.BatchNorm2d else 0)
    assert before.std() > 0.1
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_only_numbers_leave_the_device(value: float) -> None:
    assert finite(torch.tensor([1.5, 2.0])).tolist() == [1.5, 2.0]
    with pytest.raises(StudyRejected) as rejected:
        finite(torch.tensor([1.0, value]))
    assert rejected.value.reason is RejectionReason.INVALID_MODEL_OUTPUT


# --- memory of a long study


_PEAKS = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from ich_node.findings import IchSubtype, OperatingPoints
from ich_node.model.predict import load_predictor

torch.set_num_threads(1)
head, spacing = np.load(sys.argv[2]), json.loads(sys.argv[3])
reader = load_predictor(Path(sys.argv[1]), "cpu")
first = reader.predict(head, spacing)
# about one slice in fifteen is suspicious: what is kept of these counts, too
high = sorted(one.probabilities[IchSubtype.ANY] for one in first.slices)[-int(sys.argv[4])]
points = OperatingPoints(high_confidence=high, sensitive=high)
reader.algorithm = replace(reader.algorithm, operating_points=points)
del first
reader.predict(np.repeat(head, 10, axis=0), (spacing[0] / 10, *spacing[1:]))

def peak_bytes():
    # getrusage would give that of the process that started this one, where it was larger
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the imports: begin anew
before = peak_bytes()
hu = np.repeat(head, 100, axis=0)
finding = reader.predict(hu, (spacing[0] / 100, *spacing[1:]))
peak = peak_bytes()
mapped = sum(bool(one.likelihood_maps) for one in finding.slices)
print(json.dumps([len(finding.slices), len(finding.suspicious_slices), mapped, peak - before]))
"""
_SIDE = 48
_PER_SLICE = dict.fromkeys(ARCHITECTURES, 6 * 1024) | {"burduja": 30 * 1024}
"""Bytes that a system and the finding may keep of each slice; for Burduja's LSTM 2,054 numbers three times:
as they come, stacked, and without their mean."""

_HIGHEST = dict.fromkeys(ARCHITECTURES, 2) | {"lite-mil": 5, "mil-pair": 5}
"""Which slice of the head is just suspicious; averaged with thin neighbours, the highest of lite-mil come to less."""


def halve_input(folder: Path) -> None:
    """Give the networks a quarter of their pixels, to save time."""
    file = folder / "bundle.json"
    description = json.loads(file.read_text())
    whole = description["preprocessing"]
    for section in [whole] if "size" in whole else whole.values():
        section["size"] //= 2
        if "pitch_mm" in section:
            section["pitch_mm"] *= 2
    file.write_text(json.dumps(description))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux")
@of_all
def test_three_thousand_slices_take_little_more_memory_than_their_volume(
    tmp_path: Path, architecture: str
) -> None:
    """From 300 slices to 3,000 a process grows by the volume, the masks of its slices, and a few KiB of each."""
    folder = write_system_bundle(tmp_path / "small", architecture)
    halve_input(folder)
    head = head_phantom(bleeds=[IchSubtype.INTRAPARENCHYMAL], seed=5, rows=_SIDE, columns=_SIDE, slices=30)
    np.save(tmp_path / "head.npy", head.hu)
    ran = subprocess.run(
        [
            *(sys.executable, "-c", _PEAKS, str(folder)),
            *(str(tmp_path / "head.npy"), json.dumps(head.spacing_mm), str(_HIGHEST[architecture])),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    slices, suspicious, mapped, grown = json.loads(ran.stdout)
    assert slices == 3000
    assert suspicious > mapped == 32  # so many slices keep their maps
    volume = masks = 4 * _SIDE * _SIDE * slices  # float32; four masks, whose grid is as fine here
    assert grown > volume, "the process did not even grow by the volume: nothing is measured"
    assert grown <= volume + masks + _PER_SLICE[architecture] * slices
