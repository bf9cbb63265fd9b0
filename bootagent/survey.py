"""Everything a run reads before it plans: the configuration, the instance, the disk, the sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from bootagent import aws, disks, leaving, mounts, nfs, plan, records, release, sources
from bootagent.config import document, order, quantities, resolve
from bootagent.config.document import Document
from bootagent.config.model import App, Config, DataVolume, EbsSource, GitSource, NfsSource
from bootagent.deadline import Deadline
from bootagent.ebs import snapshots
from bootagent.ebs.patience import Patience
from bootagent.environment import checkout
from bootagent.errors import AwsError, BootagentError, MachineError, UsageError
from bootagent.instance import Instance, Overrides, Tags, read
from bootagent.journal import boot_id
from bootagent.machine import Machine
from bootagent.plan import Known, Moment, Plan
from bootagent.release import Layout
from bootagent.services import servicedir
from bootagent.state import State
from bootagent.traffic import held_address, registrations
from bootagent.turns import turns

T = TypeVar("T")
#: Where service directories are kept, unless configured.
DEFINITIONS = "/etc/sv"
SERVICE_DIR = "/etc/service"
#: How long a server has to answer when its mount is in the way of somebody else's releases.
PROBE_SECONDS = 10.0
#: How long EC2 has to say whether a snapshot is there.
SNAPSHOT_SECONDS = 30.0
#: How long a git server that does not answer is waited for while something else could serve.
GIT_SECONDS = 15.0


def load_document(config: Path) -> Document:
    """Read and check the configuration. Raises ConfigError."""
    files = document.config_files(config)
    return resolve.validate(document.load(files))


def read_instance(
    found: Document,
    tags: Tags,
    remembered: Callable[[str | None], Tags],
    pause: Callable[[float], None] = time.sleep,
) -> Instance:
    """Read metadata and tags, waiting for those the configuration needs. Raises MetadataError, AwsError.

    ``remembered`` and ``pause`` are as :func:`bootagent.instance.read` has them.
    """
    return read(
        Overrides(tags, resolve.default_tags(found), remembered),
        lambda seen: resolve.required_tags(found, seen),
        within=resolve.metadata_within(found),
        pause=pause,
    )


def attachments(config: Config, instance: Instance, machine: Machine, moment: Moment) -> tuple[plan.Attachment, ...]:
    """The mounts and data volumes that come before all else. Raises AwsError when EC2 has to be asked, and refuses."""

    def snapshot(volume: DataVolume) -> str | None:
        name = plan.volume_record(config.role, volume)
        record = records.load(machine, name, instance.instance_id)
        if not volume.snapshot or (record and record.volume_id):
            return None  # a new one is blank, or it has been made
        try:
            return snapshots.newest(instance.region, dict(volume.snapshot), volume.owner).id
        except AwsError:
            raise
        except BootagentError:
            if not volume.tags:
                raise
            return None  # there may be a volume to find

    found = dict(zip([one.name for one in config.volumes], side_by_side(snapshot, config.volumes), strict=True))
    return plan.attachments(config, found, moment)


def look(
    config: Config,
    instance: Instance,
    machine: Machine,
    known: State,
    patience: float = 0.0,
    absent: Mapping[str, BootagentError] | None = None,
) -> dict[str, Known]:
    """What the disk, the sources and the state say of every app; sources are asked side by side.

    For ``patience`` seconds, credentials and a route that are not there yet are waited for; a git server not so long
    when something else could serve meanwhile. What cannot be seen of one app is that app's failure alone; ``absent``
    says of which apps the mount is not there, and why. Where a server is dead nothing can stand in, either.
    """
    deadline = time.monotonic() + patience

    def one(app: App) -> Known:
        found = Known(Layout(), BootagentError("not looked at"), known.app(app.name, app.deploy_to))
        found = replace(found, volumes=_volumes(machine, app), whole=_whole(machine, app, instance))
        found = replace(found, **_environment(machine, app, instance.region, deadline))
        try:
            if app.in_place:  # what is mounted there may hang whoever looks
                found = replace(found, present=_is_present(machine, app))
            else:
                try:
                    _refuse_silence(machine, app.deploy_to)
                except MachineError as error:
                    return replace(found, revision=error)
                found = replace(found, layout=release.observe(machine, app.deploy_to))
            if absent and app.name in absent:
                raise absent[app.name]
            can_serve = found.layout.current is not None or app.fallback is not None
            until = min(deadline, time.monotonic() + GIT_SECONDS) if can_serve else deadline
            return replace(found, revision=_resolved(machine, app, instance.region, deadline, until))
        except BootagentError as error:
            return _with_fallback(replace(found, revision=error), machine, app)
        except OSError as error:
            return replace(found, revision=MachineError(f"{app.deploy_to}: {error.strerror}"))
        except Exception as error:  # a fault of ours must not keep the other apps from their turn
            # What could not be encoded is in it, and may be secret.
            what = type(error).__name__ if isinstance(error, UnicodeError) else repr(error)
            return replace(found, revision=BootagentError(f"internal error, please report it: {what}"))

    return dict(zip([app.name for app in config.apps], side_by_side(one, config.apps), strict=True))


def _environment(machine: Machine, app: App, region: str | None, deadline: float) -> dict[str, Any]:
    """Which commit the app's environment is to be, and which one is checked out."""
    if app.environment is None or app.environment.git is None:
        return {}
    present = checkout.present(machine, app.name)
    until = min(deadline, time.monotonic() + GIT_SECONDS) if present else deadline
    commit: str | BootagentError
    try:
        commit = _patiently(lambda: sources.environment_commit(machine, app, region), deadline, until)
    except BootagentError as error:
        commit = error
    except OSError as error:
        commit = MachineError(f"the environment of {app.name}: {error.strerror}")
    return {"environment": commit, "environment_present": present}


def look_back(machine: Machine, app: App, known: State, region: str | None) -> Known:
    """What the disk and the state say of an app that is to go back; its source is not asked, only its environment's.

    Raises MachineError when its directories are on an NFS server that is dead.
    """
    if not app.in_place:
        _refuse_silence(machine, app.deploy_to)
    layout = Layout() if app.in_place else release.observe(machine, app.deploy_to)
    found = Known(layout, BootagentError("not looked at"), known.app(app.name, app.deploy_to))
    return replace(found, **_environment(machine, app, region, time.monotonic()))


def refuse_lost(machine: Machine, app: App, known: Known, target: str, instance: Instance) -> None:
    """Raise UsageError when a release can come back from its snapshot alone, and that cannot be used; and AwsError."""
    snapshot = plan.going_back.snapshot_of(app, known.state, target)
    volume = records.load(machine, plan.record(app.name, target), instance.instance_id)
    if snapshot is None or (volume and volume.volume_id):
        return
    found = snapshots.look(Patience(machine, SNAPSHOT_SECONDS), instance.region, snapshot)
    if found and found.state == "completed" and not found.archived:
        return
    why = ("archived" if found.archived else found.state) if found else "gone"
    raise UsageError(
        f"release {target} of {app.name} cannot come back: its snapshot {snapshot} is {why}",
        remedy="name another release, or make another snapshot",
    )


def _volumes(machine: Machine, app: App) -> tuple[str, ...]:
    """The releases of the app that a volume was attached for, on this instance or the one its image was made of."""
    prefix = plan.record(app.name, "")
    return tuple(one.name.removeprefix(prefix) for one in records.all(machine) if one.name.startswith(prefix))


def _whole(machine: Machine, app: App, instance: Instance) -> tuple[str, ...]:
    """The releases of the app that were made on a volume of this instance which is here."""
    prefix = plan.record(app.name, "")
    own = [one for one in records.all(machine, instance.instance_id) if one.name.startswith(prefix) and one.attached]
    return tuple(
        one.name.removeprefix(prefix)
        for one in own
        if one.volume_id and not one.pristine and disks.find(machine, one.volume_id)
    )


def _refuse_silence(machine: Machine, path: str) -> None:
    """Raise MachineError when a directory, or one in it, is on an NFS server that is dead: we would hang with it."""
    real = Path(mounts.place(machine, path))
    table = mounts.table()
    remote = {mount.point for mount in table if nfs.is_nfs(mount)}
    if any(str(place) in remote for place in (real, *real.parents)):
        mounts.probe(machine, path if mounts.at(machine, path) else str(PurePosixPath(path).parent), PROBE_SECONDS)
    for point in sorted(remote):
        seen = mounts.topmost(table, point)
        if real in Path(point).parents and seen and nfs.is_nfs(seen):
            mounts.probe(machine, f"{path}/{Path(point).relative_to(real)}", PROBE_SECONDS)


def _is_present(machine: Machine, app: App) -> bool:
    point = app.source.mountpoint if isinstance(app.source, NfsSource | EbsSource) else app.deploy_to
    return mounts.at(machine, point) is not None


def _with_fallback(known: Known, machine: Machine, app: App) -> Known:
    try:
        return replace(known, fallback=sources.resolve_fallback(machine, app))
    except BootagentError as error:
        assert isinstance(known.revision, BootagentError)
        both = BootagentError(f"{known.revision}; nor does the image help: {error}")
        both.__cause__ = known.revision  # which has what AWS said
        return replace(known, revision=both)


def _resolved(machine: Machine, app: App, region: str | None, deadline: float, until: float) -> sources.Revision:
    # A server that does not answer yet: at boot the network may be late.
    until = until if isinstance(app.source, GitSource) else 0.0
    return _patiently(lambda: sources.resolve(machine, app, region), deadline, until)


def _patiently(resolve: Callable[[], T], deadline: float, until: float) -> T:
    """Try until ``deadline`` while there are no credentials or no route; ``until``, while a server does not answer."""
    while True:
        try:
            return resolve()
        except AwsError as error:
            if not aws.is_early(error) or time.monotonic() >= deadline:
                raise
            aws.forget_clients()
        except MachineError:
            if time.monotonic() >= until:
                raise
        time.sleep(1)


def moment_of(instance: Instance, *, retry: bool, serving: bool = True) -> Moment:
    """Now, and here; ``serving``: the node is to serve, so that traffic may come to it."""
    return Moment(
        datetime.now(timezone.utc),
        boot_id(),
        instance.region,
        retry,
        instance_id=instance.instance_id,
        zone=instance.availability_zone,
        serving=serving,
    )


def traffic_told(machine: Machine, instance_id: str | None) -> plan.Told:
    """By what traffic reaches this instance, as far as it has seen to it itself. AWS is not asked.

    ``instance_id`` is as :func:`bootagent.traffic.registrations.load` has it. Raises MachineError.
    """
    known, held = registrations.load(machine, instance_id), held_address.load(machine, instance_id)
    return plan.Told(tuple(map(str, known.all)) if known else (), held.allocation if held else None)


def with_traffic(made: Plan, config: Config, instance: Instance, machine: Machine, *, serving: bool = True) -> Plan:
    """The same plan, with what is to be done about balancers. Raises MachineError."""
    told = traffic_told(machine, instance.instance_id)
    return plan.with_traffic(made, config, told, moment_of(instance, retry=False, serving=serving))


def make_plan(
    config: Config,
    known: Mapping[str, Known],
    there: Sequence[plan.ToStop],
    known_apps: Collection[str],
    instance: Instance,
    machine: Machine,
    retry: bool,
    serving: bool = True,
) -> Plan:
    """The plan for this moment; ``there`` are the services as they are, ``known_apps`` those the state tells of."""
    wanted, definitions = {app.name for app in config.apps}, config.runit.definitions
    idle = {*known_apps} - {one.app for one in there}
    found = [*there, *(plan.ToStop(app, definitions, ()) for app in sorted(idle))]
    retired = [one for one in found if one.app not in wanted]
    made = plan.make(config, known, retired, moment_of(instance, retry=retry))
    return with_traffic(made, config, instance, machine, serving=serving)


def services_to_stop(found: Document | None, known: State, machine: Machine) -> list[plan.ToStop]:
    """Every app's services, wherever the configuration or the last run has them, and how long each may take.

    Those that come after others are before them here: this is the order to stop them in.
    Without a configuration the usual place holds, and the time they had when they were installed.
    """
    tables: dict[str, Any] = found.tables if found else {"apps": {}, "runit": {"definitions": DEFINITIONS}}
    services = []
    for definitions in sorted({tables["runit"]["definitions"], known.definitions or DEFINITIONS}):
        for app in servicedir.apps_installed(machine, definitions):
            configured = tables["apps"].get(app, {}).get("services", {})
            names = servicedir.installed(machine, definitions, app)
            stops = tuple((name, _patience(machine, definitions, configured, name)) for name in names)
            after = tuple(order.apps_before(app, tables["apps"][app])) if app in tables["apps"] else ()
            services.append(plan.ToStop(app, definitions, stops, order.services_before(app, configured), after))
    turn = {app: index for index, apps in enumerate(turns({one.app: one.after for one in services})) for app in apps}
    return sorted(services, key=lambda one: -turn[one.app])


def around_a_stop(
    found: Document | None, known: State, machine: Machine, extent: plan.Extent, until: Deadline
) -> plan.Around:
    """What a stop goes by besides the services, from what the last run has noted, and the configuration."""
    runit = found.tables["runit"] if found else {"definitions": DEFINITIONS, "service_dir": SERVICE_DIR}
    definitions = sorted({runit["definitions"], known.definitions or DEFINITIONS})
    noted = leaving.load(machine) or leaving.Leaving(runit["service_dir"])
    apps = (*known.apps.items(), *known.left)
    return plan.Around(extent, noted, tuple(definitions), apps, until)


def _patience(machine: Machine, definitions: str, configured: Mapping[str, Any], name: str) -> float:
    table = configured.get(name.partition(".")[2], {})
    if "stop_within" in table:
        return quantities.seconds(table["stop_within"])
    return servicedir.patience(machine, definitions, name)


def side_by_side(work: Callable, items: Sequence) -> list:  # type: ignore[type-arg]
    """``map`` with a thread for each item; one item needs none."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(work, items))
