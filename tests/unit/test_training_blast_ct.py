"""BLAST-CT as a teacher: what comes out lies where it went in, and answers are asked for once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import nn

from ich_node.testing.phantom import head_phantom
from training import blast_ct
from training.blast_ct import BLOOD, BlastCt, DeepMedic, blood_likelihood, load_teachers
from training.scan import CLASSES, Scan, Volume, scan_labels_of

_ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Centre(nn.Module):
    """Calls dense voxels hemorrhage: what it says of a voxel depends on that voxel of its input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 5, 1)
        with torch.no_grad():
            # intraparenchymal where the scaled density is high, background elsewhere
            self.conv.weight.copy_(torch.tensor([-30.0, 30.0, -30.0, -30.0, -30.0]).view(5, 1, 1, 1, 1))
            self.conv.bias.copy_(torch.tensor([30.0, 0.0, -30.0, -30.0, -30.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = slice(40, -40)
        out: torch.Tensor = self.conv(x[:, :, inner, inner, inner])
        return out


def teachers() -> list[DeepMedic]:
    return [Centre().eval()]  # type: ignore[list-item]


# --- the network


@torch.no_grad()
def test_each_pathway_labels_the_voxels_that_it_sees_in_its_middle():
    """A network of which each pathway hands its middle voxel on, in a class of its own."""
    network = DeepMedic().eval()
    for name, tensor in network.named_parameters():
        if name.endswith(("conv.weight", "bn.bias")):
            tensor.zero_()
        elif name.endswith("prelu.weight"):
            tensor.fill_(1)
    for pathway in list(network.children())[:3]:
        before = 1
        for layer in pathway.path[1:]:
            after = layer.conv.out_channels
            if before != after:  # beside the identity there is nothing to do
                layer.conv.weight[0, 0, 1, 1, 1] = 1
            before = after
    joined, _, last = network.fully_connected
    for number, column in enumerate(BLOOD):
        joined.conv.weight[number, 50 * number] = 1
        last.conv.weight[column, number] = 1
    x = torch.rand(1, 1, 95, 95, 110)
    out = network(x)
    assert out.shape == (1, 5, 15, 15, 30)
    axes = [np.arange(n) for n in (15, 15, 30)]
    for scale, column in zip((5, 3, 1), BLOOD, strict=True):
        middle = [40 + axis // scale * scale + scale // 2 for axis in axes]
        want = x[0, 0].numpy()[np.ix_(*middle)]
        assert np.abs(out[0, column].numpy() - want).max() < 1e-3  # batch normalization divides by 1.000005
    assert not out[0, [0, 3]].any()


def _weights() -> Path | None:
    data = os.environ.get("ICH_NODE_TEST_DATA")
    roots = [Path(data).parent / "weights"] if data else []
    for root in [*roots, _ROOT.parent / "shared" / "weights"]:
        if (root / "blast_ct_v1" / "model_1.pt").is_file():
            return root / "blast_ct_v1"
    return None


@pytest.mark.skipif(_weights() is None, reason="the weights of BLAST-CT v1 are not here")
@torch.no_grad()
def test_published_weights_fit_the_network():
    folder = _weights()
    assert folder is not None
    found = load_teachers(folder)
    assert len(found) == len(list(folder.glob("model_*.pt"))) >= 1
    assert all(sum(p.numel() for p in network.parameters()) == 1_030_033 for network in found)
    assert not any(module.training for network in found for module in network.modules())
    says = [network(torch.full((1, 1, 95, 95, 95), -1.0)).softmax(1) for network in found]
    assert all(said.shape == (1, 5, 15, 15, 15) for said in says)
    assert all((said[:, 0] > 0.9).all() for said in says)  # nothing but water and air: background
    assert len(found) == 1 or not torch.equal(says[0], says[1])


# --- places


def likelihood_of(
    marked: list[tuple[int, int, int]],
    inside: np.ndarray,
    spacing_mm: tuple[float, float, float],
    slices: list[int],
) -> np.ndarray:
    hu = np.zeros(inside.shape, np.float32)
    for s, r, c in marked:
        hu[s, max(0, r - 1) : r + 2, max(0, c - 1) : c + 2] = 100
    return blood_likelihood(teachers(), hu, spacing_mm, inside, slices)


@pytest.mark.parametrize("at", [(3, 100, 60), (3, 30, 10), (0, 170, 110), (11, 151, 60)])
def test_what_is_marked_comes_out_where_it_is(at: tuple[int, int, int]):
    """At the middle, in the first and beyond the first tile, on the first and the last slice."""
    spacing, inside = (4.8, 0.6, 0.9), np.zeros((12, 200, 120), np.bool_)
    inside[:, 20:180, 5:115] = True  # 96 x 99 mm: two tiles of 90 mm each way; 53 mm: two of 45 mm
    asked = sorted({0, 3, 11})
    found = likelihood_of([at], inside, spacing, asked)
    assert found.shape == (3, 3, round(199 * 0.6) + 1, round(119 * 0.9) + 1)
    assert found.dtype == np.uint8
    for number, index in enumerate(asked):
        if index != at[0]:
            assert not found[number].any()
            continue
        assert found[number, 0].max() > 250
        assert not found[number, 1:].any()
        centre = np.argwhere(found[number, 0] > 127).mean(axis=0)
        assert centre == pytest.approx((at[1] * 0.6, at[2] * 0.9), abs=0.6)


@pytest.mark.parametrize("corner", [(0, 0), (0, 69), (59, 0), (59, 69)])
def test_corners_of_the_image_are_seen(corner: tuple[int, int]):
    """The last slice, row and column too, where the grid of 1 mm ends a little beyond them."""
    spacing, inside = (4.8, 0.95, 0.7), np.ones((5, 60, 70), np.bool_)
    found = likelihood_of([(4, *corner)], inside, spacing, [4])
    at = round(corner[0] * spacing[1]), round(corner[1] * spacing[2])
    assert found[0, 0][at] > 250
    assert (found[0, 0] > 127).sum() < 12


def test_nothing_is_seen_outside_the_skull():
    inside = np.zeros((3, 60, 60), np.bool_)
    inside[:, 20:40, 20:40] = True
    found = likelihood_of([(1, 30, 30), (1, 5, 5)], inside, (5.0, 1.0, 1.0), [1])
    assert found[0, 0, 30, 30] > 250
    assert not found[0, :, :19].any()
    nothing = likelihood_of([(1, 30, 30)], np.zeros_like(inside), (5.0, 1.0, 1.0), [1])
    assert not nothing.any()


def test_slices_come_in_the_order_they_were_asked_for():
    inside = np.ones((4, 40, 40), np.bool_)
    found = likelihood_of([(0, 10, 10), (2, 30, 30)], inside, (5.0, 1.0, 1.0), [2, 0])
    assert found[0, 0, 30, 30] > 250
    assert found[1, 0, 10, 10] > 250
    assert not found[0, 0, 10, 10]


# --- answers


@pytest.fixture(scope="module")
def volume() -> Volume:
    head = head_phantom(seed=741, rows=96, columns=96, slices=8, slice_spacing_mm=16.0)
    hu = head.hu.copy()
    hu[4, 46:52, 46:52] = 95
    return Volume(hu=hu, spacing_mm=head.spacing_mm)


def scan_of(volume: Volume, positive: tuple[int, ...], *, synthetic: bool = False) -> Scan:
    labels = np.zeros((len(volume.hu), len(CLASSES)), np.int8)
    labels[list(positive), 0] = 1
    return Scan(
        source="tests",
        scan_id="a/b",
        patient_id="a",
        slice_ids=tuple(map(str, range(len(labels)))),
        labels=labels,
        scan_labels=scan_labels_of(labels),
        read=lambda: volume,
        synthetic=synthetic,
    )


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlastCt:
    """A teacher whose networks are `Centre`."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model_1.pt").write_bytes(b"")
    monkeypatch.setattr(blast_ct, "load_teachers", lambda folder: teachers())
    return BlastCt(tmp_path / "weights", tmp_path / "cache")


def _not_again(folder: Path) -> NoReturn:
    raise AssertionError("asked again")


def test_a_teacher_is_asked_once_for_the_slices_labelled_positive(
    volume: Volume, asked: BlastCt, monkeypatch: pytest.MonkeyPatch
):
    assert asked.name == "blast-ct-v1-1"
    taught = asked(scan_of(volume, (3, 4)))
    assert taught is not None
    assert taught.slices.tolist() == [3, 4]
    assert taught.pitch_mm == 1.0
    at = tuple(round(48.5 * mm) for mm in volume.spacing_mm[1:])
    assert taught.likelihood[1, 0][at] > 250
    assert taught.likelihood[0, 0][at] < 5
    monkeypatch.setattr(blast_ct, "load_teachers", _not_again)
    again = asked(scan_of(volume, (3, 4)))
    assert again is not None
    assert np.array_equal(again.likelihood, taught.likelihood)
    with pytest.raises(AssertionError, match="asked again"):
        asked(scan_of(volume, (4, 5)))  # the labels are others now
    assert [file.suffix for file in asked.folder.iterdir()] == [".npz"]


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_a_damaged_answer_is_asked_for_again(volume: Volume, asked: BlastCt, kept: int):
    first = asked(scan_of(volume, (4,)))
    (file,) = asked.folder.iterdir()
    file.write_bytes(file.read_bytes()[:kept])
    again = asked(scan_of(volume, (4,)))
    assert first is not None
    assert again is not None
    assert np.array_equal(again.likelihood, first.likelihood)


def test_nobody_is_asked_about_phantoms_and_healthy_patients(volume: Volume, asked: BlastCt):
    assert asked(scan_of(volume, ())) is None
    assert asked(scan_of(volume, (4,), synthetic=True)) is None
    assert not asked.folder.exists()


# --- weights that are none


def test_folder_without_weights_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no model_\*\.pt of BLAST-CT"):
        BlastCt(tmp_path, tmp_path)


def test_other_files_are_refused_by_name(tmp_path: Path):
    file = tmp_path / "model_1.pt"
    for content in (b"", b"no weights", b"PK\x03\x04"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"model_1\.pt does not hold the weights of BLAST-CT v1"):
            load_teachers(tmp_path)
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"model_1\.pt does not hold the weights of BLAST-CT v1"):
        load_teachers(tmp_path)
    torch.save(nn.Linear(1, 1), file)  # a pickle that is not tensors alone
    with pytest.raises(ValueError, match=r"model_1\.pt does not hold the weights of BLAST-CT v1"):
        load_teachers(tmp_path)
