"""A DICOM node that reads head CT for intracranial hemorrhage and raises a flag on the worklist."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ich-node")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
