"""Objects of one reading that differ in a few attributes: what they share is encoded once, and stays so.

An attribute that is set and written through pydicom is checked, converted and copied on its way. Secondary captures
come nine at a time with sixty attributes each, most of them the same.
"""

from __future__ import annotations

import copy
import io
import struct
import warnings
from collections.abc import Iterable
from functools import cache

from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag, Tag

from ich_node.report.content_items import tag_of

_Attributes = dict[BaseTag, DataElement | RawDataElement]


def encoded_attribute(keyword: str, *values: str | int | bytes) -> RawDataElement:
    """Return an attribute in Explicit VR Little Endian (PS3.5 section 7.1.2).

    Parameters
    ----------
    keyword
        Of an attribute that takes ASCII text, unsigned 16-bit numbers (VR US) or bytes.
    values
        None for an attribute that is empty. Bytes stand alone and are the whole value, that of a sequence or of pixels.
    """
    tag, vr = _tag_and_vr(keyword)
    if values and isinstance(values[0], bytes):
        value = values[0]
    elif vr == "US":
        value = struct.pack(f"<{len(values)}H", *values)
    else:
        value = "\\".join(str(value) for value in values).encode("ascii")
    if len(value) % 2:
        value += b" " if vr in _PADDED_WITH_SPACE else b"\0"
    return RawDataElement(tag, vr, len(value), value, 0, False, True)


class SharedAttributes:
    """What several objects have in common."""

    def __init__(self, blank: Dataset) -> None:
        """Encode an object that has everything that the others share, with its file meta."""
        file = io.BytesIO()
        blank.save_as(file, enforce_file_format=True)
        file.seek(0)
        encoded = dcmread(file)
        self._character_set = encoded.original_character_set
        self._file_meta = _attributes(encoded.file_meta)
        # Free text that breaks its length would make pydicom complain to whoever asks for it: then all is kept as it
        # was set.
        attributes = _attributes(encoded)
        self._shared = attributes if _reads_without_complaint(attributes) else _attributes(blank)

    def with_own(self, own: Iterable[RawDataElement]) -> Dataset:
        """Return an object that has attributes of its own besides; no change to it reaches another.

        Its attributes stay encoded until somebody asks for them, and are saved as they are.
        """
        made = Dataset(_copied(self._shared) | {element.tag: element for element in own})
        made.set_original_encoding(False, True, self._character_set)
        made.file_meta = FileMetaDataset(_copied(self._file_meta))
        name = encoded_attribute("MediaStorageSOPInstanceUID", str(made.SOPInstanceUID))
        made.file_meta[name.tag] = name
        return made


def _attributes(dataset: Dataset) -> _Attributes:
    return {tag: dataset.get_item(tag) for tag in list(dataset.keys())}


def _copied(attributes: _Attributes) -> _Attributes:
    """Copy what can be changed: what is encoded cannot."""
    return {
        tag: element if isinstance(element, RawDataElement) else copy.deepcopy(element)
        for tag, element in attributes.items()
    }


def _reads_without_complaint(attributes: _Attributes) -> bool:
    texts = Dataset({tag: element for tag, element in attributes.items() if element.VR in _TEXTS})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            texts.decode()
        except (UserWarning, ValueError, LookupError):
            return False
    return True


_TEXTS = frozenset({"CS", "LO", "LT", "PN", "SH", "SQ", "ST", "UC", "UT"})
"""Value representations of free text, of what has text inside it, and of the character set."""
_PADDED_WITH_SPACE = frozenset({"CS", "DA", "DS", "IS", "LO", "LT", "SH", "ST", "TM"})


@cache
def _tag_and_vr(keyword: str) -> tuple[BaseTag, str]:
    tag = Tag(tag_of(keyword))
    vr = dictionary_VR(tag)
    # Of the two that pixels may have, that of samples of 8 bits in explicit encoding (PS3.5 section 8.2).
    return tag, "OB" if vr == "OB or OW" else vr
