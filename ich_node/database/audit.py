"""The audit trail: only ever added to."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from ich_node.database.tables import AuditRow, StudyRow


def record_change(
    session: Session, study: StudyRow, *, at: datetime, actor: str, action: str, why: str | None = None
) -> None:
    """Write down the state and priority that a study has from now on, who set them and why."""
    session.add(
        AuditRow(
            at=at,
            study_instance_uid=study.study_instance_uid,
            actor=actor,
            action=action,
            state=study.state,
            priority=study.priority,
            why=why,
        )
    )
