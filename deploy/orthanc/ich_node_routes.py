"""What the button in Orthanc Explorer and scripts call."""

import json
import time

from ich_node_client import NodeAway, in_words
from ich_node_forwarder import PRIORITY, WORDS
from ich_node_rest import study_instance_uid, text_of


class Routes:
    """What the button and scripts call."""

    def __init__(self, forwarder, queue, node):
        self._forwarder = forwarder
        self._queue = queue
        self._node = node

    def study(self, output, _uri, **request):
        """GET /ich-node/studies/{id}: the flag, asked of the node now."""
        if request["method"] != "GET":
            output.SendMethodNotAllowed("GET")
            return
        study = request["groups"][0]
        try:
            report = self._forwarder.update(study)
        except NodeAway as error:
            known = text_of(f"/studies/{study}/metadata/{PRIORITY}") or None
            words = f"{error}. Last known: {text_of(f'/studies/{study}/metadata/{WORDS}') or 'nothing'}"
            answer(output, 200, priority=known, state=None, words=words)
            return
        if report is None:
            answer(output, 404, words="Orthanc has no such study.")
        elif not report:
            words = (
                "waits to be sent to the node"
                if self._queue.waits_for(study)
                else "the node does not have it"
            )
            answer(output, 200, priority=None, state=None, words=words)
        else:
            answer(output, 200, priority=report["priority"], state=report["state"], words=in_words(report))

    def reprocess(self, output, _uri, **request):
        """POST /ich-node/studies/{id}/reprocess: read it again; send it first where the node has it not."""
        if request["method"] != "POST":
            output.SendMethodNotAllowed("POST")
            return
        if not request.get("headers", {}).get("x-requested-with"):
            answer(
                output,
                403,
                words="The header X-Requested-With is missing: forms of other sites are not served.",
            )
            return
        study = request["groups"][0]
        uid = study_instance_uid(study)
        if uid is None:
            answer(output, 404, words="Orthanc has no such study.")
            return
        try:
            status = self._node.reprocess(uid).status
        except NodeAway as error:
            answer(output, 503, words=f"{error}.")
            return
        self._queue.ask(study, time.time())
        self._forwarder.wake()
        answer(output, *self._outcome(study, status))

    def _outcome(self, study, status):
        if status in (404, 410):
            if not self._forwarder.forward_study(study):
                return 409, "The study has no CT images to be read."
            if status == 410:
                self._queue.request(study, time.time())
            return 202, "The images are sent to the node, and read there."
        if status == 409:
            return 409, "It is being read, or waits for that, already."
        if 200 <= status < 300:
            return 202, "It will be read again; the new result supersedes the old one."
        return 502, f"The node answers {status}; see IchNode.TokenFile."

    def status(self, output, _uri, **_request):
        """GET /ich-node/status: what waits."""
        count, oldest = self._queue.waiting()
        seconds = None if oldest is None else round(time.time() - oldest, 1)
        answer(output, 200, waiting_images=count, oldest_seconds=seconds)


def answer(output, status, words=None, **values):
    """Answer with JSON."""
    content = json.dumps({**values, "words": words})
    if status == 200:
        output.AnswerBuffer(content, "application/json")
        return
    output.SetHttpHeader("Content-Type", "application/json")
    try:
        output.SendHttpStatus(status, content, len(content))
    except TypeError:  # later versions of the Python plugin count for themselves
        output.SendHttpStatus(status, content)
