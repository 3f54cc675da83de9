"""The model card that stands beside the weights: what they are, what they learnt from, what they cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def model_card(description: Mapping[str, Any]) -> str:
    """Markdown of ``MODEL_CARD.md`` from a bundle's description with metrics of a cross-validation."""
    metrics = description["metrics"]
    found = metrics["cross_validation"]
    sources = "\n".join(f"- {_source(s)}" for s in description["training_data"])
    rows = [("Slice AUC", found["slice_auc"]), ("Scan AUC", found["scan_auc"])]
    for point, title in (("sensitive", "sensitive"), ("high_confidence", "high-confidence")):
        cut = found[point]["threshold"]
        rows.append((f"Scan sensitivity, {title} point ({cut:.3f})", found[point]["scan_sensitivity"]))
        rows.append((f"Scan specificity, {title} point ({cut:.3f})", found[point]["scan_specificity"]))
    table = "\n".join(f"| {name} | {_interval(value)} |" for name, value in rows)
    nested = metrics["nested"]
    remarks = _remarks(metrics.get("remarks", ()))
    return f"""# {description["name"]} {description["version"]}

{description["intended_use"]}

A gated-attention multiple-instance network after Vicar et al. (system A of this package): any intracranial
hemorrhage per slice, and where on the slice. It knows no subtypes. {description["config"]["members"]} networks of
one shape are averaged, each over the slice and its mirror image.

## Learnt from

{sources}

The real patients give labels of whole slices only. Where phantoms are listed, every network began with weights
trained on phantoms alone, phantoms stayed part of each training step, and bleeds of phantoms were set into real
slices without hemorrhage; a phantom's parts are labelled, a real positive slice's are not.

CT-ICH v1.0.0 has no pixel spacing: it was estimated from the size of the cranial cavity. Its Hounsfield units come
from two 8-bit windows.

## How well, on real patients only

Cross-validation by patient: {found["patients"]} patients ({found["patients_with_hemorrhage"]} with hemorrhage),
{found["slices"]} slices ({found["slices_with_hemorrhage"]} with hemorrhage). 95 % intervals by bootstrap over patients.

| | value (95 % interval) |
|---|---|
{table}

Nested, the thresholds of each fold chosen on the other folds alone: sensitivity
{nested["sensitive_scan_sensitivity"]:.3f} and specificity {nested["sensitive_scan_specificity"]:.3f} at the sensitive
point, {nested["high_confidence_scan_sensitivity"]:.3f} and {nested["high_confidence_scan_specificity"]:.3f} at the
high-confidence point. A sensitivity of 95 % would leave a specificity of
{found["scan_specificity_at_95_percent_sensitivity"]:.3f}.

{metrics["note"]}

## What these numbers cannot show

- Sixty patients of one hospital, 26 with hemorrhage; intervals are wide, and another hospital,
  scanner, kernel or slice thickness is outside of them.
- Subdural hemorrhage comes from 3 patients, subarachnoid from 14 slices, intraventricular from 18: a sensitivity by
  subtype is not known.
- Localization was judged on phantoms; the real patients have no masks.
- Phantoms are no measure of real performance.
- Contrast, postoperative heads, tumours and calcifications that look like blood were hardly seen.
{remarks}"""


def _remarks(remarks: Sequence[str]) -> str:
    lines = "\n".join(f"- {remark}" for remark in remarks)
    return f"\n## How these weights came about\n\n{lines}\n" if remarks else ""


def _source(source: Mapping[str, Any]) -> str:
    size = [f"{source[k]} {k}" for k in ("patients", "slices", "phantoms") if k in source]
    return f"**{source['name']}** ({', '.join(size)}): {source['citation']}. Licence: {source['licence']}."


def _interval(value: Mapping[str, Any]) -> str:
    low, high = value["interval_95"]
    return f"{value['value']:.3f} ({low:.3f} to {high:.3f})"
