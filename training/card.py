"""The model card that stands beside the weights: what they are, what they learnt from, what they cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.draft_bundle import INTENDED_USE
from training.scan import CLASSES

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
    "mil-pair": (
        "Two multiple-instance systems read each slice, one after Vicar et al. (system A) and the package's own on "
        "EfficientNet-Lite0, which also sees the slices above and below; their calibrated logits and their maps are "
        "averaged: any intracranial hemorrhage per slice, and where on the slice. It tells no subtypes."
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
{_ensemble(description)}

## Learnt from

{sources}

{_learnt(description)}
## How well, on real patients only

{_table(found)}
{_nested(found["nested"])}
{metrics["note"]}
{_pointing(metrics.get("pointing"))}
{_limits(description)}{_remarks(metrics.get("remarks", ()))}"""


_MIRRORED = ("lite-mil", "vicar-mil")
_CT_ICH = """
CT-ICH v1.0.0 has no pixel spacing: it was estimated from the size of the cranial cavity. Its Hounsfield units come
from two 8-bit windows.
"""


def _ensemble(description: Mapping[str, Any]) -> str:
    count = description["members"]
    mirrored = "over the slice and its mirror image" if description["architecture"] in _MIRRORED else ""
    if description["architecture"] == "mil-pair":
        return f"{count} pairs of networks are averaged; every second one sees the mirror image of the slice."
    if count == 1:
        return f"It is one network{', averaged ' + mirrored if mirrored else ''}."
    return f"{count} networks of one shape are averaged{', each ' + mirrored if mirrored else ''}."


def _learnt(description: Mapping[str, Any]) -> str:
    names = [source["name"] for source in description["training_data"]]
    said = ["Real patients give labels of whole slices."]
    if any(name.startswith("BLAST-CT") for name in names):
        said.append(
            "The teacher says where on a slice that radiologists labelled positive the bleed probably is; it was "
            "asked about no other slice and is no part of the bundle."
        )
    recipe = description["training_recipe"]
    if any(one["mix"]["transplants"] for one in ([recipe] if "mix" in recipe else recipe.values())):
        said.append(
            "Bleeds of training patients and of phantoms were also set into slices without hemorrhage of other "
            "training patients."
        )
    return f"{' '.join(said)}\n{_CT_ICH if any(n.startswith('CT-ICH v1.0') for n in names) else ''}"


def _limits(description: Mapping[str, Any]) -> str:
    real = [source for source in description["training_data"] if "patients" in source]
    patients, positive = (sum(s[key] for s in real) for key in ("patients", "scans_with_hemorrhage"))
    counts = {
        kind: tuple(sum(s["with"][kind][of] for s in real) for of in ("scans", "slices"))
        for kind in (str(subtype) for subtype in CLASSES[1:])
    }
    kinds = ", ".join(f"{kind} {scans} ({slices})" for kind, (scans, slices) in counts.items())
    lines = [
        f"{patients} patients of {_data_sets(len(real))}, {positive} scans with hemorrhage: the intervals are of other "
        "patients from there. Another hospital, scanner, kernel or slice thickness is outside of them, and so is "
        "another training run.",
        f"Scans (and slices) of each subtype: {kinds}. {_of_subtypes(description)}",
        "Contrast medium, operated heads, tumours and calcifications that look like blood are not labelled in these "
        "data: how they are read is not known.",
    ]
    if not any(source["outlined_scans"] for source in real):
        lines.append(
            "The real patients have no outlines: whether points lie in their bleeds was not counted."
        )
    if description["metrics"].get("pointing"):
        lines.append("Points were counted on phantoms, and phantoms are no measure of real performance.")
    if "slice_spacing_mm" in description["training_inputs"]:
        low, high = description["training_inputs"]["slice_spacing_mm"]
        thin = (
            f"Those at most {description['slab_mm'] / 2:g} mm apart are averaged to slabs of "
            f"{description['slab_mm']:g} mm; o"
            if "slab_mm" in description
            else "O"
        )
        lines.append(
            f"Slices that lie {low:g} to {high:g} mm apart are like those of the real patients. {thin}thers were seen "
            "in phantoms at most: they are read, and flagged."
        )
    return "\n## What these numbers cannot show\n\n" + "".join(f"- {line}\n" for line in lines)


def _of_subtypes(description: Mapping[str, Any]) -> str:
    if description["architecture"] in ("vicar-mil", "mil-pair"):
        return "The bundle tells none of them."
    return "How well subtypes are told apart is known no better than that."


def _data_sets(count: int) -> str:
    return "one data set" if count == 1 else f"{count} data sets"


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
