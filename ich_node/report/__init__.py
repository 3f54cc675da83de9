"""Findings out of the node as DICOM objects: structured report and secondary captures."""

from ich_node.report.reading_report import Predecessor, ReadingReport
from ich_node.report.secondary_capture import build_secondary_captures, sc_to_png
from ich_node.report.structured_report import build_structured_report

__all__ = [
    "Predecessor",
    "ReadingReport",
    "build_secondary_captures",
    "build_structured_report",
    "sc_to_png",
]
