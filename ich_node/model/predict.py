"""Reading a volume with a bundle: Hounsfield units in, findings out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from scipy import ndimage
from torch import nn

from ich_node.errors import ConfigurationError, RejectionReason, StudyRejected
from ich_node.findings import AlgorithmIdentification, IchSubtype, SeriesFinding, SliceFinding
from ich_node.model import bundle as bundles
from ich_node.model.decision import DecisionConfig, slice_probabilities, suspicion
from ich_node.model.intracranial import CoarseMask, intracranial_mask
from ich_node.model.localization import DetectorConfig, detect
from ich_node.model.preprocess import NetworkSlice, PreprocessConfig, SliceFrame, channels, network_slice
from ich_node.model.vicar_mil import ARCHITECTURE, VicarMil, VicarMilConfig

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
Spacing = tuple[float, float, float]
Config = TypeVar("Config", VicarMilConfig, PreprocessConfig, DecisionConfig, DetectorConfig)
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """The network's output for one slice that has intracranial space."""

    index: int
    logit: float
    evidence: FloatArray
    """(h, w) float32, 0 to 1, on the network's output grid."""
    frame: SliceFrame


class Predictor:
    """A loaded bundle. Deterministic on the CPU; one instance serves any number of volumes, one at a time."""

    def __init__(
        self,
        *,
        networks: tuple[VicarMil, ...],
        preprocessing: PreprocessConfig,
        decision: DecisionConfig,
        detector: DetectorConfig,
        algorithm: AlgorithmIdentification,
        device: torch.device,
    ) -> None:
        self.algorithm = algorithm
        """Who reads, for the report and the worklist."""
        self._networks = nn.ModuleList(networks).to(device).eval()
        self._preprocessing, self._decision, self._detector = preprocessing, decision, detector
        self._device = device

    def predict(self, hu: FloatArray, spacing_mm: Spacing) -> SeriesFinding:
        """Read a head CT.

        Parameters
        ----------
        hu
            (slices, rows, columns) float32, HU, inferior to superior.
        spacing_mm
            (slice, row, column) distance of neighbouring centres, mm.

        Returns
        -------
        SeriesFinding
            Slices without intracranial space have probability 0. Likelihood maps and points are given for
            slices at or above the sensitive operating point.

        Raises
        ------
        StudyRejected
            INVALID_MODEL_OUTPUT: the network gave NaN or infinity. NOT_HEAD: no slice shows the inside of a
            skull.
            IMPLAUSIBLE_VALUES: the volume holds NaN or infinity, is empty, or its spacing is not positive.
        """
        _check_input(hu, spacing_mm)
        mask = intracranial_mask(hu, spacing_mm)
        if not mask.mask.any():
            raise StudyRejected(RejectionReason.NOT_HEAD, "No slice shows the inside of a skull.")
        logits = np.full(len(hu), -np.inf)
        scored = {}
        for one in self._scored(hu, mask, spacing_mm):
            logits[one.index] = one.logit
            scored[one.index] = one
        probabilities = slice_probabilities(logits, self._decision)
        cut = self.algorithm.operating_points.sensitive
        slices = tuple(
            self._slice_finding(float(p), scored[i] if p >= cut else None, mask, spacing_mm)
            for i, p in enumerate(probabilities)
        )
        return SeriesFinding(
            slices=slices,
            suspicion=suspicion(probabilities, self._decision),
            subtypes={},
            algorithm=self.algorithm,
        )

    def _slice_finding(
        self, probability: float, scored: _Scored | None, mask: CoarseMask, spacing_mm: Spacing
    ) -> SliceFinding:
        probabilities = {IchSubtype.ANY: probability}
        if scored is None:
            return SliceFinding(probabilities=probabilities)
        likelihood = source_map(scored.evidence, scored.frame, mask, scored.index, self._preprocessing.size)
        return SliceFinding(
            probabilities=probabilities,
            localizations=detect(likelihood, spacing_mm[1:], self._detector),
            likelihood_map=likelihood,
        )

    def _scored(self, hu: FloatArray, mask: CoarseMask, spacing_mm: Spacing) -> Iterator[_Scored]:
        inside = [i for i in range(len(hu)) if mask.mask[i].any()]
        for start in range(0, len(inside), _BATCH):
            indices = inside[start : start + _BATCH]
            cuts = [network_slice(hu[i], mask, i, spacing_mm, self._preprocessing) for i in indices]
            logits, evidence = self._forward(cuts)
            for index, logit, places, cut in zip(indices, logits, evidence, cuts, strict=True):
                yield _Scored(index=index, logit=float(logit), evidence=places, frame=cut.frame)

    @torch.inference_mode()
    def _forward(self, cuts: list[NetworkSlice]) -> tuple[npt.NDArray[np.float64], FloatArray]:
        """Mean over networks and over each slice and its mirror: (batch,) logits, (batch, h, w) evidence."""
        hu = torch.from_numpy(np.stack([c.hu for c in cuts])).to(self._device)
        mask = torch.from_numpy(np.stack([c.mask for c in cuts])).to(self._device)
        x = channels(hu, self._preprocessing).contiguous(memory_format=torch.channels_last)
        logits, evidence = [], []
        for network in self._networks:
            for mirrored in (False, True):
                out = network(x.flip(-1), mask.flip(-1)) if mirrored else network(x, mask)
                # each position's own probability; attention says which positions decide the slice, and on phantoms
                # it points beside the bleed more often
                places = torch.sigmoid(self._decision.scale * out.position_logits + self._decision.offset)
                logits.append(out.logit)
                evidence.append(places.flip(-1) if mirrored else places)
        logit, place = torch.stack(logits).mean(0), torch.stack(evidence).mean(0)
        if not (torch.isfinite(logit).all() and torch.isfinite(place).all()):
            raise StudyRejected(
                RejectionReason.INVALID_MODEL_OUTPUT,
                "The model's output is not a number; the weights are unfit.",
            )
        return logit.cpu().double().numpy(), place.cpu().numpy()


def source_map(
    evidence: FloatArray, frame: SliceFrame, mask: CoarseMask, index: int, size: int
) -> FloatArray:
    """Evidence brought to the source pixel grid and kept inside the skull.

    Parameters
    ----------
    evidence
        (h, w) float32 on the network's output grid, each cell ``size / h`` network pixels.

    Returns
    -------
    numpy.ndarray
        (rows, columns) float32, 0 to 1.
    """
    cell = np.array([size / n for n in evidence.shape])
    # source pixel centre -> network pixel centre -> output cell centre
    step = 1 / (np.array(frame.step) * cell)
    origin = (frame.to_network(0, 0) + 0.5 * np.ones(2)) / cell - 0.5
    fine = ndimage.affine_transform(
        evidence, step, offset=origin, output_shape=mask.shape, order=1, mode="nearest"
    )
    return np.asarray(np.clip(fine, 0, 1) * mask.on_source_grid(index), np.float32)


def load_predictor(bundle: Path | None = None, device: str = "auto") -> Predictor:
    """Load a bundle, by default the one that is shipped.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    device
        ``auto`` (CUDA where there is any), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    ConfigurationError
        The bundle is not what its description says, is of an architecture that this version does not know,
        or the device is not there. The message names the file and the key.
    """
    folder = bundle if bundle is not None else bundles.SHIPPED / bundles.DEFAULT_NAME
    description = bundles.read_description(folder)
    if description["architecture"] != ARCHITECTURE:
        raise ConfigurationError(
            f"{folder / bundles.DESCRIPTION_FILE}: key 'architecture' is {description['architecture']!r}; "
            f"this version reads {ARCHITECTURE!r}"
        )
    config = dict(description["config"])
    members = config.pop("members", 1)
    if not isinstance(members, int) or isinstance(members, bool) or not 1 <= members <= 32:
        raise ConfigurationError(
            f"{folder / bundles.DESCRIPTION_FILE}: key 'config.members' has to be 1 to 32"
        )
    network = _typed(VicarMilConfig, config, folder, "config")
    return Predictor(
        networks=_networks(folder, description, network, members),
        preprocessing=_typed(PreprocessConfig, description["preprocessing"], folder, "preprocessing"),
        decision=_typed(DecisionConfig, description["decision"], folder, "decision"),
        detector=_typed(DetectorConfig, description.get("detector", {}), folder, "detector"),
        algorithm=bundles.identification(folder, description),
        device=_device(device),
    )


def _networks(
    folder: Path, description: Mapping[str, Any], config: VicarMilConfig, members: int
) -> tuple[VicarMil, ...]:
    """The bundle's networks; the tensors of number n are stored as ``n.<name>``."""
    file = folder / bundles.WEIGHTS_FILE
    try:
        tensors = load(bundles.verified_weights(folder, description))
    except SafetensorError as error:
        raise ConfigurationError(f"{file}: is no safetensors file ({error})") from error
    ensemble = nn.ModuleList(VicarMil(config) for _ in range(members))
    wanted = ensemble.state_dict()
    for key in sorted(wanted.keys() ^ tensors.keys()):
        problem = "is missing" if key in wanted else "is not part of the network"
        raise ConfigurationError(f"{file}: tensor {key!r} {problem}")
    for key, tensor in wanted.items():
        if tensors[key].shape != tensor.shape:
            raise ConfigurationError(
                f"{file}: tensor {key!r} is {tuple(tensors[key].shape)}, expected {tuple(tensor.shape)}"
            )
    ensemble.load_state_dict(tensors)
    return tuple(m for m in ensemble if isinstance(m, VicarMil))


def _typed(kind: type[Config], values: Mapping[str, Any], folder: Path, section: str) -> Config:
    """A configuration from a section of ``bundle.json``; unknown keys and wrong types are refused."""
    file = folder / bundles.DESCRIPTION_FILE
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{file}: key {section!r} has to be an object")
    defaults = {f.name: getattr(kind(), f.name) for f in fields(kind)}
    for key, value in values.items():
        if key not in defaults:
            raise ConfigurationError(f"{file}: key '{section}.{key}' is not known to this version")
        accepted = {float: (int, float), tuple: (list, tuple)}.get(
            type(defaults[key]), (type(defaults[key]),)
        )
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise ConfigurationError(
                f"{file}: key '{section}.{key}' has a value of the wrong kind: {value!r}"
            )
    return kind(**{key: _frozen(value) for key, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"model.device: {name} is not there; torch sees {torch.cuda.device_count()} GPUs"
        )
    return device


def _check_input(hu: FloatArray, spacing_mm: Spacing) -> None:
    if hu.ndim != 3 or 0 in hu.shape or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise StudyRejected(
            RejectionReason.IMPLAUSIBLE_VALUES, f"A volume of shape {hu.shape} with spacing {spacing_mm} mm."
        )
    if not np.isfinite(hu).all():
        raise StudyRejected(
            RejectionReason.IMPLAUSIBLE_VALUES, "The volume holds values that are no numbers."
        )
