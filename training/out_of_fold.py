"""What a finished bundle said of patients that it learnt from, each by the one network that never saw that patient.

A bundle that `training.release` wrote holds the networks of a cross-validation in the order of its folds. With the
split at hand its numbers can be measured again from the bundle alone, without the run that it came of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ich_node.model.bundle import members, read_description
from ich_node.model.predict import load_predictor
from training.reading import joined, read_scans
from training.records import Said
from training.scan import Scan
from training.split import Split


def out_of_fold(bundle: Path, scans: Sequence[Scan], split: Split, *, upright: bool = False) -> Said:
    """Read the patients of each fold with the network of that number.

    Parameters
    ----------
    bundle
        Folder.
    scans
        Labelled, of the patients of the split.
    split
        That the networks were trained on.
    upright
        Whether networks are not shown the mirror image, as where they share a slice and its mirror image among them.

    Returns
    -------
    Predictions, dict
        As `training.records.of_run` gives them; the latter has the bundle's name, version and weights, and whether the
        networks saw no mirror image: ``upright``, None where the system has none.

    Raises
    ------
    ValueError
        It is a pair; there are not as many networks as folds, or nobody of a fold is among the scans.
    SplitError
        The split does not know a patient.
    """
    description, predictor = read_description(bundle), load_predictor(bundle)
    ensemble, changes = (
        predictor.system,
        {"mirror": "alternate"} if upright and hasattr(predictor.system.config, "mirror") else {},
    )
    count = members(bundle, description)
    if "parts" in description:
        names = " and ".join(part["name"] for part in description["parts"])
        raise ValueError(
            f"{bundle} was put together from {names}, which may have been trained on different splits: measure those; "
            "`pair` joins what they say"
        )
    if count != split.count:
        raise ValueError(
            f"{bundle} has {count} networks, but split {split.name} has {split.count} folds: not the bundle's split"
        )
    split.verify(scans)
    said = f"{split.count}-fold cross-validation by patient"
    parts = []
    for fold in range(split.count):
        held = split.measuring(scans, fold)
        if not held:
            raise ValueError(f"split {split.name}: no patient of fold {fold} is among the data given")
        predictor.system = ensemble.member(fold, **changes)
        parts.append(read_scans(predictor, held, system=description["name"], split=said, fold=fold))
    named = {key: description[key] for key in ("name", "version", "weights_sha256")}
    mirror = getattr(ensemble.config, "mirror", None)
    alone = None if mirror is None else upright or mirror == "alternate"
    return joined(parts), {"bundle": named, "folds": split.count, "upright": alone}
