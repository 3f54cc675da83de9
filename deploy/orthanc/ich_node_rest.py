"""Orthanc's own REST interface, as a plugin calls it."""

import json

import orthanc


def get(path):
    """What Orthanc answers, or `None` where it has no such thing."""
    try:
        return json.loads(orthanc.RestApiGet(path))
    except orthanc.OrthancException:
        return None


def text_of(path):
    """A value that Orthanc answers as text; empty where it has none."""
    try:
        value = orthanc.RestApiGet(path)
    except orthanc.OrthancException:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def study_instance_uid(study):
    """Of a study that Orthanc has."""
    return (get(f"/studies/{study}") or {}).get("MainDicomTags", {}).get("StudyInstanceUID")
