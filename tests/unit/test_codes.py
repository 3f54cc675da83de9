"""Every code that the node writes exists in the standard's tables, with the meaning it has there."""

from __future__ import annotations

import pytest
from pydicom.sr._concepts_dict import concepts
from pydicom.uid import UID

from ich_node.codes import (
    FINDING_OF,
    IMPLEMENTATION_CLASS_UID,
    SITE_OF,
    CodedConcept,
    all_concepts,
)
from ich_node.findings import IchSubtype

NOT_LISTED = {
    ("21454007", "SCT"): "SNOMED CT finding; PS3.16 lists no hemorrhage types",
    ("35486000", "SCT"): "SNOMED CT finding",
    ("274100004", "SCT"): "SNOMED CT finding",
    ("82999001", "SCT"): "SNOMED CT finding",
    ("705057003", "SCT"): "SNOMED CT property, as IHE AI Results names it",
    ("2667000", "SCT"): "SNOMED CT qualifier; CID 240 has the grouping code 272519000",
    ("C0034375", "UMLS"): "container of TID 1500 that no context group lists",
    ("en-US", "RFC5646"): "language tag of RFC 5646, as CID 5000 takes it",
    ("{pixels}", "UCUM"): "annotation of TID 1602 that no context group lists",
    ("{-1:1}", "UCUM"): "annotation of TID 1604 that no context group lists",
}
OTHER_MEANING = {
    ("1386000", "SCT"): "Intracranial hemorrhage (disorder)",
    ("303653007", "SCT"): "Computed tomography of head (procedure)",
    ("260753009", "SCT"): "Source (attribute)",
    ("276214006", "SCT"): "Findings category type (qualifier value)",
}
"""Meanings that the dictionaries give with SNOMED CT's semantic tag; TID 1501 has its own for 276214006."""


def listed_meanings(concept: CodedConcept) -> set[str]:
    scheme = concepts.get(concept.scheme_designator, {})
    return {codes[concept.value][0] for codes in scheme.values() if concept.value in codes}


@pytest.mark.parametrize("concept", all_concepts(), ids=lambda c: c.meaning)
def test_code_is_listed_with_its_meaning_or_accounted_for(concept: CodedConcept) -> None:
    key = (concept.value, concept.scheme_designator)
    meanings = listed_meanings(concept)
    if key in NOT_LISTED:
        assert not meanings, f"{key} is listed now as {meanings}: take it off NOT_LISTED"
    else:
        assert OTHER_MEANING.get(key, concept.meaning) in meanings


@pytest.mark.parametrize("concept", all_concepts(), ids=lambda c: c.meaning)
def test_code_fits_its_attributes(concept: CodedConcept) -> None:
    assert 1 <= len(concept.value) <= 16
    assert 1 <= len(concept.meaning) <= 64


def test_no_code_has_two_meanings() -> None:
    keys = [(c.value, c.scheme_designator) for c in all_concepts()]
    assert len(keys) == len(set(keys))


def test_exceptions_are_in_use() -> None:
    keys = {(c.value, c.scheme_designator) for c in all_concepts()}
    assert set(NOT_LISTED) | set(OTHER_MEANING) <= keys


def test_every_class_has_a_finding_and_a_site_of_its_own() -> None:
    pairs = {subtype: (FINDING_OF[subtype], SITE_OF[subtype]) for subtype in IchSubtype}
    assert len(set(pairs.values())) == len(IchSubtype)


def test_implementation_class_uid_is_valid() -> None:
    assert UID(IMPLEMENTATION_CLASS_UID).is_valid
