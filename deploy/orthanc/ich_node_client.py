"""The node's interface for scripts: how a study stands, and have it read again."""

import json
import ssl
import urllib.error
import urllib.request
from collections import namedtuple
from pathlib import Path

_SECONDS = 5.0
_MOST_BYTES = 16 * 2**20

Answer = namedtuple("Answer", "status content")
"""HTTP status, and the object that came as JSON (empty where it is none)."""


class NodeAway(Exception):
    """The node did not answer; the text is for people and names nobody."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token goes where orthanc.json says and nowhere else."""

    def redirect_request(self, *_args, **_kwargs):
        return None


class Node:
    """The node by HTTP. The token and the authorities are read at each call: renewing them needs no restart."""

    def __init__(self, url, token_file="", ca=""):
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._ca = ca

    def study(self, study_instance_uid):
        """How a study stands, as ``ich-node study show UID --json``."""
        return self._call("GET", f"/api/studies/{study_instance_uid}")

    def reprocess(self, study_instance_uid):
        """Have a study read again: 202, 404 not here, 409 is being read, 410 its images are purged."""
        return self._call("POST", f"/api/studies/{study_instance_uid}/reprocess", b"{}")

    def _call(self, method, path, body=None):
        request = urllib.request.Request(self._url + path, data=body, method=method)
        request.add_header("Accept", "application/json")
        if body is not None:
            request.add_header("Content-Type", "application/json")
        try:
            if self._token_file:
                token = Path(self._token_file).read_text(encoding="ascii").strip()
                request.add_header("Authorization", f"Bearer {token}")
            context = ssl.create_default_context(cafile=self._ca or None)
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect()
            )
            with opener.open(request, timeout=_SECONDS) as answer:
                return Answer(answer.status, _object(answer.read(_MOST_BYTES)))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, _object(error.read(_MOST_BYTES)))
        except UnicodeError:
            raise NodeAway(f"{self._token_file} does not hold a token") from None
        except OSError as error:
            raise NodeAway(f"the node did not answer: {getattr(error, 'reason', error)}") from None


def _object(content):
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def in_words(report):
    """One line for people about a study, of what the node says of it."""
    state, reason = str(report.get("state", "")), report.get("reason_detail") or report.get("reason")
    if state != "READ":
        return f"{state}: {reason}" if reason else state
    counting = [reading for reading in report.get("readings", ()) if not reading.get("superseded")]
    suspicion = max((reading.get("suspicion") or 0.0 for reading in counting), default=0.0)
    models = ", ".join(sorted({str(reading.get("model_name")) for reading in counting}))
    return f"READ, suspicion {suspicion:.0%} ({models}); AI result, unverified, not for primary diagnosis"
