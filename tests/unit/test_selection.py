from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.receive.header import read_header
from ich_node.selection import Selection, readable_images, select_series
from ich_node.study import Instance, Series, Study

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def head_series(uid: str = "1.1", count: int = 30, spacing_mm: float = 5.0, **changes: Any) -> Series:
    """Make the headers of a plain axial head CT, and change what is asked for in each."""
    first = Instance(
        path=Path("unused"),
        sop_instance_uid="",
        sop_class_uid=CT,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_instance_uid=uid,
        study_instance_uid="1",
        modality="CT",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        rows=512,
        columns=512,
        samples_per_pixel=1,
        image_orientation_patient=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing_mm=(0.45, 0.45),
        slice_thickness_mm=spacing_mm,
        convolution_kernel=("STANDARD",),
        body_part_examined="HEAD",
    )
    instances = [
        replace(
            first,
            sop_instance_uid=f"{uid}.{index + 1}",
            instance_number=index + 1,
            acquisition_number=1,
            image_position_patient_mm=(-115.0, -115.0, index * spacing_mm),
        )
        for index in range(count)
    ]
    return Series(
        series_instance_uid=uid,
        study_instance_uid="1",
        instances=tuple(replace(instance, **changes) for instance in instances),
    )


def select(*series: Series) -> Selection:
    return select_series(Study(study_instance_uid="1", series=series))


def chosen(*series: Series) -> list[str]:
    return [s.series_instance_uid for s in select(*series).candidates]


def excluded(series: Series) -> tuple[RejectionReason, str]:
    selection = select(series)
    assert selection.candidates == ()
    (exclusion,) = selection.exclusions
    assert exclusion.series_instance_uid == series.series_instance_uid
    return exclusion.reason, exclusion.detail


def test_a_plain_axial_head_is_a_candidate() -> None:
    series = head_series()
    assert select(series) == Selection(candidates=(series,), exclusions=())


def test_a_header_that_says_next_to_nothing_is_a_candidate() -> None:
    assert chosen(head_series(image_type=(), convolution_kernel=(), body_part_examined="", modality=""))


R = RejectionReason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"modality": "MR", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4"}, R.NOT_CT),
        ({"modality": "SR", "sop_class_uid": DOSE_REPORT, "has_pixel_data": False}, R.NOT_CT),
        ({"sop_class_uid": SECONDARY_CAPTURE}, R.SECONDARY_CAPTURE),
        ({"sop_class_uid": SECONDARY_CAPTURE + ".4"}, R.SECONDARY_CAPTURE),
        ({"image_type": ("DERIVED", "SECONDARY", "DOSE_INFO")}, R.SECONDARY_CAPTURE),
        ({"samples_per_pixel": 3}, R.SECONDARY_CAPTURE),
        ({"sop_class_uid": ENHANCED_CT, "number_of_frames": 30}, R.UNSUPPORTED_SOP_CLASS),
        ({"number_of_frames": 30}, R.UNSUPPORTED_SOP_CLASS),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.481.3"}, R.NOT_CT),
        ({"has_pixel_data": False}, R.NO_IMAGES),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, R.LOCALIZER),
        ({"image_type": ("DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE")}, R.DERIVED),
        ({"image_type": ("DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MPR")}, R.DERIVED),
        ({"image_type": ("DERIVED", "SECONDARY")}, R.DERIVED),
        ({"image_type": ("ORIGINAL", "PRIMARY", "PROJECTION IMAGE")}, R.DERIVED),
        ({"series_description": "AX MIP 10mm"}, R.DERIVED),
        ({"image_orientation_patient": CORONAL}, R.NOT_AXIAL),
        ({"image_orientation_patient": (1.0, 0.0, 0.0, 0.0, 0.766, -0.643)}, R.NOT_AXIAL),
        ({"body_part_examined": "CHEST"}, R.NOT_HEAD),
        ({"series_description": "C-SPINE 2mm"}, R.NOT_HEAD),
        ({"body_part_examined": "", "protocol_name": "Thorax"}, R.NOT_HEAD),
        ({"body_part_examined": "", "study_description": "CT ABDOMEN"}, R.NOT_HEAD),
        ({"body_part_examined": "", "pixel_spacing_mm": (0.9, 0.9)}, R.NOT_HEAD),
        (
            {"body_part_examined": "CHEST", "study_description": "CT HEAD", "pixel_spacing_mm": (0.8, 0.8)},
            R.NOT_HEAD,
        ),
        ({"contrast_bolus_agent": "IOPAMIDOL 370"}, R.CONTRAST),
        ({"series_description": "HEAD +C"}, R.CONTRAST),
        ({"series_description": "CTA Head"}, R.CONTRAST),
        ({"series_description": "HEAD W/WO"}, R.CONTRAST),
        ({"protocol_name": "CTA Head"}, R.CONTRAST),
        ({"convolution_kernel": ("BONEPLUS",)}, R.BONE_KERNEL),
        ({"convolution_kernel": ("H70h",)}, R.BONE_KERNEL),
        ({"convolution_kernel": (), "series_description": "HEAD BONE"}, R.BONE_KERNEL),
    ],
)
def test_what_is_not_read_has_a_reason(changes: dict[str, Any], reason: RejectionReason) -> None:
    found, detail = excluded(head_series(**changes))
    assert found is reason
    assert detail.endswith(".")


@pytest.mark.parametrize(
    "changes",
    [
        {"image_type": ("DERIVED", "PRIMARY", "AXIAL")},
        {"image_orientation_patient": (1.0, 0.0, 0.0, 0.0, 0.9483237, -0.3173047)},
        {"image_orientation_patient": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)},
        {"image_orientation_patient": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)},
        {"body_part_examined": "CHEST", "series_description": "HEAD 5mm"},
        {"body_part_examined": "CHEST", "protocol_name": "Head routine"},
        {"body_part_examined": "HEADNECK"},
        {"contrast_bolus_agent": "NONE"},
        {"contrast_bolus_agent": "W/O"},
        {"series_description": "HEAD WITHOUT CONTRAST", "protocol_name": "CTA Head"},
        {"protocol_name": "HEAD W/WO"},
        {"study_description": "CT HEAD WITH CONTRAST"},
        {"convolution_kernel": ("never heard of",)},
        {"convolution_kernel": ("STANDARD",), "series_description": "head, bone window"},
    ],
)
def test_what_does_not_exclude(changes: dict[str, Any]) -> None:
    assert chosen(head_series(**changes)) == ["1.1"]


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("image_position_patient_mm", "ImagePositionPatient (0020,0032)"),
        ("image_orientation_patient", "ImageOrientationPatient (0020,0037)"),
        ("pixel_spacing_mm", "PixelSpacing (0028,0030)"),
        ("rows", "Rows (0028,0010)"),
        ("columns", "Columns (0028,0011)"),
    ],
)
def test_an_absent_attribute_is_named_and_counted(field: str, name: str) -> None:
    series = head_series()
    broken = tuple(replace(i, **{field: None}) if k < 2 else i for k, i in enumerate(series.instances))
    reason, detail = excluded(replace(series, instances=broken))
    assert reason is R.MISSING_ATTRIBUTE
    assert name in detail
    assert "2 of 30" in detail


def test_too_few_slices() -> None:
    assert excluded(head_series(count=9))[0] is R.TOO_FEW_SLICES
    assert excluded(head_series(count=20, spacing_mm=1.0))[0] is R.TOO_FEW_SLICES
    assert chosen(head_series(count=13, spacing_mm=5.0))


def test_more_than_head_and_neck() -> None:
    assert excluded(head_series(count=120))[0] is R.NOT_HEAD


def test_a_dynamic_series_is_no_head_scan() -> None:
    once = head_series()
    many = [
        replace(i, sop_instance_uid=f"{i.sop_instance_uid}.{time}", acquisition_number=time)
        for time in range(4)
        for i in once.instances
    ]
    assert excluded(replace(once, instances=tuple(many)))[0] is R.DUPLICATE_POSITIONS


def test_a_series_without_objects() -> None:
    assert excluded(Series(series_instance_uid="1.1", study_instance_uid="1", instances=()))[0] is R.NO_IMAGES


STRAYS: list[tuple[dict[str, Any], RejectionReason]] = [
    ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER"), "image_orientation_patient": CORONAL}, R.LOCALIZER),
    ({"image_orientation_patient": CORONAL, "image_type": ()}, R.NOT_AXIAL),
    ({"sop_class_uid": SECONDARY_CAPTURE, "image_position_patient_mm": None}, R.SECONDARY_CAPTURE),
    ({"modality": "SR", "sop_class_uid": DOSE_REPORT, "has_pixel_data": False}, R.NOT_CT),
]


@pytest.mark.parametrize(("stray", "reason"), STRAYS)
def test_strays_in_the_series_are_set_aside_with_a_caveat(
    stray: dict[str, Any], reason: RejectionReason
) -> None:
    series = head_series()
    odd = tuple(replace(i, sop_instance_uid=f"2.{k}", **stray) for k, i in enumerate(series.instances[:2]))
    mixed = replace(series, instances=odd + series.instances)
    assert chosen(mixed) == ["1.1"]
    kept, caveats = readable_images(mixed)
    assert {i.sop_instance_uid for i in kept} == {i.sop_instance_uid for i in series.instances}
    (caveat,) = caveats
    assert caveat.startswith("2 of 32")
    assert reason in caveat


def test_a_few_slices_among_many_strays_are_excluded_for_the_strays() -> None:
    series = head_series()
    odd = head_series(uid="2", count=40, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")).instances
    with pytest.raises(StudyRejected) as rejected:
        readable_images(replace(series, instances=odd + series.instances))
    assert rejected.value.reason is R.LOCALIZER


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"convolution_kernel": ("STANDARD",)}, {"convolution_kernel": ("unknown",)}),
        ({"convolution_kernel": ("unknown",)}, {"convolution_kernel": ("H48s",)}),
        ({"spacing_mm": 5.0}, {"spacing_mm": 1.0, "count": 150}),
        ({"spacing_mm": 2.5, "count": 60}, {"spacing_mm": 0.6, "count": 250}),
        ({"spacing_mm": 1.0, "count": 150}, {"spacing_mm": 5.0, "count": 15}),
        ({"spacing_mm": 5.0}, {"spacing_mm": 7.0, "count": 22}),
        ({"image_type": ("ORIGINAL", "PRIMARY", "AXIAL")}, {"image_type": ("DERIVED", "PRIMARY", "AXIAL")}),
        ({"count": 32}, {"count": 26}),
        ({"series_number": 5}, {"series_number": 3}),
    ],
)
@pytest.mark.parametrize("better_uid", ["1.1", "1.3"])
def test_the_better_series_comes_first(
    better: dict[str, Any], worse: dict[str, Any], better_uid: str
) -> None:
    a, b = head_series(uid=better_uid, **better), head_series(uid="1.2", **worse)
    assert chosen(a, b) == [better_uid, "1.2"]
    assert chosen(b, a) == [better_uid, "1.2"]


@settings(deadline=None, max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_answer_does_not_hang_on_the_order_of_arrival(shuffler: random.Random) -> None:
    series = [
        head_series(uid="1.1", convolution_kernel=("BONE",)),
        head_series(uid="1.2", count=3, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")),
        head_series(uid="1.3", spacing_mm=1.0, count=150),
        head_series(uid="1.4"),
    ]
    expected = select(*series)
    mixed = [replace(s, instances=tuple(shuffler.sample(s.instances, len(s.instances)))) for s in series]
    shuffler.shuffle(mixed)
    found = select(*mixed)
    assert [s.series_instance_uid for s in found.candidates] == ["1.4", "1.3"]
    assert {e.series_instance_uid: e for e in found.exclusions} == {
        e.series_instance_uid: e for e in expected.exclusions
    }


odd_values = st.fixed_dictionaries(
    {},
    optional={
        "modality": st.sampled_from(["", "CT", "SR", "MR"]),
        "image_type": st.lists(st.text(max_size=12), max_size=5).map(tuple),
        "convolution_kernel": st.lists(st.text(max_size=8), max_size=2).map(tuple),
        "series_description": st.text(max_size=30),
        "body_part_examined": st.text(max_size=16),
        "contrast_bolus_agent": st.text(max_size=16),
        "slice_thickness_mm": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
        "image_orientation_patient": st.one_of(st.none(), st.tuples(*[st.floats(-2, 2)] * 6)),
        "image_position_patient_mm": st.one_of(st.none(), st.tuples(*[st.floats(-1e6, 1e6)] * 3)),
        "pixel_spacing_mm": st.one_of(st.none(), st.tuples(*[st.floats(1e-6, 1e6)] * 2)),
        "rows": st.one_of(st.none(), st.integers(1, 65535)),
        "columns": st.one_of(st.none(), st.integers(1, 65535)),
        "number_of_frames": st.integers(-5, 5),
        "samples_per_pixel": st.one_of(st.none(), st.integers(0, 5)),
        "has_pixel_data": st.booleans(),
    },
)


@settings(deadline=None)
@given(st.lists(odd_values, min_size=1, max_size=3))
def test_odd_headers_are_judged_and_never_crash(changes: list[dict[str, Any]]) -> None:
    series = head_series(count=12)
    odd = tuple(replace(i, **changes[k % len(changes)]) for k, i in enumerate(series.instances))
    selection = select(replace(series, instances=odd))
    assert len(selection.candidates) + len(selection.exclusions) == 1


def open_study(folder: Path) -> Study:
    instances: dict[str, list[Instance]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            instance, _ = read_header(path)
        except StudyRejected as rejected:
            assert rejected.reason is R.NOT_AN_IMAGE, path.name  # noqa: PT017
        else:
            instances.setdefault(instance.series_instance_uid, []).append(instance)
    return Study(
        study_instance_uid="1",
        series=tuple(
            Series(series_instance_uid=uid, study_instance_uid="1", instances=tuple(images))
            for uid, images in instances.items()
        ),
    )


def test_real_tilted_head_with_mixed_thickness_is_the_candidate(shared_data: Path) -> None:
    selection = select_series(open_study(shared_data / "ge_head_tilted"))
    assert [len(series.instances) for series in selection.candidates] == [28]
    assert selection.exclusions == ()


def test_real_study_with_localizer_and_exam_summary(shared_data: Path) -> None:
    selection = select_series(open_study(shared_data / "philips_head_phantom"))
    assert [len(series.instances) for series in selection.candidates] == [54]
    assert sorted(e.reason for e in selection.exclusions) == [R.LOCALIZER, R.SECONDARY_CAPTURE]
