"""The steps of a lane, each made from the configuration: what all kinds of lanes are put together from."""

from __future__ import annotations

from bootagent.config.model import App, Check, Config, EbsSource, NfsSource, S3Source, Service
from bootagent.ebs.snapshots import Snapshot
from bootagent.git_repository import Commit
from bootagent.plan import boot_order, environment
from bootagent.plan.down import ToStop, no_services
from bootagent.plan.lane import Known, Moment
from bootagent.plan.volumes import is_on_volumes, of_another_kind, restored, retired_volumes
from bootagent.pull.bundle import Bundle, Limits
from bootagent.roster import Roster, ServiceSpec
from bootagent.services import cgroups
from bootagent.services.servicefiles import Confinement
from bootagent.sources import Content, Tree
from bootagent.steps.base import Step
from bootagent.steps.current import Current
from bootagent.steps.directories import Directories
from bootagent.steps.linked_paths import LinkedPaths
from bootagent.steps.prune import Prune
from bootagent.steps.services import Services
from bootagent.steps.shared_file import SharedFile
from bootagent.steps.staged_bundle import StagedBundle
from bootagent.steps.staged_commit import StagedCommit
from bootagent.steps.staged_copy import StagedCopy
from bootagent.steps.startable import Startable

MARKERS = "/var/lib/bootagent/prepared"
SCRIPTS = "/run/bootagent/scripts"


def staged(app: App, name: str, content: Content, moment: Moment) -> list[Step]:
    """What puts a revision's content into the release ``name``. Raises BootagentError where that cannot be."""
    release = f"{app.deploy_to}/releases/{name}"
    within, user, group = app.limits.within, app.user, app.group
    match content:
        case Bundle():
            limits = Limits(app.limits.unpacked, app.limits.files, app.limits.reserve)
            return [StagedBundle(release, content, limits, within, user, group)]
        case Commit():
            return [StagedCommit(release, app.deploy_to, content, within, user, group)]
        case Tree():
            return [StagedCopy(release, content.path, within, user, group)]
        case Snapshot():
            return restored(app, name, content.id, moment, marker(app, name))
    raise AssertionError(content)  # what is read in place is not staged


def marker(app: App, name: str) -> str:
    """Where it is remembered that the release's hook has succeeded."""
    return marker_of(app.name, name)


def marker_of(app: str, name: str) -> str:
    """The same, of an app by its name."""
    return f"{MARKERS}/{app}.{name}"


def shared(app: App, moment: Moment) -> list[Step]:
    """The directories of the layout, and what is filled in ``shared/``."""
    files = tuple(file.path for file in app.linked_files)
    # Where root mounts, nobody else may move directories.
    steps: list[Step] = [
        Directories(app.deploy_to, app.linked_dirs, files, app.user, app.group, roots=is_on_volumes(app))
    ]
    region = (app.source.region if isinstance(app.source, S3Source) else None) or moment.region
    steps += [
        SharedFile(app.deploy_to, file.path, file.origin, region, app.user, app.group)
        for file in app.linked_files
        if file.origin
    ]
    return steps


def links(app: App, name: str, *, fresh: bool, volume: str | None = None) -> list[Step]:
    """The links of a release into ``shared/``."""
    files = tuple(file.path for file in app.linked_files)
    if not files and not app.linked_dirs:
        return []
    return [LinkedPaths(app.deploy_to, name, files, app.linked_dirs, app.user, app.group, fresh, volume)]


def current(app: App, name: str, log: str | None, demoted: str | None = None) -> Step:
    """The switch to a release."""
    return Current(app.deploy_to, name, log, demoted, app.user, app.group)


def services(config: Config, app: App, mark: str | None, *, stand_in: str | None = None) -> Services:
    """The app's services, started from ``mark``; None: from whatever somebody else has made current.

    ``stand_in`` is a tree that they run from because what is read in place is not there.
    """
    watched = tuple(f"{app.deploy_to}/shared/{file.path}" for file in app.linked_files if file.origin)
    return Services(_roster(config, app, stand_in), mark, watched, environment.hooks_secrets(app))


def startable(config: Config, app: App, name: str) -> Step:
    """What looks whether the release ``name`` could be started."""
    return Startable(_roster(config, app, f"{app.deploy_to}/releases/{name}"))


def _roster(config: Config, app: App, stand_in: str | None) -> Roster:
    in_place = app.in_place and stand_in is None
    return Roster(
        app=app.name,
        current=stand_in or app.current,
        specs=tuple(_spec(app, service) for service in app.services),
        unnamed=_spec(app, app.unnamed),
        only=app.only,
        release_services=app.release_services,
        service_dir=config.runit.service_dir,
        definitions=config.runit.definitions,
        scripts=scripts(app) if in_place and copies_scripts(app) else None,
        needs=(
            *(volume.mountpoint for volume in config.volumes),
            *(_mountpoints(app) if in_place else ()),
        ),
        environment=environment.tree(app, stand_in or app.current, copied=in_place and copies_scripts(app)),
        before=boot_order.before(config, app),
    )


def _mountpoints(app: App) -> tuple[str, ...]:
    """Where what is read in place is mounted, and shown."""
    match app.source:
        case NfsSource(mountpoint=mountpoint):
            return (mountpoint,)
        case EbsSource(mountpoint=mountpoint, bind=bind):
            return (mountpoint, app.deploy_to) if bind else (mountpoint,)
    return ()


def leave_behind(config: Config, app: App, known: Known, moment: Moment) -> list[Step]:
    """First of all, what the app was when its source kept it on volumes of another kind goes, and what runs from it.

    There is no way back to it then.
    """
    gone = of_another_kind(app, known.volumes)
    if not gone:
        return []
    left = retired_volumes(app.name, moment, keep=set(known.volumes) - set(gone))
    mountpoints = [name for name in gone if name in known.layout.releases]
    pruned = [Prune(app.deploy_to, tuple(mountpoints), ())] if mountpoints else []
    services = tuple((f"{app.name}.{one.name}", one.stop_within) for one in app.services)
    order = tuple((f"{app.name}.{one.name}", one.after) for one in app.services)
    runs = ToStop(app.name, config.runit.definitions, services, order)
    return [*no_services(runs, config.runit.service_dir), *left, *pruned]


def copies_scripts(app: App) -> bool:
    """Whether the release's service directories are copied out first: a dead server must not hang who reads them."""
    return app.in_place and isinstance(app.source, NfsSource)


def scripts(app: App) -> str:
    """Where they are copied to."""
    return f"{SCRIPTS}/{app.name}"


def _spec(app: App, service: Service) -> ServiceSpec:
    check: Check = service.check
    return ServiceSpec(
        name=service.name,
        command=service.command,
        user=service.user,
        group=service.group,
        env=service.env,
        log=service.log,
        stable_for=service.stable_for,
        stop_within=service.stop_within,
        within=check.within,
        http=check.http,
        tcp=check.tcp,
        check_command=check.command,
        secrets=environment.secrets_place(app.name, service),
        runtime=service.runtime,
        wrapper=service.wrapper,
        directory=service.directory,
        confinement=Confinement(service.umask, **vars(service.limits)),
        cgroup=cgroups.Limits(**vars(service.cgroup)) if service.cgroup else None,
        after=service.after,
        # What is mounted takes the place of what was: no process may stay in that.
        reload=None if app.in_place and isinstance(app.source, EbsSource) else service.reload,
        stop=service.stop,
    )
