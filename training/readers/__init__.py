"""Readers of labelled head CT: each gives `training.scan.Scan`, whose images are read when they are wanted.

A label that nobody gave is `training.scan.UNKNOWN`. What is wrong with the data is appended to
`ReadOptions.faults`, and `training.check` shows it; only a data set that is not there at all raises.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from training.readers.faults import Fault, FaultKind, ReadOptions
from training.scan import Scan

__all__ = ["READERS", "Fault", "FaultKind", "ReadOptions", "read"]

logger = logging.getLogger(__name__)

READERS: Mapping[str, str] = {
    "rsna-2019": "training.readers.rsna:read_rsna",
    "cq500": "training.readers.cq500:read_cq500",
    "ct-ich": "training.readers.ct_ich_jpeg:read_ct_ich_jpeg",
    "ct-ich-nifti": "training.readers.ct_ich_nifti:read_ct_ich_nifti",
    "dicom": "training.readers.dicom_folder:read_dicom_folder",
    "phantom": "training.readers.phantom:read_phantom",
}
"""Readers by the name that a command line takes. Each is imported when it is wanted: one needs nibabel, others load
torch, and the processes that index headers need neither."""


def read(name: str, root: Path, options: ReadOptions | None = None) -> list[Scan]:
    """Read a data set by the name of its reader.

    Parameters
    ----------
    name
        One of `READERS`.
    root
        Its folder; a phantom needs none.
    options
        Cache folder, processes and the list of faults. Their number is logged.

    Raises
    ------
    ValueError
        No such reader, names those that there are; or a table lacks a column.
    FileNotFoundError
        The folder holds no such data set.
    """
    if name not in READERS:
        raise ValueError(f"there is no reader {name!r}; there are {', '.join(READERS)}")
    options = options or ReadOptions()
    before = len(options.faults)
    module, _, function = READERS[name].partition(":")
    reader: Callable[[Path, ReadOptions], list[Scan]] = getattr(import_module(module), function)
    scans = reader(root, options)
    for kind, count in sorted(Counter(fault.kind for fault in options.faults[before:]).items()):
        logger.warning("%s in %s: %s, %d times", name, root, kind, count)
    return scans
