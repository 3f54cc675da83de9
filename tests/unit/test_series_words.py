from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_node.series_words import (
    Contrast,
    Kernel,
    Region,
    contrast,
    is_projection,
    kernel,
    names_agent,
    region,
)

WITHOUT = [
    "HEAD WITHOUT CONTRAST",
    "CT HEAD W/O",
    "CT HEAD W/O CONTRAST",
    "BRAIN_WO",
    "HEAD WO IV CONTRAST",
    "non contrast head",
    "Non-Contrast",
    "NONCON HEAD",
    "NCCT",
    "sans injection",
    "CRÂNE SANS INJECTION DE PRODUIT DE CONTRASTE",
    "Schädel ohne KM",
    "CCT NATIV 5mm",
    "SIN CONTRASTE",
    "senza mdc",
    "PRE CONTRAST",
    "1A TRAUMA/PLAIN HEAD DM /Head",
    "Unenhanced head",
    "HEAD C-",
]
WITH = [
    "HEAD WITH CONTRAST",
    "HEAD W/ CONTRAST",
    "HEAD +C",
    "HEAD C+",
    "Post contrast axial",
    "CTA HEAD 0.75",
    "CT ANGIO",
    "mit KM",
    "KM arteriell",
    "avec injection",
    "Après injection",
    "con contraste",
    "Perfusion 5.0",
    "VENOUS PHASE",
    "injecté",
]
BOTH = [
    "CT HEAD W/WO",
    "HEAD W/WO CONTRAST",
    "with and without contrast",
    "pre and post contrast",
    "ohne und mit KM",
]
SILENT = ["", "HEAD AXIAL 5mm", "STEREOTAXIS", "C-SPINE", "Head 5.0 H31s", "performed", "Routine Kopf"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, Contrast.WITHOUT) for text in WITHOUT),
        *((text, Contrast.WITH) for text in WITH),
        *((text, Contrast.BOTH) for text in BOTH),
        *((text, Contrast.SILENT) for text in SILENT),
    ],
)
def test_contrast(text: str, said: Contrast) -> None:
    assert contrast(text) is said
    assert contrast(text.lower()) is said


@pytest.mark.parametrize(
    "agent", ["", " ", "NONE", "No", "N/A", "w/o", "WITHOUT CONTRAST", "ohne", "nativ", "0"]
)
def test_no_agent(agent: str) -> None:
    assert not names_agent(agent)


@pytest.mark.parametrize("agent", ["IOPAMIDOL", "APPLIED", "CE", "Omnipaque 350", "NON-IONIC", "YES", "iv"])
def test_agent(agent: str) -> None:
    assert names_agent(agent)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("HEAD", Region.HEAD),
        ("Schädel", Region.HEAD),
        ("SCHAEDEL", Region.HEAD),
        ("CRÂNE", Region.HEAD),
        ("cráneo", Region.HEAD),
        ("1F STEREOTAXIS /Head", Region.HEAD),
        ("HEADNECK", Region.HEAD),
        ("CT HEAD + C-SPINE", Region.HEAD),
        ("CHEST", Region.OTHER),
        ("THORAX", Region.OTHER),
        ("C-SPINE 2mm", Region.OTHER),
        ("SINUS", Region.OTHER),
        ("ABDOMEN/PELVIS", Region.OTHER),
        ("", Region.SILENT),
        ("Axial 5.0", Region.SILENT),
        ("HEAD FIRST SUPINE", Region.SILENT),
        ("FEET-FIRST", Region.SILENT),
    ],
)
def test_region(text: str, said: Region) -> None:
    assert region(text) is said


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("STANDARD", Kernel.SOFT),
        ("STD+", Kernel.SOFT),
        ("SOFT", Kernel.SOFT),
        ("BONE", Kernel.BONE),
        ("BONEPLUS", Kernel.BONE),
        ("EDGE", Kernel.BONE),
        ("LUNG", Kernel.BONE),
        ("DETAIL", Kernel.SHARP),
        ("H31s", Kernel.SOFT),
        ("J40s", Kernel.SOFT),
        ("Hr38f", Kernel.SOFT),
        ("H50s", Kernel.SHARP),
        ("H60s", Kernel.BONE),
        ("H70h", Kernel.BONE),
        ("Hr59", Kernel.BONE),
        ("B60f", Kernel.BONE),
        ("U90u", Kernel.BONE),
        ("UB", Kernel.SOFT),
        ("YB", Kernel.BONE),
        ("FC21", Kernel.SOFT),
        ("FC68", Kernel.SOFT),
        ("FC30", Kernel.BONE),
        ("FC81", Kernel.BONE),
        ("FC52", Kernel.BONE),
        ("H_SOFT_B", Kernel.SOFT),
        ("something", Kernel.UNKNOWN),
        ("", Kernel.UNKNOWN),
    ],
)
def test_kernel(name: str, kind: Kernel) -> None:
    assert kernel((name,)) is kind


def test_iterative_strength_does_not_hide_the_kernel() -> None:
    assert kernel(("J30s", "3")) is Kernel.SOFT


def test_description_speaks_where_the_kernel_is_not_known() -> None:
    assert kernel((), "HEAD BONE 2.5mm") is Kernel.BONE
    assert kernel(("xyz",), "Knochen") is Kernel.BONE
    assert kernel((), "Rocher OS") is Kernel.BONE
    assert kernel((), "HEAD SOFT TISSUE") is Kernel.SOFT
    assert kernel(("STANDARD",), "bone window") is Kernel.SOFT
    assert kernel((), "HEAD") is Kernel.UNKNOWN


@pytest.mark.parametrize(
    "text", ["AX MIP 10mm", "COR MPR", "VRT", "3D skull", "Reformatted", "CBF", "Exam Summary"]
)
def test_projection(text: str) -> None:
    assert is_projection(text)


def test_no_projection() -> None:
    assert not is_projection("HEAD AXIAL 5mm")
    assert not is_projection("")


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_judged(text: str) -> None:
    assert contrast(text) in Contrast
    assert region(text) in Region
    assert kernel((text,), text) in Kernel
    assert isinstance(names_agent(text), bool)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("CT BRAIN POST", Contrast.WITH),
        ("Brain post gad", Contrast.WITH),
        ("Head delayed 5 mm", Contrast.WITH),
        ("Iodine map head", Contrast.WITH),
        ("VNC HEAD", Contrast.WITH),
        ("HEAD VIRTUAL NON CONTRAST", Contrast.BOTH),
        ("HEAD POST OP", Contrast.SILENT),
        ("HEAD POST TRAUMA", Contrast.SILENT),
        ("Kopf ohne Jod", Contrast.WITHOUT),
    ],
)
def test_what_was_made_of_a_scan_with_contrast_is_told(text: str, said: Contrast) -> None:
    assert contrast(text) is said
