"""From settings to what calls a destination: every choice of the settings is one that the callee knows."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from ich_node.deliver.scu import Destination
from ich_node.deliver.web_client import WebDestination
from ich_node.destination_settings import HL7Settings, MailSettings, PacsSettings, WebhookSettings
from ich_node.destinations import notice_sender, pacs_destination
from ich_node.errors import ConfigurationError
from ich_node.notify.hl7 import CharacterSet, Hl7Version
from ich_node.notify.notice import Disclosure
from ich_node.report.compression import Compression
from ich_node.report.result_objects import ResultKind
from ich_node.report.sr_class import SrClass
from ich_node.result_files import ResultFiles
from ich_node.settings import Settings

WEB = {"name": "web", "url": "https://pacs.local/dicom-web"}


def choices(section: type, key: str) -> list[str]:
    annotation = section.model_fields[key].annotation  # type: ignore[attr-defined]
    inner = get_args(annotation)
    return list(get_args(inner[0]) if inner[1:] == (Ellipsis,) else inner)


@pytest.mark.parametrize(
    ("section", "key", "known"),
    [
        (PacsSettings, "objects", ResultKind),
        (PacsSettings, "sr_class", SrClass),
        (PacsSettings, "sc_compression", Compression),
        (HL7Settings, "version", Hl7Version),
        (HL7Settings, "character_set", CharacterSet),
        (HL7Settings, "disclose", Disclosure),
    ],
)
def test_settings_offer_what_there_is(section: type, key: str, known: type) -> None:
    assert sorted(choices(section, key)) == sorted(str(each) for each in known)  # type: ignore[attr-defined]


def test_a_dicom_node_is_called_plainly_or_over_tls(tmp_path: Path) -> None:
    plain = PacsSettings(name="a", ae_title="PACS", host="pacs.local", port=104)
    assert pacs_destination(plain) == Destination(name="a", ae_title="PACS", host="pacs.local", port=104)
    secured = plain.model_copy(update={"ca": str(tmp_path / "ca.pem"), "peer_certificate": "pacs"})
    destination = pacs_destination(secured)
    assert isinstance(destination, Destination)
    assert destination.tls is not None
    assert (destination.tls.ca, destination.tls.expected) == (tmp_path / "ca.pem", "pacs")


def test_secrets_come_from_files_and_stay_out_of_sight(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret-t0ken\n")
    destination = pacs_destination(PacsSettings(**WEB, token_file=str(file)))
    assert isinstance(destination, WebDestination)
    assert destination.token == "s3cret-t0ken"
    assert "s3cret" not in repr(destination)
    for content in ("", " \n"):
        file.write_text(content)
        with pytest.raises(ConfigurationError, match="it has to hold a secret"):
            pacs_destination(PacsSettings(**WEB, token_file=str(file)))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        pacs_destination(PacsSettings(**WEB, token_file=str(tmp_path / "absent")))


def test_a_webhook_elsewhere_is_called_over_https_only(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef")
    here = WebhookSettings(name="w", url="http://127.0.0.1:9/in", secret_file=str(secret))
    notice_sender(here)
    with pytest.raises(ConfigurationError, match="https"):
        notice_sender(here.model_copy(update={"url": "http://pager.local/in"}))


def test_a_mail_server_and_a_ris_can_be_called() -> None:
    notice_sender(HL7Settings(name="r", host="ris.local", port=2575, version="2.3.1"))
    notice_sender(
        MailSettings(name="m", host="mail.local", sender="a@b.example", recipients=("c@d.example",))
    )


def test_the_settings_say_what_each_pacs_gets() -> None:
    pacs = (
        PacsSettings(name="old", ae_title="A", host="h", port=1, objects=("SR",), sr_class="basic-text"),
        PacsSettings(**WEB, not_read_report=True, sc_compression="jpeg-lossless"),
    )
    files = ResultFiles.of(Settings(pacs=pacs))
    assert files.wishes["old"].kinds == {ResultKind.SR}
    assert files.wishes["old"].sr_class is SrClass.BASIC_TEXT
    assert files.wishes["web"].sc_compression is Compression.JPEG_LOSSLESS
    assert files.of_unread == {"web": SrClass.COMPREHENSIVE_3D}
