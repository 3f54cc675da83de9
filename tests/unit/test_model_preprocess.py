"""Cutting out, windows and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.model.intracranial import CoarseMask
from ich_node.model.preprocess import (
    PreprocessConfig,
    SliceFrame,
    channels,
    cut_out,
    field_of_view,
    network_slice,
    on_source_grid,
    unit_windows,
    whole_image,
)


def box_mask(rows: slice, columns: slice, shape: tuple[int, int], block: int = 2) -> CoarseMask:
    mask = np.zeros((1, shape[0] // block, shape[1] // block), bool)
    mask[0, rows.start // block : rows.stop // block, columns.start // block : columns.stop // block] = True
    return CoarseMask(mask=mask, block=(block, block), shape=shape)


def test_windows_are_pinned():
    hu = torch.tensor([[[-1500.0, -15.0, 0.0, 40.0, 80.0, 115.0, 2000.0]]])
    out = channels(hu, PreprocessConfig())
    assert out.shape == (1, 3, 1, 7)
    wide, brain, subdural = out[0, :, 0]
    assert wide.tolist() == pytest.approx([-1.8, -0.03, 0, 0.08, 0.16, 0.23, 3.0])
    assert brain.tolist() == pytest.approx([-1, -1, -1, 0, 1, 1, 1])
    assert subdural.tolist() == pytest.approx([-1, -1, -50 / 65, -10 / 65, 30 / 65, 1, 1])


def test_cut_is_centred_on_the_intracranial_space():
    image = np.zeros((200, 240), np.float32)
    mask = box_mask(slice(40, 100), slice(100, 180), (200, 240))
    cut = network_slice(image, mask, 0, (5.0, 1.0, 1.0), PreprocessConfig(size=32, pitch_mm=2.0))
    assert cut.frame.to_source(15.5, 15.5) == pytest.approx((69.5, 139.5))


@settings(deadline=None)  # the machine may be busy
@given(
    st.floats(0.3, 1.2), st.floats(0.3, 1.2), st.integers(60, 140).map(lambda v: v & ~1), st.integers(60, 140)
)
def test_a_spot_is_where_the_frame_says(row_mm: float, column_mm: float, top: int, column: int):
    image = np.zeros((220, 220), np.float32)
    image[top - 2 : top + 3, column - 2 : column + 3] = 100
    mask = box_mask(slice(40, 180), slice(40, 180), (220, 220))
    config = PreprocessConfig(size=96, pitch_mm=1.2)
    cut = network_slice(image, mask, 0, (5.0, row_mm, column_mm), config)
    row, col = cut.frame.to_network(top, column)
    if not (4 <= row < 92 and 4 <= col < 92):
        return
    weights = np.clip(cut.hu, 0, None)
    y, x = np.mgrid[:96, :96]
    assert (weights * y).sum() / weights.sum() == pytest.approx(row, abs=0.25)
    assert (weights * x).sum() / weights.sum() == pytest.approx(col, abs=0.25)


@settings(deadline=None)  # the machine may be busy
@given(st.floats(-50, 300), st.floats(-50, 300), st.floats(0.5, 4), st.floats(0.5, 4))
def test_frame_round_trip(row: float, column: float, row_step: float, column_step: float):
    frame = SliceFrame(origin=(12.25, -7.5), step=(row_step, column_step))
    assert frame.to_source(*frame.to_network(row, column)) == pytest.approx((row, column))


def test_same_head_at_two_spacings_gives_the_same_input():
    y, x = np.mgrid[:400, :400]
    fine = (60 * np.sin(y / 37) * np.cos(x / 29)).astype(np.float32)
    coarse = fine.reshape(200, 2, 200, 2).mean(axis=(1, 3))
    config = PreprocessConfig(size=64, pitch_mm=1.2)
    a = network_slice(fine, box_mask(slice(80, 320), slice(80, 320), (400, 400)), 0, (5, 0.5, 0.5), config)
    b = network_slice(coarse, box_mask(slice(40, 160), slice(40, 160), (200, 200)), 0, (5, 1.0, 1.0), config)
    assert np.abs(a.hu - b.hu).max() < 1.0
    assert np.array_equal(a.mask, b.mask)


def test_padding_and_metal_are_clipped():
    image = np.full((100, 100), -3024, np.float32)
    image[40:60, 40:60] = 30000
    mask = box_mask(slice(20, 80), slice(20, 80), (100, 100))
    cut = network_slice(image, mask, 0, (5, 1, 1), PreprocessConfig(size=64))
    assert cut.hu.min() >= -900
    assert cut.hu.max() <= 1500


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 15), st.integers(0, 15))
def test_evidence_comes_back_to_the_source_place_it_came_from(row: int, column: int):
    """Preprocess forwards, map backwards: the cell's centre has to land on the tissue that filled it."""
    mask = box_mask(slice(0, 300), slice(0, 300), (300, 300))
    config = PreprocessConfig(size=64, pitch_mm=1.2)
    cut = network_slice(np.zeros((300, 300), np.float32), mask, 0, (5, 0.5, 0.6), config)
    evidence = np.zeros((16, 16), np.float32)
    evidence[row, column] = 1
    back = on_source_grid(evidence, cut.frame, config.size, (300, 300))
    expected = cut.frame.to_source(row * 4 + 1.5, column * 4 + 1.5)
    if 0 < row < 15 and 0 < column < 15:
        y, x = np.mgrid[:300, :300]
        assert (back * y).sum() / back.sum() == pytest.approx(expected[0], abs=0.1)
        assert (back * x).sum() / back.sum() == pytest.approx(expected[1], abs=0.1)
    assert back.dtype == np.float32
    assert back.max() <= 1


def test_unit_windows_are_pinned():
    hu = torch.tensor([[[-1000.0, 0.0, 20.0, 40.0, 80.0, 180.0, 3000.0]]])
    brain, subdural, soft = unit_windows(hu, ((40, 80), (80, 200), (40, 380)))[0, :, 0]
    assert brain.tolist() == pytest.approx([0, 0, 0.25, 0.5, 1, 1, 1])
    assert subdural.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.5, 1, 1])
    assert soft.tolist() == pytest.approx([0, 150 / 380, 170 / 380, 0.5, 230 / 380, 330 / 380, 1])


def test_the_whole_image_goes_edge_to_edge():
    frame = whole_image((512, 256), 128)
    assert frame.step == (4, 2)
    # the outer edge of the first pixel lies on the image's edge, at -0.5
    assert frame.to_source(-0.5, -0.5) == pytest.approx((-0.5, -0.5))
    assert frame.to_source(127.5, 127.5) == pytest.approx((511.5, 255.5))


def test_a_field_of_view_has_its_pitch_and_its_centre():
    frame = field_of_view((100.0, 60.0), (5.0, 0.5, 0.25), 250, 1.0)
    assert frame.step == (2, 4)
    assert frame.to_source(124.5, 124.5) == pytest.approx((100, 60))


def test_cutting_out_averages_where_the_grid_is_coarser():
    """A checkerboard of single pixels becomes its mean, and does not alias into stripes."""
    y, x = np.mgrid[:256, :256]
    board = np.where((y + x) % 2, 100, 0).astype(np.float32)
    out = cut_out(board, whole_image((256, 256), 64), 64, (-1000, 1000))
    assert np.abs(out[2:-2, 2:-2] - 50).max() < 5
