"""What the plugin is told by orthanc.json, and which images it forwards."""

import re
from dataclasses import dataclass, fields

CT_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
    }
)
LOCALIZER = "LOCALIZER"
"""Third value of Image Type (0008,0008), PS3.3 C.8.2.1.1.1."""


class WrongConfiguration(Exception):
    """The section IchNode of orthanc.json cannot be used; the text says which key and why."""


@dataclass(frozen=True)
class Configuration:
    """The section ``IchNode`` of orthanc.json, with its defaults."""

    Modality: str = "ich-node"
    """Name of the node in DicomModalities."""
    Url: str = "http://127.0.0.1:8080"
    """Where the node's web service is reached."""
    TokenFile: str = ""
    """File with a bearer token of role radiologist; empty: the node asks for none."""
    Ca: str = ""
    """PEM file with the authorities that sign the node's certificate; empty: those of the system."""
    Forward: bool = True
    """Whether images are forwarded; false: flags and button only."""
    BodyParts: tuple = ("HEAD", "BRAIN", "SKULL")
    """Body Part Examined (0018,0015) of what is forwarded."""
    Words: tuple = ("head", "brain", "skull", "crani", "cerebr", "neuro", "stroke", "kopf", "schädel", "tête")
    """In study or series description or protocol name of what is forwarded, whatever the body part says."""
    ForwardUnknown: bool = True
    """Whether CT is forwarded of which neither says anything; the node looks at the images and says why not."""
    LabelPrefix: str = "ICH-"
    """Before STAT, HIGH, MEDIUM and ROUTINE in the study's labels."""
    Queue: str = ""
    """File that remembers what is still to be sent; empty: in Orthanc's StorageDirectory."""

    @classmethod
    def of(cls, section):
        """Read the section.

        Raises
        ------
        WrongConfiguration
            An unknown key, or a value of another kind.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        values = {}
        for key, value in section.items():
            if key not in defaults:
                raise WrongConfiguration(f"IchNode.{key}: unknown; there are {', '.join(defaults)}")
            wanted = type(defaults[key])
            if wanted is tuple and isinstance(value, list) and all(isinstance(one, str) for one in value):
                value = tuple(value)
            if type(value) is not wanted:
                kind = {"str": "text", "bool": "true or false", "tuple": "a list of texts"}[wanted.__name__]
                raise WrongConfiguration(f"IchNode.{key}: {kind} is expected")
            values[key] = value
        chosen = cls(**values)
        if not re.match(r"https?://[^/]", chosen.Url):
            raise WrongConfiguration("IchNode.Url: it begins with http:// or https://")
        if re.fullmatch(r"[A-Za-z0-9_-]*", chosen.LabelPrefix) is None:
            raise WrongConfiguration("IchNode.LabelPrefix: letters, digits, - and _ only")
        return chosen


@dataclass(frozen=True)
class Image:
    """What Orthanc knows of an instance without its pixels."""

    sop_class_uid: str
    remote_ae_title: str
    modality: str
    image_type: str
    """With backslashes between its values."""
    body_part: str
    descriptions: tuple
    """Study and series description, protocol name."""


def is_result(image, node_ae_title):
    """Whether the node itself sent it: it must never go back there."""
    return bool(node_ae_title) and image.remote_ae_title == node_ae_title


def is_head_ct(image, configuration):
    """Whether an image is to be forwarded.

    CT, by SOP class and modality; no localizer; of the head by body part or words. What says nothing of what it
    shows goes too, unless ForwardUnknown is false: the node chooses by the images, and records why it did not read.
    """
    if image.sop_class_uid not in CT_CLASSES or image.modality != "CT":
        return False
    if LOCALIZER in image.image_type.upper().split("\\")[2:3]:
        return False
    text = " ".join(image.descriptions).casefold()
    if any(word.casefold() in text for word in configuration.Words):
        return True
    body_part = image.body_part.strip().upper()
    if body_part:
        return body_part in {part.upper() for part in configuration.BodyParts}
    return configuration.ForwardUnknown
