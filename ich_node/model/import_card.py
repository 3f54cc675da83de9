"""The model card of a bundle that was made of somebody else's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def import_card(description: Mapping[str, Any]) -> str:
    """Markdown of ``MODEL_CARD.md`` from an imported bundle's description."""
    data = "\n".join(
        f"- **{source['name']}**: {source['citation']}. Licence: {source['licence']}."
        for source in description["training_data"]
    )
    metrics = "\n".join(f"| {key} | {value} |" for key, value in description["metrics"]["published"].items())
    points = description["operating_points"]
    return f"""# {description["name"]} {description["version"]}

{description["intended_use"]}

{description["about"]} The architecture is `{description["architecture"]}`.

## Where the weights come from

Imported from `{description["source_file"]}` (SHA-256 `{description["source_sha256"]}`). Licence of the weights:
{description["licence"]}. The tensors are those of that file; only their container is another one.

## Learnt from

{data}

## How well

{description["metrics"]["note"]}

| | published |
|---|---|
{metrics}

## What was chosen here

- Calibration and study rule: {description["chosen"]["decision"]}.
- Operating points ({points["sensitive"]} sensitive, {points["high_confidence"]} high-confidence):
  {description["chosen"]["operating_points"]}.

What is not chosen on data has no known sensitivity or specificity. Evaluate these weights on your own scans before
any study is ordered by them.
"""
