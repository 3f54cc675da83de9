"""Settings: every key, where it comes from, and what is said about a wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ich_node.database.engine import Database
from ich_node.errors import ConfigurationError
from ich_node.settings import Settings, is_loopback
from ich_node.settings_sources import LoadedSettings, load_settings

CT1 = {"name": "CT 1", "ae_title": "CT1", "host": "10.0.0.7", "port": 104, "tls": False, "certificate": ""}
TLS = {"certificate": "/etc/node.pem", "key": "/etc/node.key", "ca": "/etc/ca.pem"}
PACS = {
    "name": "main",
    "ae_title": "PACS",
    "host": "pacs.local",
    "port": 104,
    "url": "",
    "ca": "/etc/pacs-ca.pem",
    "certificate": "/etc/node.pem",
    "key": "/etc/node.key",
    "peer_certificate": "pacs.local",
    "token_file": "",
    "user": "",
    "password_file": "",
    "objects": ["SR", "SEG"],
    "sr_class": "enhanced",
    "sc_compression": "jpeg-2000-lossless",
    "not_read_report": True,
    "confirm": "commitment",
}
WEB = {"name": "web", "url": "https://pacs.local/dicom-web"}
HL7 = {
    "name": "RIS",
    "priorities": ["STAT"],
    "disclose": "patient",
    "host": "ris.local",
    "port": 2575,
    "version": "2.4",
    "sending_application": "ICH",
    "sending_facility": "RAD",
    "receiving_application": "RIS",
    "receiving_facility": "HOSPITAL",
    "character_set": "8859/1",
    "patient_id_authority": "HOSPITAL",
    "ca": "/etc/ca.pem",
}
WEBHOOK = {
    "name": "pager",
    "priorities": ["STAT", "MEDIUM"],
    "disclose": "study",
    "url": "https://pager.local:8443/in",
    "secret_file": "/etc/secret",
    "ca": "",
}
MAIL = {
    "name": "on call",
    "priorities": ["STAT"],
    "disclose": "study",
    "host": "mail.local",
    "port": 465,
    "security": "tls",
    "user": "ich",
    "password_file": "/etc/password",
    "sender": "ich@hospital.example",
    "recipients": ["neuro@hospital.example"],
    "ca": "",
}

DEFAULTS: dict[str, Any] = {
    "receiver.host": "127.0.0.1",
    "receiver.port": 11112,
    "receiver.ae_title": "ICH_NODE",
    "receiver.allow_any_peer": False,
    "receiver.processes": 0,
    "receiver.max_associations": 100,
    "receiver.max_associations_per_peer": 25,
    "receiver.max_object_mib": 2048,
    "receiver.max_association_gib": 64.0,
    "receiver.max_study_gib": 64.0,
    "receiver.max_peer_gib_per_day": 1024.0,
    "receiver.idle_seconds": 60.0,
    "receiver.min_bytes_per_second": 4096,
    "receiver.settle_seconds": 1.0,
    "receiver.quiet_seconds": 10.0,
    "receiver.stalled_seconds": 60.0,
    "receiver.tls.certificate": "",
    "receiver.tls.key": "",
    "receiver.tls.ca": "",
    "receiver.tls.port": 2762,
    "receiver.tls.only": False,
    "disk.min_free_gib": 5.0,
    "disk.retention_days": 0.0,
    "disk.purge_every_hours": 6.0,
    "web.host": "127.0.0.1",
    "web.port": 8080,
    "web.trusted_hosts": (),
    "web.login.local_users": False,
    "web.login.idle_minutes": 30,
    "web.login.absolute_hours": 12.0,
    "web.oidc.issuer": "",
    "web.oidc.client_id": "",
    "web.oidc.client_secret_file": "",
    "web.oidc.scopes": ("openid", "profile"),
    "web.oidc.user_claim": "preferred_username",
    "web.oidc.role_claim": "groups",
    "web.oidc.roles.viewer": (),
    "web.oidc.roles.radiologist": (),
    "web.oidc.roles.admin": (),
    "web.oidc.base_url": "",
    "web.oidc.label": "Log in with the hospital's account",
    "web.oidc.ca": "",
    "web.tls.certificate": "",
    "web.tls.key": "",
    "web.proxy.addresses": (),
    "web.audit.host": "",
    "web.audit.port": 6514,
    "web.audit.ca": "",
    "web.audit.certificate": "",
    "web.audit.key": "",
    "web.audit.audit_source_id": "ICH_NODE",
    "web.audit.enterprise_site_id": "",
    "viewer.url_template": "",
    "worklist.external.name": "external worklist",
    "worklist.external.url": "",
    "worklist.external.url_file": "",
    "worklist.external.table": "",
    "worklist.external.table_schema": "",
    "worklist.external.key": ("accession_number",),
    "worklist.external.columns": {},
    "worklist.external.values": {},
    "worklist.external.constants": {},
    "worklist.external.mode": "update",
    "worklist.external.priorities": ("STAT", "HIGH", "MEDIUM", "ROUTINE"),
    "worklist.external.time_zone": "UTC",
    "database.url": "",
    "broker.url": "",
    "worker.processes": 1,
    "worker.lease_seconds": 15.0,
    "worker.max_image_mib": 1024,
    "worker.decoder_memory_mib": 4096,
    "worker.max_attempts": 3,
    "model.bundles": ("mil-pair-v1",),
    "model.device": "auto",
    "model.engine": "torch",
    "model.precision": "float32",
    "peers": (),
    "pacs": (),
    "hl7": (),
    "webhook": (),
    "mail": (),
}
"""All but ``data_dir``."""

OTHER: dict[str, Any] = {
    "data_dir": "/var/lib/ich-node",
    "receiver.host": "127.0.0.2",
    "receiver.port": 104,
    "receiver.ae_title": "CT READER",
    "receiver.allow_any_peer": True,
    "receiver.processes": 3,
    "receiver.max_associations": 5,
    "receiver.max_associations_per_peer": 4,
    "receiver.max_object_mib": 100,
    "receiver.max_association_gib": 0.5,
    "receiver.max_study_gib": 0.25,
    "receiver.max_peer_gib_per_day": 2.0,
    "receiver.idle_seconds": 30.0,
    "receiver.min_bytes_per_second": 100,
    "receiver.settle_seconds": 0.25,
    "receiver.quiet_seconds": 20.0,
    "receiver.stalled_seconds": 90.0,
    "receiver.tls.certificate": "/etc/other.pem",
    "receiver.tls.key": "/etc/other.key",
    "receiver.tls.ca": "/etc/others.pem",
    "receiver.tls.port": 2763,
    "receiver.tls.only": True,
    "disk.min_free_gib": 1.5,
    "disk.retention_days": 30.0,
    "disk.purge_every_hours": 1.0,
    "web.host": "::1",
    "web.port": 0,
    "web.trusted_hosts": ("ich-node.hospital.example", "192.0.2.7"),
    "web.login.local_users": True,
    "web.login.idle_minutes": 60,
    "web.login.absolute_hours": 24.0,
    "web.oidc.issuer": "https://login.hospital.example/realms/x",
    "web.oidc.client_id": "ich-node",
    "web.oidc.client_secret_file": "/etc/secret",
    "web.oidc.scopes": ("openid", "groups"),
    "web.oidc.user_claim": "email",
    "web.oidc.role_claim": "realm_access.roles",
    "web.oidc.roles.viewer": ("neurology",),
    "web.oidc.roles.radiologist": ("radiology",),
    "web.oidc.roles.admin": ("pacs", "it"),
    "web.oidc.base_url": "https://ich-node.hospital.example",
    "web.oidc.label": "Example Hospital",
    "web.oidc.ca": "/etc/ca.pem",
    "web.tls.certificate": "/etc/web.pem",
    "web.tls.key": "/etc/web.key",
    "web.proxy.addresses": ("127.0.0.1", "192.0.2.0/28"),
    "web.audit.host": "audit.hospital.example",
    "web.audit.port": 6515,
    "web.audit.ca": "/etc/ca.pem",
    "web.audit.certificate": "/etc/node.pem",
    "web.audit.key": "/etc/node.key",
    "web.audit.audit_source_id": "ICH 2",
    "web.audit.enterprise_site_id": "North",
    "viewer.url_template": "https://viewer/{study_instance_uid}",
    "worklist.external.name": "reading list",
    "worklist.external.url": "mysql://ris.local/other",
    "worklist.external.url_file": "/etc/ris-url",
    "worklist.external.table": "orders",
    "worklist.external.table_schema": "ris",
    "worklist.external.key": ("study_instance_uid",),
    "worklist.external.columns": {
        "accession_number": "order_number",
        "study_instance_uid": "study",
        "priority": "urgency",
    },
    "worklist.external.values": {"STAT": 1, "HIGH": 2, "MEDIUM": 3, "ROUTINE": 4},
    "worklist.external.constants": {"changed_by": "ICH_NODE"},
    "worklist.external.mode": "upsert",
    "worklist.external.priorities": ("STAT", "HIGH"),
    "worklist.external.time_zone": "Europe/Berlin",
    "database.url": "postgresql+psycopg://host/name",
    "broker.url": "redis://broker",
    "worker.processes": 0,
    "worker.lease_seconds": 30.0,
    "worker.max_image_mib": 64,
    "worker.decoder_memory_mib": 512,
    "worker.max_attempts": 1,
    "model.bundles": ("other",),
    "model.device": "cuda:1",
    "model.engine": "torch",
    "model.precision": "bfloat16",
    "peers": [CT1],
    "pacs": [PACS],
    "hl7": [HL7],
    "webhook": [WEBHOOK],
    "mail": [MAIL],
}

WRONG: dict[str, list[Any]] = {
    "data_dir": ["", "~no-such-user-here/x"],
    "receiver.host": ["", "0.0.0.0", "node.local"],
    "receiver.port": [-1, 65536, "dicom", 1.5],
    "receiver.ae_title": ["", " ", "A" * 17, "BACK\\SLASH", "ÜBER", "NEW\nLINE"],
    "receiver.allow_any_peer": ["maybe"],
    "receiver.processes": [-1, 17],
    "receiver.max_associations": [0, 501],
    "receiver.max_associations_per_peer": [0, 501],
    "receiver.max_object_mib": [0, 65537],
    "receiver.max_association_gib": [0, -1],
    "receiver.max_study_gib": [0, "much"],
    "receiver.max_peer_gib_per_day": [0],
    "receiver.idle_seconds": [0.5, 3601],
    "receiver.min_bytes_per_second": [0],
    "receiver.settle_seconds": [-0.1, 61, "nan", "inf", "soon"],
    "receiver.quiet_seconds": [-1, 601],
    "receiver.stalled_seconds": [0, 3601],
    "receiver.tls.certificate": [],
    "receiver.tls.key": [],
    "receiver.tls.ca": [],
    "receiver.tls.port": [-1, 65536],
    "receiver.tls.only": ["maybe"],
    "disk.min_free_gib": [-1],
    "disk.retention_days": [-1],
    "disk.purge_every_hours": [0, 721],
    "web.host": ["", "0.0.0.0", "10.0.0.1", "node.local", "::"],
    "web.port": [-1, 65536],
    "web.trusted_hosts": ["name", ["https://name"], ["name:8080"], ["*"], ["a name"], [""]],
    "web.login.local_users": ["maybe"],
    "web.login.idle_minutes": [0, 1441],
    "web.login.absolute_hours": [0, 721],
    "web.oidc.issuer": ["login", "http://login.hospital.example", "https://me@login", "https://login/?a=b"],
    "web.oidc.client_id": [],
    "web.oidc.client_secret_file": [],
    "web.oidc.scopes": ["openid"],
    "web.oidc.user_claim": [""],
    "web.oidc.role_claim": [""],
    "web.oidc.roles.viewer": ["all"],
    "web.oidc.roles.radiologist": ["all"],
    "web.oidc.roles.admin": ["all"],
    "web.oidc.base_url": ["ich-node", "http://ich-node.hospital.example", "https://ich-node:port"],
    "web.oidc.label": [""],
    "web.oidc.ca": [],
    "web.tls.certificate": [],
    "web.tls.key": [],
    "web.proxy.addresses": ["127.0.0.1", ["proxy"], ["0.0.0.0/0"], ["::/0"], ["*"]],
    "web.audit.host": [],
    "web.audit.port": [0, 65536],
    "web.audit.ca": [],
    "web.audit.certificate": [],
    "web.audit.key": [],
    "web.audit.audit_source_id": [""],
    "web.audit.enterprise_site_id": [],
    "viewer.url_template": [
        "viewer",
        "javascript:alert(1)",
        "https://viewer/{patient_name}",
        "https://viewer/{",
    ],
    "worklist.external.name": [""],
    "worklist.external.url": ["ris", "mongodb://ris/x"],
    "worklist.external.url_file": [],
    "worklist.external.table": [],
    "worklist.external.table_schema": [],
    "worklist.external.key": [[], ["colour"]],
    "worklist.external.columns": [{"colour": "x"}],
    "worklist.external.values": [{"STAT": [1]}],
    "worklist.external.constants": [{"acc": [1]}],
    "worklist.external.mode": ["delete"],
    "worklist.external.priorities": [[], ["URGENT"]],
    "worklist.external.time_zone": ["Berlin"],
    "database.url": [],
    "broker.url": [],
    "worker.processes": [-1, 65],
    "worker.lease_seconds": [1, 601],
    "worker.max_image_mib": [0, 16385],
    "worker.decoder_memory_mib": [255, 65537],
    "worker.max_attempts": [0, 21],
    "model.bundles": ["vicar", [], ["a", "b", "a"]],
    "model.device": ["gpu", "cuda:x", ""],
    "model.engine": ["onnx"],
    "model.precision": ["float16", ""],
    "peers": ["CT1", [{"name": "x"}], [{**CT1, "host": "ct.local"}], [{**CT1, "colour": "red"}]],
    "pacs": [
        "PACS",
        [{**PACS, "port": 0}],
        [{**PACS, "ae_title": ""}],
        [{**PACS, "name": ""}],
        [PACS, PACS],
        [{**PACS, "url": "https://pacs.local"}],
        [{**PACS, "ca": ""}],
        [{**PACS, "key": ""}],
        [{**PACS, "user": "ich"}],
        [{**PACS, "objects": []}],
        [{**PACS, "objects": ["SR", "RTSTRUCT"]}],
        [{**PACS, "sr_class": "plain"}],
        [{**PACS, "confirm": "hope"}],
        [{"name": "web"}],
        [{**WEB, "url": "ftp://pacs.local"}],
        [{**WEB, "url": "https://me:secret@pacs.local"}],
        [{**WEB, "url": "https://pacs.local/?a=b"}],
        [{**WEB, "url": "https://pacs.local:port"}],
        [{**WEB, "url": "http://pacs.local", "ca": "/etc/ca.pem"}],
        [{**WEB, "user": "ich"}],
        [{**WEB, "user": "ich", "password_file": "/etc/password", "token_file": "/etc/token"}],
        [{**WEB, "confirm": "commitment"}],
    ],
    "hl7": [
        [{**HL7, "port": 0}],
        [{**HL7, "version": "3"}],
        [{**HL7, "sending_application": "A" * 21}],
        [{**HL7, "priorities": []}],
        [HL7, HL7],
    ],
    "webhook": [[{**WEBHOOK, "url": "pager"}], [{**WEBHOOK, "secret_file": ""}], [{"name": "pager"}]],
    "mail": [
        [{**MAIL, "recipients": []}],
        [{**MAIL, "sender": "nobody"}],
        [{**MAIL, "security": "none"}],
        [{**MAIL, "password_file": ""}],
        [{**MAIL, "priorities": ["URGENT"]}],
    ],
}


OIDC = {
    "issuer": "https://login",
    "client_id": "node",
    "base_url": "https://node",
    "roles": {"viewer": ["all"]},
}
WEB_TLS = {"certificate": "/etc/web.pem", "key": "/etc/web.key"}
TOGETHER: dict[str, dict[str, Any]] = {
    "receiver.tls": TLS,
    "web.tls": WEB_TLS,
    "web.oidc": OIDC,
    "worklist.external": {
        "url": "postgresql://ris.local/ris",
        "table": "worklist",
        "columns": {"accession_number": "acc", "study_instance_uid": "study", "priority": "prio"},
    },
    "web.audit": {file: path for file, path in TLS.items() if file != "ca"},
}
"""Keys of a section that are judged together."""
NEEDS_LOGIN = ("web.trusted_hosts", "web.proxy.addresses")


def variable(key: str) -> str:
    return f"ICH_NODE_{key.upper().replace('.', '__')}"


def as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)


def value_of(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    if key in ("peers", "pacs", "hl7", "webhook", "mail"):
        return [item.model_dump(mode="json") for item in value] if value else ()
    return str(value) if isinstance(value, Path) else value


def from_file(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> LoadedSettings:
    path = tmp_path / "ich-node.toml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, environ or {})


def toml_of(key: str, value: Any) -> str:
    section, _, name = key.rpartition(".")
    together = TOGETHER.get(section, {})
    others = "".join(f"{other} = {toml_value(its)}\n" for other, its in together.items() if other != name)
    before = "[web.login]\nlocal_users = true\n" if key in NEEDS_LOGIN else ""
    return before + (f"[{section}]\n{others}" if section else "") + f"{name} = {toml_value(value)}\n"


def toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return json.dumps(value)


def test_the_tables_above_cover_every_setting() -> None:
    keys = {row.key for row in load_settings(None, {}).rows()}
    assert keys == set(OTHER) == set(WRONG) == set(DEFAULTS) | {"data_dir"}


def test_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_settings(None, {})
    assert {key: value_of(loaded.settings, key) for key in DEFAULTS} == DEFAULTS
    assert loaded.settings.data_dir == tmp_path / "ich-node-data"
    assert {row.source for row in loaded.rows()} == {"default"}
    assert loaded.settings.spool_dir == tmp_path / "ich-node-data" / "spool"
    assert loaded.settings.results_dir == tmp_path / "ich-node-data" / "results"
    assert loaded.settings.bundles_dir == tmp_path / "ich-node-data" / "models"


def test_every_row_explains_itself() -> None:
    for row in load_settings(None, {}).rows():
        assert row.description, row.key
        assert (row.unit == "s") == row.key.endswith("_seconds"), row.key


@pytest.mark.parametrize("key", OTHER)
def test_a_key_in_the_file(tmp_path: Path, key: str) -> None:
    loaded = from_file(tmp_path, toml_of(key, OTHER[key]))
    assert value_of(loaded.settings, key) == OTHER[key]
    set_here = {row.key: row.source for row in loaded.rows() if row.source != "default"}
    assert set_here[key] == str(tmp_path / "ich-node.toml")
    if key.rpartition(".")[0] not in TOGETHER and key not in NEEDS_LOGIN:
        assert set_here.keys() == {key}


@pytest.mark.parametrize("key", OTHER)
def test_the_environment_overrides_the_file(tmp_path: Path, key: str) -> None:
    default = DEFAULTS.get(key, "elsewhere")
    loaded = from_file(tmp_path, toml_of(key, default), {variable(key): as_text(OTHER[key])})
    assert value_of(loaded.settings, key) == OTHER[key]
    assert {row.source for row in loaded.rows() if row.key == key} == {variable(key)}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_refused_with_its_key_and_where_it_stands(
    tmp_path: Path, key: str, value: Any
) -> None:
    path = tmp_path / "ich-node.toml"
    with pytest.raises(ConfigurationError) as caught:
        from_file(tmp_path, toml_of(key, value))
    assert str(caught.value).startswith(f"{path}: {key}")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, {variable(key): as_text(value)})
    assert str(caught.value).startswith(f"{variable(key)}: {key}")


@pytest.mark.parametrize("key", [key for key, value in OTHER.items() if type(value) in (int, float)])
def test_a_truth_value_is_no_number(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigurationError, match="a number is expected"):
        from_file(tmp_path, toml_of(key, True))


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    text = "colour = 'red'\n[receiver]\nport = 'x'\nportt = 1\n[web]\nport = -1\n"
    with pytest.raises(ConfigurationError) as caught:
        from_file(tmp_path, text, {"ICH_NODE_WORKER__PROCESSES": "many"})
    lines = str(caught.value).splitlines()
    path = tmp_path / "ich-node.toml"
    assert f"{path}: colour: unknown setting" in lines
    assert f"{path}: receiver.portt: unknown setting" in lines
    assert any(line.startswith(f"{path}: receiver.port: ") for line in lines)
    assert any(line.startswith(f"{path}: web.port: ") for line in lines)
    assert any(line.startswith("ICH_NODE_WORKER__PROCESSES: worker.processes: ") for line in lines)
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"ICH_NODE_RECIEVER__PORT": "1"}, "ICH_NODE_RECIEVER__PORT: reciever: unknown setting"),
        ({"ICH_NODE_RECEIVER__PROT": "1"}, "ICH_NODE_RECEIVER__PROT: receiver.prot: unknown setting"),
        ({"ICH_NODE_RECEIVER__": "1"}, "ICH_NODE_RECEIVER__ names no setting"),
        (
            {"ICH_NODE_RECEIVER_AE_TITLE": "X"},
            "ICH_NODE_RECEIVER_AE_TITLE is not a setting; it is ICH_NODE_RECEIVER__AE_TITLE",
        ),
        ({"ICH_NODE_PACS": "[{"}, "ICH_NODE_PACS is not valid JSON"),
        ({"ICH_NODE_PACS__0__PORT": "104"}, "ICH_NODE_PACS__0__PORT: pacs: a list is expected"),
        ({"ICH_NODE_RECEIVER": "x", "ICH_NODE_RECEIVER__PORT": "1"}, "receiver is not a section"),
    ],
)
def test_a_variable_that_means_nothing_is_refused(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, environ)
    assert says in str(caught.value)


def test_variables_of_others_are_left_alone() -> None:
    environ = {"ICH_NODE_TEST_DATA": "/x", "ICH_NODE_CONFIG": "", "PATH": "/bin", "RECEIVER__PORT": "1"}
    assert {row.source for row in load_settings(None, environ).rows()} == {"default"}


def test_an_empty_variable_is_an_empty_value(tmp_path: Path) -> None:
    loaded = from_file(tmp_path, "[database]\nurl = 'x'\n", {"ICH_NODE_DATABASE__URL": ""})
    assert loaded.settings.database.url == ""


def test_a_whole_section_in_one_variable_keeps_the_rest_of_the_file(tmp_path: Path) -> None:
    text = "[receiver]\nae_title = 'X'\nport = 1\n"
    loaded = from_file(tmp_path, text, {"ICH_NODE_RECEIVER": '{"port": 2}', "ICH_NODE_RECEIVER__HOST": "::1"})
    assert (loaded.settings.receiver.ae_title, loaded.settings.receiver.port) == ("X", 2)
    sources = {row.key: row.source for row in loaded.rows()}
    assert sources["receiver.port"] == "ICH_NODE_RECEIVER"
    assert sources["receiver.host"] == "ICH_NODE_RECEIVER__HOST"


def test_the_file_that_the_environment_names(tmp_path: Path) -> None:
    path = tmp_path / "named.toml"
    path.write_text("[web]\nport = 1\n")
    assert load_settings(None, {"ICH_NODE_CONFIG": str(path)}).settings.web.port == 1
    given_path = tmp_path / "given.toml"
    given_path.write_text("[web]\nport = 2\n")
    assert load_settings(given_path, {"ICH_NODE_CONFIG": str(path)}).settings.web.port == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read the settings file .*No such file"),
        (b"[receiver\n", "not valid TOML"),
        (b"[web]\nport = 1\nport = 2\n", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=says) as caught:
        load_settings(path, {})
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_settings(tmp_path, {})


def test_a_table_in_the_place_of_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"receiver\.port: "):
        from_file(tmp_path, "[receiver.port]\nx = 1\n")
    with pytest.raises(ConfigurationError, match="receiver: "):
        from_file(tmp_path, "receiver = 5\n")
    with pytest.raises(ConfigurationError, match="pacs: a list is expected"):
        from_file(tmp_path, "[pacs]\nname = 'x'\n")


# who may reach what


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "localhost.example", "127.0.0.1.example"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_public_receiver_needs_peers_or_a_plain_word(tmp_path: Path) -> None:
    public = "[receiver]\nhost = '0.0.0.0'\n"
    with pytest.raises(ConfigurationError, match=r"list the callers under .*or set receiver.allow_any_peer"):
        from_file(tmp_path, public)
    assert from_file(tmp_path, f"{public}allow_any_peer = true\n").settings.receiver.host == "0.0.0.0"
    with_peer = f"{public}[[peers]]\nname = 'CT 1'\nae_title = 'CT1'\nhost = '10.0.0.7'\n"
    assert from_file(tmp_path, with_peer).settings.peers[0].host == "10.0.0.7"


LOGIN = "[web.login]\nlocal_users = true\n"
SECURED = "[web.tls]\ncertificate = '/etc/web.pem'\nkey = '/etc/web.key'\n"
PROXY = "[web.proxy]\naddresses = ['192.0.2.1']\n"
PUBLIC = "[web]\nhost = '0.0.0.0'\n"
NAMED = f"{PUBLIC}trusted_hosts = ['ich-node.hospital.example']\n"


@pytest.mark.parametrize(
    ("text", "key", "what_to_do"),
    [
        (PUBLIC, "web.host", "web.login.local_users = true, or web.oidc"),
        (PUBLIC + SECURED, "web.host", "web.login.local_users = true, or web.oidc"),
        (PUBLIC + LOGIN, "web.host", "web.tls.certificate and web.tls.key, or web.proxy.addresses"),
        (PUBLIC + LOGIN + SECURED, "web.host", "set web.trusted_hosts"),
        (PUBLIC + LOGIN + PROXY, "web.host", "set web.trusted_hosts"),
        ("[web]\ntrusted_hosts = ['a.b']\n", "web.trusted_hosts", "web.login.local_users = true"),
        (PROXY, "web.proxy.addresses", "web.login.local_users = true"),
        (PROXY + SECURED, "web.proxy.addresses", "web.login.local_users = true"),
    ],
)
def test_the_web_page_is_opened_to_others_with_login_and_https_only(
    tmp_path: Path, text: str, key: str, what_to_do: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_file(tmp_path, text)
    said = str(caught.value)
    assert f": {key}: " in said
    assert what_to_do in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "text", [LOGIN, SECURED, NAMED + LOGIN + SECURED, NAMED + LOGIN + PROXY, PROXY + LOGIN]
)
def test_a_web_page_with_login_and_https_may_be_opened(tmp_path: Path, text: str) -> None:
    web = from_file(tmp_path, text).settings.web
    assert web.login_required == ("local_users" in text)


def test_oidc_names_somebody_who_may_log_in(tmp_path: Path) -> None:
    text = "[web.oidc]\nissuer = 'https://login'\nclient_id = 'x'\nbase_url = 'https://node'\n"
    with pytest.raises(ConfigurationError, match=r"web\.oidc: nobody could log in"):
        from_file(tmp_path, text)
    assert from_file(tmp_path, f"{text}roles.viewer = ['all']\n").settings.web.login_required


def test_addresses_and_titles_are_brought_to_one_form(tmp_path: Path) -> None:
    text = "[[peers]]\nname = 'x'\nae_title = ' CT1 '\nhost = '2001:DB8:0::1'\n"
    peer = from_file(tmp_path, text).settings.peers[0]
    assert (peer.ae_title, peer.host) == ("CT1", "2001:db8::1")


# what is printed


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://u:secret@h/x", "postgresql+psycopg://u:***@h/x"),
        ("redis://:se@cr/et@h:6379/0", "redis://:***@h:6379/0"),
        ("postgresql://h/x?user=u&password=secret&sslmode=require", None),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("sqlite:////tmp/x.sqlite", "sqlite:////tmp/x.sqlite"),
    ],
)
@pytest.mark.parametrize("key", ["database.url", "broker.url"])
def test_passwords_are_not_printed(key: str, url: str, shown: str | None) -> None:
    loaded = load_settings(None, {variable(key): url})
    (row,) = (row for row in loaded.rows() if row.key == key)
    assert "secret" not in row.value
    assert "se@cr" not in row.value
    assert row.value == (shown or "postgresql://h/x?user=u&password=***&sslmode=require")
    assert value_of(loaded.settings, key) == url


def test_rows_are_plain_values(tmp_path: Path) -> None:
    environ = {variable(key): as_text(value) for key, value in OTHER.items()}
    rows = {row.key: row.value for row in load_settings(None, environ).rows()}
    assert json.loads(json.dumps(rows))["pacs"] == [PACS]
    assert rows["data_dir"] == "/var/lib/ich-node"


@pytest.mark.parametrize(
    "name", ["plain", "with space", "100%", "a%20b", "a#b", "a@b:c", "hüte", "x=y&z", "what?"]
)
def test_the_default_database_lies_in_any_folder(tmp_path: Path, name: str) -> None:
    settings = load_settings(None, {"ICH_NODE_DATA_DIR": str(tmp_path / name)}).settings
    database = Database(settings.database_url)
    database.upgrade()
    database.dispose()
    assert (tmp_path / name / "ich-node.sqlite").stat().st_size > 0


def test_settings_do_not_change() -> None:
    settings = load_settings(None, {}).settings
    with pytest.raises(ValueError, match="frozen"):
        settings.receiver.port = 1


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.dictionaries(TEXT.map("ICH_NODE_{}".format), TEXT, max_size=3))
@example({"ICH_NODE___": ""})
def test_any_environment_gives_settings_or_a_clear_refusal(environ: dict[str, str]) -> None:
    environ.pop("ICH_NODE_CONFIG", None)
    said = refusal(lambda: load_settings(None, environ))
    assert said is None or "ICH_NODE_" in said


@given(st.recursive(st.integers() | TEXT | st.booleans(), lambda v: st.lists(v, max_size=3)))
def test_any_value_of_any_kind_gives_settings_or_a_clear_refusal(value: Any) -> None:
    for key in OTHER:
        environ = {variable(key): json.dumps(value)}
        said = refusal(lambda environ=environ: load_settings(None, environ))  # type: ignore[misc]
        section = key.rpartition(".")[0]
        place = section if section in TOGETHER else key
        assert said is None or said.startswith((f"{variable(key)}: {place}", f"{variable(key)} "))


def refusal(load: Callable[[], LoadedSettings]) -> str | None:
    """What is said against it; any error but a refusal goes through."""
    try:
        load()
    except ConfigurationError as error:
        return str(error)
    return None
