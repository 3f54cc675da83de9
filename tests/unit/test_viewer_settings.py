"""The link into the site's viewer: only to where the settings say, with values that stay values."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ich_node.viewer_settings import ViewerSettings, viewer_url

TEMPLATE = "https://viewer.example/open?study={study_instance_uid}&patient={patient_id}"


def values(**changes: str) -> dict[str, str]:
    return {
        "study_instance_uid": "1.2.3",
        "series_instance_uid": "1.2.3.4",
        "accession_number": "A1",
        "patient_id": "P1",
        **changes,
    }


@pytest.mark.parametrize(
    "template",
    [
        "",
        TEMPLATE,
        "http://localhost:8042/{accession_number}",
        "https://[2001:db8::1]:8443/{patient_id}?s={series_instance_uid}",
        "weasis://%24dicom%3Ars%20--url%20%22https%3A%2F%2Fpacs%2Fwado%22%20-r%20studyUID={study_instance_uid}",
        "radiant://?n=pstv&v=0020000D&v={study_instance_uid}",
    ],
)
def test_addresses_that_are_taken(template: str) -> None:
    assert ViewerSettings(url_template=template).url_template == template


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("javascript:alert('{patient_id}')", "spaces, quotes"),
        ("javascript:open({patient_id})", "begin with one of"),
        ("data:text/html,{patient_id}", "begin with one of"),
        ("file:///{patient_id}", "begin with one of"),
        ("//evil.example/{patient_id}", "begin with one of"),
        ("{patient_id}://viewer.example/", "begin with one of"),
        ("https://{patient_id}.example/", "no placeholder in it"),
        ("https:///{patient_id}", "needs a host"),
        ("https://user:word@viewer.example/{patient_id}", "password"),
        ("https://viewer.example/", "without a placeholder"),
        ("https://viewer.example/{patient_name}", "is no placeholder"),
        ("https://viewer.example/{patient_id.__class__}", "is no placeholder"),
        ("https://viewer.example/{patient_id!r}", "is no placeholder"),
        ("https://viewer.example/{patient_id:>9}", "is no placeholder"),
        ("https://viewer.example/{0}", "is no placeholder"),
        ("https://viewer.example/{patient_id", "braces"),
        ("https://viewer.example/ {patient_id}", "spaces"),
        ("https://viewer.example:99999/{patient_id}", "no URL"),
    ],
)
def test_addresses_that_are_refused(template: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ViewerSettings(url_template=template)


def test_without_a_template_or_a_value_there_is_no_link() -> None:
    assert viewer_url("", values()) is None
    assert viewer_url(TEMPLATE, values(patient_id="")) is None
    assert viewer_url("https://viewer.example/{patient_id}/", values(patient_id="..")) is None


@given(st.text(min_size=1).filter(lambda text: set(text) - {"."}))
def test_a_value_stays_a_value(patient_id: str) -> None:
    patient_id = patient_id.encode("utf-8", "replace").decode()
    address = viewer_url(TEMPLATE, values(patient_id=patient_id))
    assert address is not None
    parts = urlsplit(address)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", "viewer.example", "/open")
    assert parse_qs(parts.query, keep_blank_values=True)["patient"] == [patient_id]
