"""INTERIM: replaced by the model room's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ich_node.errors import RejectionReason, StudyRejected
from ich_node.findings import (
    AlgorithmIdentification,
    IchSubtype,
    Localization,
    OperatingPoints,
    SeriesFinding,
    SliceFinding,
)
from ich_node.model.bundle import find_bundle, load_weights
from ich_node.model.intracranial import intracranial_mask
from ich_node.model.preprocess import PreprocessConfig, channels, network_slice
from ich_node.model.vicar_mil import VicarMil, VicarMilConfig


class Predictor:
    def __init__(self, folder: Path) -> None:
        about, weights = load_weights(folder)
        config = dict(about["config"])
        config["widths"] = tuple(config["widths"])
        self.network = VicarMil(VicarMilConfig(**config)).eval()
        self.network.load_state_dict(weights)
        self.preprocess = PreprocessConfig()
        self.algorithm = AlgorithmIdentification(
            name=about["name"],
            version=about["version"],
            weights_sha256=about["weights_sha256"],
            operating_points=OperatingPoints(**about["operating_points"]),
        )

    @torch.inference_mode()
    def predict(self, hu: npt.NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> SeriesFinding:
        mask = intracranial_mask(hu, spacing_mm)
        parts = [network_slice(image, mask, i, spacing_mm, self.preprocess) for i, image in enumerate(hu)]
        x = channels(torch.from_numpy(np.stack([p.hu for p in parts])), self.preprocess)
        out = self.network(x, torch.from_numpy(np.stack([p.mask for p in parts])))
        p = torch.sigmoid(out.logit).numpy()
        if not np.isfinite(p).all():
            raise StudyRejected(RejectionReason.INVALID_MODEL_OUTPUT, "not finite")
        smooth = np.convolve(p, np.ones(3) / 3, "same")
        slices = []
        for i, part in enumerate(parts):
            places: tuple[Localization, ...] = ()
            amap = None
            if p[i] >= self.algorithm.operating_points.sensitive:
                a = (out.attention[i] / out.attention[i].max()).numpy()
                r, c = np.unravel_index(a.argmax(), a.shape)
                row, column = part.frame.to_source(r * 4 + 1.5, c * 4 + 1.5)
                places = (
                    Localization(
                        kind="point", subtype=IchSubtype.ANY, coordinates=(column + 0.5, row + 0.5), score=float(p[i])
                    ),
                )
                amap = np.zeros(hu.shape[1:], np.float32)
                rr, cc = int(row), int(column)
                amap[max(0, rr - 15) : rr + 15, max(0, cc - 15) : cc + 15] = p[i]
            slices.append(
                SliceFinding(probabilities={IchSubtype.ANY: float(p[i])}, localizations=places, likelihood_map=amap)
            )
        return SeriesFinding(
            slices=tuple(slices), suspicion=float(smooth.max()), subtypes={}, algorithm=self.algorithm
        )


def load_predictor(bundle: Path | None = None, device: str = "auto") -> Predictor:
    return Predictor(bundle or find_bundle("vicar-attention-v1"))
