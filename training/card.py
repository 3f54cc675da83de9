"""The model card that stands beside the weights: what they are, what they learnt from, what they cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.draft_bundle import INTENDED_USE

_WHAT = {
    "lite-mil": (
        "EfficientNet-Lite0 from ImageNet with a feature pyramid and multiple-instance pooling (the package's own "
        "system): any intracranial hemorrhage and five subtypes per slice, and where on the slice. A slice is seen in "
        "three windows, with the slices above and below it."
    ),
    "vicar-mil": (
        "A multiple-instance network after Vicar et al. (system A): any intracranial hemorrhage per slice, and where "
        "on the slice. It knows no subtypes."
    ),
    "he-fusion": "A network after He et al. (system B): hemorrhage and five subtypes per slice, with boxes.",
    "radnet": "RADnet (system C): hemorrhage per slice, read along the scan.",
    "burduja": "A CNN with an LSTM after Burduja et al. (system D): hemorrhage and five subtypes per slice.",
}


def model_card(description: Mapping[str, Any]) -> str:
    """Markdown of ``MODEL_CARD.md`` from a bundle's description with metrics of a cross-validation."""
    metrics = description["metrics"]
    found = metrics["cross_validation"]
    sources = "\n".join(f"- {_source(s)}" for s in description["training_data"])
    return f"""# {description["name"]} {description["version"]}

{INTENDED_USE}

{_WHAT[description["architecture"]]}
{description["members"]} networks of one shape are averaged, each over the slice and its mirror image.

## Learnt from

{sources}

{_LEARNT}
## How well, on real patients only

{_table(found)}
{_nested(found["nested"])}
{metrics["note"]}
{_pointing(metrics.get("pointing"))}
{_LIMITS}{_remarks(metrics.get("remarks", ()))}"""


_LEARNT = """Real patients give labels of whole slices. Where a teacher is listed, it says where on a slice that
radiologists labelled positive the bleed probably is; it was asked about no other slice and is no part of the bundle.
Bleeds of training patients and of phantoms were also set into slices without hemorrhage of other training patients.

CT-ICH v1.0.0 has no pixel spacing: it was estimated from the size of the cranial cavity. Its Hounsfield units come
from two 8-bit windows.
"""
_LIMITS = """
## What these numbers cannot show

- Sixty patients of one hospital, 26 with hemorrhage: intervals are wide, and another hospital, scanner, kernel or slice
  thickness is outside of them. They do not cover another training run either.
- Subdural hemorrhage comes from 3 patients, subarachnoid from 14 slices, intraventricular from 18: how well subtypes
  are told apart is not known.
- The real patients have no outlines. Where the strongest point lies was counted on phantoms, and phantoms are no
  measure of real performance.
- Contrast, postoperative heads, tumours and calcifications that look like blood were hardly seen.
- Slices of other thickness than 5 mm were seen in phantoms only.
"""


def _table(found: Mapping[str, Any]) -> str:
    rows = [("Slice AUC", found["slice_auc"]), ("Scan AUC", found["scan_auc"])]
    for point, title in (("sensitive", "sensitive"), ("high_confidence", "high-confidence")):
        cut = found[point]["threshold"]
        rows.append((f"Scan sensitivity, {title} point ({cut:.3f})", found[point]["scan_sensitivity"]))
        rows.append((f"Scan specificity, {title} point ({cut:.3f})", found[point]["scan_specificity"]))
    table = "\n".join(f"| {name} | {_interval(value)} |" for name, value in rows)
    return f"""Cross-validation by patient: {found["patients"]} patients ({found["patients_with_hemorrhage"]} with
hemorrhage), {found["slices"]} slices ({found["slices_with_hemorrhage"]} with hemorrhage). 95 % intervals by bootstrap
over patients.

| | value (95 % interval) |
|---|---|
{table}
"""


def _nested(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"""Nested, the thresholds of each fold chosen on the other folds alone: sensitivity
{found["sensitive_scan_sensitivity"]:.3f} and specificity {found["sensitive_scan_specificity"]:.3f} at the sensitive
point, {found["high_confidence_scan_sensitivity"]:.3f} and {found["high_confidence_scan_specificity"]:.3f} at the
high-confidence point.
"""


def _pointing(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = (100 * bound for bound in found["interval_95"])
    share, near = 100 * found["strongest_point_in_bleed"], 100 * found["within_5_mm"]
    return f"""
On {found["scans"]} phantoms with a bleed that trained nothing, the strongest point of a slice lies in the bleed in
{share:.1f} % ({low:.1f} to {high:.1f}) of {found["slices_with_hemorrhage"]} slices with hemorrhage, and within 5 mm
of it in {near:.1f} %; {found["without_a_point"]} have no point.
"""


def _remarks(remarks: Sequence[str]) -> str:
    lines = "\n".join(f"- {remark}" for remark in remarks)
    return f"\n## How these weights came about\n\n{lines}\n" if remarks else ""


def _source(source: Mapping[str, Any]) -> str:
    size = [f"{source[k]} {k.replace('_', ' ')}" for k in ("patients", "slices", "phantoms") if k in source]
    what = ", ".join(size) or source.get("use", "")
    return f"**{source['name']}** ({what}): {source['citation']}. Licence: {source['licence']}."


def _interval(value: Mapping[str, Any]) -> str:
    if value.get("value") is None:
        return str(value.get("missing", "not measured"))
    low, high = value["interval_95"]
    return f"{value['value']:.3f} ({low:.3f} to {high:.3f})"
