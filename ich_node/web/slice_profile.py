"""The course of the probability over the slices, as a small bar chart in SVG coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ich_node.findings import IchSubtype
from ich_node.web.display import percent

WIDTH = 320.0
"""Of the chart, in SVG user units."""
HEIGHT = 64.0


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One slice."""

    x: float
    y: float
    width: float
    height: float
    label: str
    has_localization: bool


@dataclass(frozen=True, kw_only=True)
class SliceProfile:
    """Probability of any hemorrhage slice by slice, the lowest slice at the left."""

    bars: tuple[Bar, ...]
    summary: str
    """The same in words."""


def slice_profile(slices: Sequence[Mapping[str, Any]]) -> SliceProfile | None:
    """Chart the stored slices of a reading, inferior to superior; ``None`` where there are none."""
    scores = [float(s["probabilities"].get(IchSubtype.ANY) or 0.0) for s in slices]
    if not scores:
        return None
    step = WIDTH / len(scores)
    bars = tuple(
        Bar(
            x=round(index * step, 2),
            y=round(HEIGHT - max(1.0, score * HEIGHT), 2),
            width=round(max(0.5, step - min(1.0, step / 4)), 2),
            height=round(max(1.0, score * HEIGHT), 2),
            label=f"Slice {index + 1} from below: {percent(score)}",
            has_localization=bool(slices[index]["localizations"]),
        )
        for index, score in enumerate(scores)
    )
    own = [index for index, found in enumerate(slices) if found.get("shown_on") in (None, index)]
    highest = max(own, key=scores.__getitem__)
    summary = f"{len(scores)} slices; highest in slice {highest + 1} from below, {percent(scores[highest])}."
    return SliceProfile(bars=bars, summary=summary)
