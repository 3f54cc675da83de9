"""Orthanc's side of ich_node: forwards head CT, shows the flag on the study, and a button to have it read again.

The PythonScript of orthanc.json; see README.md beside it. Nothing here stops Orthanc: what cannot be done now is
remembered in a file and tried again. No log line names a patient; Orthanc's identifiers are hashes.
"""

import json
from pathlib import Path

import orthanc
from ich_node_client import Node
from ich_node_forwarder import Forwarder
from ich_node_queue import Queue
from ich_node_routes import Routes, answer
from ich_node_rules import Configuration, WrongConfiguration


def main():
    """Set everything up; with a wrong configuration Orthanc runs on without it, and says so."""
    settings = json.loads(orthanc.GetConfiguration())
    try:
        configuration = Configuration.of(settings.get("IchNode", {}))
    except WrongConfiguration as error:
        orthanc.LogError(f"ich_node: {error}; nothing is forwarded")
        return
    storage = Path(settings.get("StorageDirectory", "OrthancStorage"))
    queue = Queue(configuration.Queue or str(storage / "ich-node-plugin.sqlite"))
    node = Node(configuration.Url, configuration.TokenFile, configuration.Ca)
    begun = []

    def changed(change, _level, _resource):
        if change == orthanc.ChangeType.ORTHANC_STARTED:
            forwarder = Forwarder(configuration, queue, node)
            routes = Routes(forwarder, queue, node)
            begun.append((forwarder, routes))
            forwarder.start()
        elif change == orthanc.ChangeType.ORTHANC_STOPPED and begun:
            begun[0][0].stop()
            queue.close()
        elif change == orthanc.ChangeType.NEW_INSTANCE and begun:
            begun[0][0].wake()

    def route(name):
        def serve(output, uri, **request):
            if begun:
                getattr(begun[0][1], name)(output, uri, **request)
            else:
                answer(output, 503, words="Orthanc has just started.")

        return serve

    orthanc.RegisterOnChangeCallback(changed)
    orthanc.RegisterRestCallback("/ich-node/status", route("status"))
    orthanc.RegisterRestCallback("/ich-node/studies/([0-9a-f-]{44})", route("study"))
    orthanc.RegisterRestCallback("/ich-node/studies/([0-9a-f-]{44})/reprocess", route("reprocess"))
    orthanc.ExtendOrthancExplorer((Path(__file__).parent / "explorer.js").read_text(encoding="utf-8"))
    orthanc.LogWarning(f"ich_node: forwards to {configuration.Modality}, asks {configuration.Url}")


main()
