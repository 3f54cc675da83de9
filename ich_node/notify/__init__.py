"""Telling people and other systems how a study stands: HL7 v2 over MLLP, webhook and e-mail.

`notice` says what is told, `hl7`, `webhook` and `mail` write it down, and each sender answers with a
`NoticeOutcome`. Nothing here knows the outbox: what is sent to whom, and when it is tried again, is decided there.
"""
