from __future__ import annotations

import threading
from datetime import timedelta

from ich_node.errors import TransientError
from ich_node.lease import showing_life, work_owner

SHORT = timedelta(milliseconds=30)


def test_lease_is_renewed_until_the_work_ends() -> None:
    renewed = threading.Semaphore(0)

    def renew() -> bool:
        renewed.release()
        return True

    with showing_life(renew, SHORT):
        assert all(renewed.acquire(timeout=10) for _ in range(3))
    assert "lease" not in {thread.name for thread in threading.enumerate()}


def test_renewing_outlives_a_database_that_is_away_and_ends_with_the_lease() -> None:
    answers = iter([TransientError("away"), False])
    over = threading.Event()

    def renew() -> bool:
        answer = next(answers)
        if isinstance(answer, TransientError):
            raise answer
        over.set()
        return answer

    with showing_life(renew, SHORT):
        assert over.wait(10)


def test_each_job_has_an_owner_of_its_own() -> None:
    assert work_owner() != work_owner()
