"""What ``ich-node doctor`` asks the database: whether the work gets done."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ich_node.cli.settings import looking_into
from ich_node.database import chores, drift, outbox, retention
from ich_node.database.examination import orphans
from ich_node.database.metrics import outbox_standing, unread_images
from ich_node.database.receipt import conflicts
from ich_node.database.worklist import overdue, state_counts
from ich_node.purge_job import CHORE, NO_DESTINATION
from ich_node.receive.commitment_folder import waiting
from ich_node.settings import Settings

_LONG_WAIT = timedelta(minutes=15)
_LONG_COMMITMENT = timedelta(days=1)
_NO_LIFE = timedelta(minutes=5)


def failed_deliveries(settings: Settings) -> tuple[bool, str]:
    """What did not reach its destination."""
    with looking_into(settings) as session:
        failed = outbox.deliveries(session, failed=True)
    return not failed, f"{len(failed)} failed" if failed else "none failed"


def waiting_work(settings: Settings) -> tuple[bool, str]:
    """What waits to be read, sent or confirmed, and for how long."""
    now = datetime.now(UTC)
    with looking_into(settings) as session:
        waiting = unread_images(session)
        standing = outbox_standing(session)
    found = [f"{waiting.objects} images of {waiting.studies} studies to be read"]
    if waiting.oldest_at is not None:
        found[0] += f", the oldest for {_minutes(now - waiting.oldest_at)}"
    found += [
        f"{one.pending} results for {one.destination}, the oldest for {_minutes(now - one.oldest_at)}"
        for one in standing
        if one.oldest_at is not None
    ]
    late = any(one.oldest_at is not None and now - one.oldest_at > _LONG_WAIT for one in standing)
    for one in standing:
        if one.oldest_unconfirmed_at is not None:
            since = now - one.oldest_unconfirmed_at
            late |= since > _LONG_WAIT
            found.append(
                f"{one.unconfirmed} that {one.destination} took and has not confirmed, the oldest for {_minutes(since)}"
            )
    return not late, "; ".join(found)


def retention_rounds(settings: Settings) -> tuple[bool, str]:
    """Whether images are purged as the settings say."""
    days, hours = settings.disk.retention_days, settings.disk.purge_every_hours
    with looking_into(settings) as session:
        last = chores.last_round(session, CHORE)
        left = retention.count_removals(session)
    found = "images are never purged (disk.retention_days = 0)"
    if days > 0:
        found = f"images are purged {days:g} days after delivery, looked for every {hours:g} h"
        if not settings.pacs:
            return False, f"{found}; but {NO_DESTINATION}"
    if last is None or last.ended_at is None:
        return True, f"{found}; not looked for yet"
    found += f"; last at {last.ended_at.astimezone():%Y-%m-%d %H:%M}: {last.note}"
    if left:
        found += f"; {left} files wait to be removed"
    late = datetime.now(UTC) - last.ended_at > timedelta(hours=2 * hours) + _LONG_WAIT
    return not (days > 0 and late), found


def _minutes(span: timedelta) -> str:
    return f"{max(0.0, span.total_seconds()) / 60:.0f} min"


def commitment_reports(settings: Settings) -> tuple[bool, str]:
    """Storage commitment reports that a peer still has to take."""
    counts = waiting(settings.commitment_dir)
    found = [f"{counts.waiting} reports wait for their peer" if counts.waiting else "no report waits"]
    if counts.dead:
        found.append(f"{counts.dead} were given up (*.dead in {settings.commitment_dir})")
    oldest = counts.oldest_accepted_at
    late = oldest is not None and datetime.now(UTC) - oldest > _LONG_COMMITMENT
    return not counts.dead and not late, ", ".join(found)


def unfinished_studies(settings: Settings) -> tuple[bool, str]:
    """Studies that failed, or come to no end."""
    with looking_into(settings) as session:
        counts = state_counts(session)
        late = overdue(session, before=datetime.now(UTC) - _LONG_WAIT)
    found = [f"{n} {state}" for state, n in sorted(counts.items())]
    if late:
        found.append(f"{late} without an end after {_LONG_WAIT.total_seconds() / 60:.0f} min")
    return not counts.get("FAILED") and not late, ", ".join(found) or "none yet"


def orphaned_work(settings: Settings) -> tuple[bool, str]:
    """What somebody took up and shows no life with."""
    with looking_into(settings) as session:
        found = orphans(session, before=datetime.now(UTC) - _NO_LIFE)
    if not found.studies and not found.deliveries:
        return True, "none"
    return False, (
        f"{found.studies} studies and {found.deliveries} deliveries whose worker has shown no life for "
        f"{_minutes(_NO_LIFE)} or more, and that no other has taken up"
    )


def conflicting_objects(settings: Settings) -> tuple[bool, str]:
    """Objects whose UID another one had."""
    with looking_into(settings) as session:
        count = conflicts(session, since=timedelta(days=7), now=datetime.now(UTC))
    return (
        count == 0,
        f"{count} with a UID that another object has, in 7 days" if count else "no UID used twice",
    )


def model_drift(settings: Settings) -> tuple[bool, str]:
    """Whether the last week's inputs and scores are like those before."""
    with looking_into(settings) as session:
        drifts = drift.model_drifts(session, now=datetime.now(UTC))
    found = "; ".join(map(_drift_of, drifts))
    return not any(one.drifted or one.often_unlike for one in drifts), found or "no readings in 7 days"


def _drift_of(one: drift.ModelDrift) -> str:
    """What one model was shown and said in the last 7 days."""
    found = [f"{one.recent.readings} readings in 7 days, {one.reference.readings} in the 28 days before"]
    if drift.SUSPICION not in one.stability:
        found.append(f"too few to compare (each needs {drift.MIN_READINGS})")
    elif not one.drifted:
        found.append("scores and inputs are as before")
    if one.drifted:
        moved = ", ".join(f"{name} (PSI {one.stability[name].psi:.2f})" for name in one.drifted)
        found.append(f"not as before: {moved}")
    share = one.recent.unlike_share
    if share is not None:
        often = max(one.recent.unlike, key=lambda name: one.recent.unlike[name], default="")
        found.append(f"{share:.0%} unlike the training data" + (f", most by {often}" if often else ""))
    return f"{one.model_name} ({one.weights_sha256[:12]}): " + ", ".join(found)
