"""What is stored of a launch that is given up: whoever looks for the reason finds no instance any more."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from bootagent import aws, state
from bootagent.environment import secrets
from bootagent.environment.concealed import Concealed, redacted
from bootagent.journal import timestamp
from bootagent.lifecycle.place import Place
from bootagent.lifecycle.verdict import RunEnd, failure
from bootagent.machine import Machine
from bootagent.report import status
from bootagent.services import servicedir
from bootagent.survey import DEFINITIONS

#: Of a run's journal, no more than its last records.
RECORDS = 500
#: How long each of the other things may take to be read.
LOOK_SECONDS = 20.0


def make(place: Place, instance_id: str, why: str, end: RunEnd | None) -> dict[str, Any]:
    """Everything that may help: the failure, the ends of the logs, the run's journal, the status."""
    definitions = state.load(place.machine).definitions or DEFINITIONS
    return {
        "instance_id": instance_id,
        "at": timestamp(),
        "why": why,
        "failure": failure(end) if end else {},
        "problems": list(end.problems) if end else [],
        "tails": end.records[-1].get("tails", {}) if end else {},
        "logs": _in_time("logs", lambda: _logs(place, definitions)),
        "status": _in_time("status", lambda: status.facts(place.machine, definitions)),
        "journal": list(end.records[-RECORDS:]) if end else [],
    }


def store(found: dict[str, Any], prefix: str, region: str | None) -> str:
    """Store a diagnosis below an s3:// prefix; returns its URL. Raises AwsError."""
    bucket, _, below = prefix.removeprefix("s3://").partition("/")
    name = f"{found['instance_id']}/{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.json"
    key = f"{below}/{name}" if below else name
    body = json.dumps(found, indent=1, default=str).encode() + b"\n"
    with aws.call(f"store the diagnosis as s3://{bucket}/{key}", "s3:PutObject"):
        aws.s3(region).put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json")
    return f"s3://{bucket}/{key}"


def _logs(place: Place, definitions: str) -> dict[str, str]:
    apps = place.document.tables["apps"]
    found = {}
    for app in servicedir.apps_installed(place.machine, definitions):
        for service in servicedir.installed(place.machine, definitions, app):
            configured = apps.get(app, {}).get("services", {}).get(service.partition(".")[2], {})
            log = configured.get("log") or servicedir.OWN_LOGS + service
            tail = servicedir.log_tail(place.machine, log, since=(0, 0))
            found[service] = redacted(tail, _hidden(place.machine, app, service.partition(".")[2]), cut=True)
    return found


def _hidden(machine: Machine, app: str, service: str) -> list[Concealed]:
    """What a service's log may hold, and nobody else is to see."""
    own = (secrets.read(machine, secrets.place(app, name)) for name in (service, None))
    return [value for values in own if values for value in values.values()]


def _in_time(what: str, look: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What ``look`` finds, or why it finds nothing: neither a fault nor a dead disk may keep the group waiting."""
    found: list[Mapping[str, Any]] = []

    def work() -> None:
        try:
            found.append(look())
        except Exception as error:
            found.append({"error": repr(error)})

    thread = threading.Thread(target=work, name=what, daemon=True)  # left behind when it hangs
    thread.start()
    thread.join(LOOK_SECONDS)
    return found[0] if found else {"error": f"to read the {what} took longer than {LOOK_SECONDS:g} s"}
