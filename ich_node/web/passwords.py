"""Passwords: what is a good one, and their Argon2id hashes (RFC 9106)."""

from __future__ import annotations

import threading
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from ich_node.errors import IchNodeError

MIN_LENGTH, MAX_LENGTH = 12, 256
_TELLING_NAME = 4
"""Letters of a name; a shorter one stands in many words."""
_AT_ONCE = 2
"""Each takes 64 MiB while it is hashed."""

_hasher = PasswordHasher()
_turns = threading.BoundedSemaphore(_AT_ONCE)
_of_nobody = _hasher.hash("nobody has this password")


class WeakPassword(IchNodeError):
    """A password that is not taken, and why."""


def check_strength(password: str, user_name: str) -> None:
    """Refuse what is guessed first (NIST SP 800-63B: length counts, rules of composition do not).

    Raises
    ------
    WeakPassword
        With what to do.
    """
    if any("\ud800" <= character <= "\udfff" for character in password):
        raise WeakPassword("this password is not UTF-8, so that no browser could send it: write it in UTF-8")
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise WeakPassword(
            f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters: several words make a good one"
        )
    names_user = len(user_name) >= _TELLING_NAME and user_name in password.lower()
    if names_user or len(set(password)) < 5:
        raise WeakPassword(
            "this password is guessed at once: several words that do not name the user make a good one"
        )


def hash_password(password: str) -> str:
    """The Argon2id hash, with its parameters and salt (PHC string)."""
    with _turns:
        return _hasher.hash(_normal(password))


def is_password(password: str, password_hash: str | None) -> bool:
    """Whether a password is the one; it takes as long where there is no hash to compare with."""
    with _turns:
        try:
            _hasher.verify(password_hash or _of_nobody, _normal(password))
        except (VerificationError, InvalidHashError):
            return False
    return password_hash is not None


def is_outdated(password_hash: str) -> bool:
    """Whether today's parameters are stronger than those of a hash."""
    return _hasher.check_needs_rehash(password_hash)


def _normal(password: str) -> bytes:
    """The same however a keyboard writes it (RFC 8265 section 4.2)."""
    return unicodedata.normalize("NFC", password[: MAX_LENGTH + 1]).encode("utf-8", "replace")
