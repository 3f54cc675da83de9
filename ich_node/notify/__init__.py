"""Telling people and other systems how a study stands: HL7 v2 over MLLP, webhook and e-mail.

`notice` says what is told, `hl7`, `webhook` and `mail` write it down, and each sender answers with a
`NoticeOutcome`. Nothing here knows the outbox: what is sent to whom, and when it is tried again, is decided there.
"""

from ich_node.notify.hl7 import CharacterSet, Hl7Header, Hl7Version, message_control_id, oru_r01
from ich_node.notify.mail import MailRelay, mail_message, send_mail
from ich_node.notify.mllp import MllpDestination, MllpTimeouts, send_oru
from ich_node.notify.notice import Disclosure, Notice, PatientIdentity, notice_from_json
from ich_node.notify.outcome import NoticeOutcome, NoticeResult
from ich_node.notify.webhook import WebhookEndpoint, post_notice, signature

__all__ = [
    "CharacterSet",
    "Disclosure",
    "Hl7Header",
    "Hl7Version",
    "MailRelay",
    "MllpDestination",
    "MllpTimeouts",
    "Notice",
    "NoticeOutcome",
    "NoticeResult",
    "PatientIdentity",
    "WebhookEndpoint",
    "mail_message",
    "message_control_id",
    "notice_from_json",
    "oru_r01",
    "post_notice",
    "send_mail",
    "send_oru",
    "signature",
]
