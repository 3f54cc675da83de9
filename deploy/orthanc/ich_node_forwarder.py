"""What goes from Orthanc to the node, and the flag that comes back."""

import json
import socket
import threading
import time
import traceback

import orthanc
from ich_node_client import NodeAway, in_words
from ich_node_rest import get, study_instance_uid, text_of
from ich_node_rules import Image, is_head_ct, is_result

PRIORITY, WORDS = 4701, 4702
"""User metadata of a study; UserMetadata in orthanc.json gives them the names IchPriority and IchReading."""
PRIORITIES = ("STAT", "HIGH", "MEDIUM", "ROUTINE")
_ENDED = ("READ", "NOT_READ", "FAILED")
_TICK_SECONDS = 0.3
_PAUSE_SECONDS = 5.0
_JOBS_AT_ONCE = 3
_CHANGES_AT_ONCE = 1000
_ASK_FOR_SECONDS = 24 * 3600
_REQUEST_FOR_SECONDS = 3600


class Forwarder:
    """Brings what is new to the node; one thread, so that nothing is decided twice."""

    def __init__(self, configuration, queue, node):
        self._configuration = configuration
        self._queue = queue
        self._node = node
        self._has_labels = bool((get("/system") or {}).get("HasLabels"))
        self._jobs = {}
        self._down_until = 0.0
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="ich_node", daemon=True)

    def start(self):
        """Begin with what is new from now on, or since it last ran."""
        if self._queue.last_change() is None:
            self._queue.take([], (get("/changes?last") or {}).get("Last", 0), time.time())
        self._thread.start()

    def stop(self):
        """End; what is not sent yet is sent after the next start."""
        self._stop.set()
        self._wake.set()
        self._thread.join(_PAUSE_SECONDS)

    def wake(self):
        """Something has come."""
        self._wake.set()

    def _run(self):
        while not self._stop.is_set():
            try:
                self._take_changes()
                self._look_after_jobs()
                self._send()
                self._ask()
                self._request()
            except Exception:  # this thread's boundary: were it to end, nothing would be sent any more
                orthanc.LogError(
                    f"ich_node: trying again in {_PAUSE_SECONDS:.0f} s\n{traceback.format_exc()}"
                )
                self._stop.wait(_PAUSE_SECONDS)
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()

    def _take_changes(self):
        """Read Orthanc's own record of changes, which survives everything; no event can be missed."""
        done = False
        while not done and not self._stop.is_set():
            page = get(f"/changes?since={self._queue.last_change() or 0}&limit={_CHANGES_AT_ONCE}") or {}
            images = []
            for change in page.get("Changes", ()):
                if change["ChangeType"] == "NewInstance":
                    images += self._look_at(change["ID"])
            self._queue.take(images, page.get("Last"), time.time())
            done = page.get("Done", True)

    def _look_at(self, instance):
        """What is to be sent because of a new instance: itself or nothing."""
        series = get(f"/instances/{instance}/series")
        if series is None:  # deleted meanwhile
            return []
        image, study = self._image(instance, series), series["ParentStudy"]
        if is_result(image, self._ae_title()):
            self._queue.ask(study, time.time())  # a result came back: the flag may be another
            return []
        if self._configuration.Forward and is_head_ct(image, self._configuration):
            return [(instance, series["ID"], study)]
        return []

    @staticmethod
    def _image(instance, series):
        metadata = get(f"/instances/{instance}/metadata?expand") or {}
        tags = series["MainDicomTags"]
        is_ct = tags.get("Modality") == "CT"
        study = (get(f"/studies/{series['ParentStudy']}") or {}).get("MainDicomTags", {})
        return Image(
            sop_class_uid=metadata.get("SopClassUid", ""),
            remote_ae_title=metadata.get("RemoteAET", ""),
            modality=tags.get("Modality", ""),
            image_type=text_of(f"/instances/{instance}/content/0008-0008").strip() if is_ct else "",
            body_part=tags.get("BodyPartExamined", ""),
            descriptions=(
                study.get("StudyDescription", ""),
                tags.get("SeriesDescription", ""),
                tags.get("ProtocolName", ""),
            ),
        )

    def forward_study(self, study):
        """Send all CT images of a study, whatever the rules say of the head; how many."""
        images = []
        for series in get(f"/studies/{study}/series") or ():
            if series["MainDicomTags"].get("Modality") == "CT":
                images += [(instance, series["ID"], study) for instance in series["Instances"]]
        self._queue.take(images, None, time.time())
        self.wake()
        return len(images)

    def _ae_title(self):
        return (self._modality() or {}).get("AET", "")

    def _modality(self):
        return get(f"/modalities/{self._configuration.Modality}/configuration")

    def _send(self):
        now = time.time()
        if now < self._down_until:
            return
        for batch in self._queue.due(now, {batch.series for batch in self._jobs.values()}):
            if len(self._jobs) >= _JOBS_AT_ONCE:
                break
            self._send_batch(batch)

    def _send_batch(self, batch):
        there = [instance for instance in batch.instances if get(f"/instances/{instance}") is not None]
        for instance in set(batch.instances) - set(there):
            self._queue.gone(instance)
        if not there:
            return
        body = json.dumps({"Resources": there, "Asynchronous": True, "Permissive": False, "Priority": 10})
        try:
            answer = orthanc.RestApiPost(f"/modalities/{self._configuration.Modality}/store", body)
        except orthanc.OrthancException as error:
            orthanc.LogError(f"ich_node: nothing can be sent: {error.args[-1]}; see DicomModalities")
            self._down_until = time.time() + _PAUSE_SECONDS
            return
        self._jobs[json.loads(answer)["ID"]] = batch._replace(instances=tuple(there))

    def _look_after_jobs(self):
        for job, batch in list(self._jobs.items()):
            state = (get(f"/jobs/{job}") or {}).get("State", "Failure")
            if state == "Success":
                self._queue.sent(batch)
                self._queue.ask(batch.study, time.time())
            elif state == "Failure":
                self._failed(batch)
            else:
                continue
            del self._jobs[job]

    def _failed(self, batch):
        if not self._listens():
            if self._down_until < time.time():
                orthanc.LogWarning("ich_node: the node does not answer; images wait until it does")
            self._down_until = time.time() + _PAUSE_SECONDS
            return
        given_up = self._queue.refused(batch, time.time())
        if given_up:
            orthanc.LogError(f"ich_node: {given_up} images of series {batch.series} were refused to the end")

    def _listens(self):
        modality = self._modality() or {}
        try:
            socket.create_connection((modality["Host"], modality["Port"]), 3.0).close()
        except (OSError, KeyError):
            return False
        return True

    def _ask(self):
        for study, since in self._queue.questions(time.time()):
            age = time.time() - since
            report = None
            try:
                report = self.update(study)
            except NodeAway as error:
                orthanc.LogInfo(f"ich_node: {error}")
            ended = report is not None and (report.get("state") in _ENDED or report == {})
            if (ended and age > _PAUSE_SECONDS) or age > _ASK_FOR_SECONDS:
                self._queue.done("question", study)
            else:
                # The node records each question; a result that comes back has it asked at once anyhow.
                pause = 5.0 if age < 120 else 15.0 if age < 900 else 60.0
                self._queue.later("question", study, time.time() + pause)

    def _request(self):
        """Have studies read again whose images the node had given up and gets again."""
        for study, since in self._queue.requests(time.time()):
            if time.time() - since > _REQUEST_FOR_SECONDS:
                self._queue.done("request", study)
            elif self._queue.waits_for(study) or self._reprocess_status(study) in (404, 410, None):
                self._queue.later("request", study, time.time() + 2.0)
            else:
                self._queue.done("request", study)
                self._queue.ask(study, time.time())

    def _reprocess_status(self, study):
        try:
            return self._node.reprocess(study_instance_uid(study)).status
        except NodeAway:
            return None

    def update(self, study):
        """Ask the node how a study stands and show it on the study; `None` where Orthanc has it not, {} the node."""
        uid = study_instance_uid(study)
        if uid is None:
            return None
        answer = self._node.study(uid)
        if answer.status == 404:
            return {}
        if answer.status != 200:
            raise NodeAway(f"the node answers {answer.status}; see IchNode.TokenFile")
        self._show(study, str(answer.content.get("priority", "")), in_words(answer.content))
        return answer.content

    def _show(self, study, priority, words):
        if priority not in PRIORITIES:
            return
        for number, value in ((WORDS, words), (PRIORITY, priority)):  # no flag without its words
            path = f"/studies/{study}/metadata/{number}"
            if text_of(path) != value:
                orthanc.RestApiPut(path, value.encode("utf-8"))
        if self._has_labels:
            prefix = self._configuration.LabelPrefix
            there = set(get(f"/studies/{study}/labels") or ())
            for label in {f"{prefix}{each}" for each in PRIORITIES if each != priority} & there:
                orthanc.RestApiDelete(f"/studies/{study}/labels/{label}")
            if f"{prefix}{priority}" not in there:
                orthanc.RestApiPut(f"/studies/{study}/labels/{prefix}{priority}", b"")
