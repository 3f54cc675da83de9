"""A viewer of another make: OHIF's published build in front of a real Orthanc.

    python -m tests.ohif_viewer DICOM_FOLDER

serves the objects of a folder until Ctrl-C, for a person who wants to look. Tests use `ohif_files`, `orthanc` and
`ohif`. The build comes from the npm registry once and stays in a cache folder outside the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

VERSION = "3.13.2"
"""Of npm's `@ohif/app`, MIT licence."""
TARBALL_SHA256 = "b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1"
NPM = "npm"
ORTHANC = "Orthanc"
DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_UNUSED = ("package/dist/ort/", "package/dist/dicom-microscopy-viewer/")
"""Three quarters of the build, for segmentation by a network and for microscopy."""
_DEADLINE_S = 60.0
_APP_CONFIG = """window.config = {
  routerBasename: '/',
  extensions: [],
  modes: [],
  showStudyList: true,
  maxNumberOfWebWorkers: 1,
  showLoadingIndicator: true,
  showWarningMessageForCrossOrigin: false,
  investigationalUseDialog: { option: 'never' },
  defaultDataSourceName: 'orthanc',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
    sourceName: 'orthanc',
    configuration: {
      friendlyName: 'Orthanc',
      name: 'orthanc',
      qidoRoot: '/dicom-web',
      wadoRoot: '/dicom-web',
      wadoUriRoot: '/dicom-web',
      qidoSupportsIncludeField: false,
      imageRendering: 'wadors',
      thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true,
      supportsFuzzyMatching: false,
      supportsWildcard: true,
    },
  }],
};
"""


class ViewerUnavailableError(Exception):
    """A part of the viewer is not on this machine and cannot be had; the text says which."""


def cache_folder() -> Path:
    """Where the build is kept, outside the repository."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ich-node-tests" / f"ohif-app-{VERSION}"


def ohif_files() -> Path:
    """Folder of OHIF's build, from the npm registry where the cache has none.

    Raises
    ------
    ViewerUnavailableError
        No npm, no way to the registry, or a package that is not the pinned one.
    """
    folder = cache_folder()
    if not (folder / "index.html").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            unpacked = _unpack(_package(Path(scratch)), Path(scratch))
            # another test run may have been faster
            if not folder.exists():
                unpacked.rename(folder)
    return folder


def _package(folder: Path) -> Path:
    program = shutil.which(NPM)
    if program is None:
        raise ViewerUnavailableError(f"no npm to fetch @ohif/app {VERSION} with (Debian: npm)")
    command = [program, "pack", "--silent", f"@ohif/app@{VERSION}"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    packages = list(folder.glob("*.tgz"))
    if run.returncode or not packages:
        raise ViewerUnavailableError(f"npm could not fetch @ohif/app {VERSION}: {run.stderr.strip()[-300:]}")
    found = hashlib.sha256(packages[0].read_bytes()).hexdigest()
    if found != TARBALL_SHA256:
        raise ViewerUnavailableError(f"@ohif/app {VERSION} has SHA-256 {found}, expected {TARBALL_SHA256}")
    return packages[0]


def _unpack(package: Path, folder: Path) -> Path:
    with tarfile.open(package) as archive:
        wanted = [
            member
            for member in archive.getmembers()
            if member.name.startswith("package/dist/") and not member.name.startswith(_UNUSED)
        ]
        archive.extractall(folder, wanted, filter="data")
    return folder / "package" / "dist"


@contextmanager
def orthanc(folder: Path) -> Iterator[str]:
    """Run Orthanc with DICOMweb on free ports of loopback, its storage in ``folder``; gives its address.

    Raises
    ------
    ViewerUnavailableError
        No Orthanc, or no DICOMweb plugin for it.
    """
    program = shutil.which(ORTHANC)
    if program is None or not DICOMWEB_PLUGIN.exists():
        raise ViewerUnavailableError("no Orthanc with DICOMweb (Debian: orthanc, orthanc-dicomweb)")
    port = _free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "DicomServerEnabled": False,
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(DICOMWEB_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(configuration)], stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, process)
            yield address
        finally:
            process.terminate()
            process.wait(_DEADLINE_S)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{address}/system", timeout=2).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"Orthanc does not answer; exit status {process.poll()}")


def store(orthanc_address: str, paths: Iterable[Path]) -> None:
    """Put Part 10 files into Orthanc."""
    with httpx.Client(base_url=orthanc_address, timeout=_DEADLINE_S) as client:
        for path in paths:
            client.post("/instances", content=path.read_bytes()).raise_for_status()


@contextmanager
def ohif(files: Path, orthanc_address: str) -> Iterator[str]:
    """Serve OHIF on a free port of loopback, with Orthanc's DICOMweb under ``/dicom-web``; gives the address."""
    listener = socket.create_server(("127.0.0.1", 0))  # listens from here on: no wait is needed
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with httpx.Client(base_url=orthanc_address, timeout=_DEADLINE_S) as pacs:
        server = uvicorn.Server(uvicorn.Config(_application(files, pacs), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join(_DEADLINE_S)


def _application(files: Path, pacs: httpx.Client) -> Starlette:
    def dicomweb(request: Request) -> Response:
        # Orthanc writes the host that it is asked by into the addresses of bulk data.
        wanted = {name: request.headers[name] for name in ("host", "accept") if name in request.headers}
        answer = pacs.get(request.url.path, params=str(request.query_params), headers=wanted)
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    def file(request: Request) -> Response:
        if request.url.path == "/app-config.js":
            return Response(_APP_CONFIG, media_type="text/javascript")
        path = (files / request.path_params["path"]).resolve()
        # OHIF's own addresses are those of its one page
        known = path.is_file() and path.is_relative_to(files.resolve())
        return FileResponse(path if known else files / "index.html")

    return Starlette(routes=[Route("/dicom-web/{path:path}", dicomweb), Route("/{path:path}", file)])


def main() -> None:
    """Serve the objects of a folder until Ctrl-C."""
    paths = sorted(path for path in Path(sys.argv[1]).rglob("*.dcm"))
    with tempfile.TemporaryDirectory() as folder, orthanc(Path(folder)) as pacs:
        store(pacs, paths)
        with ohif(ohif_files(), pacs) as address:
            print(f"{len(paths)} objects at {address}/, until Ctrl-C")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print()


if __name__ == "__main__":
    main()
