"""The tables of services, and of what surrounds them, as frozen values."""

from __future__ import annotations

from typing import Any

from bootagent.config.model import (
    Cgroup,
    Check,
    ElasticIp,
    EnvironmentTree,
    GitSource,
    Lifecycle,
    ProcessLimits,
    Secret,
    Service,
    TargetGroup,
    Telling,
    Traffic,
)
from bootagent.config.quantities import seconds, size

Table = dict[str, Any]


def service(app: str, name: str, table: Table, of_app: Table, user: str, group: str | None) -> Service:
    """A service from its table and its app's; ``user`` and ``group`` are the app's."""
    check = table["check"]
    own_user = table.get("user", user)
    return Service(
        name=name,
        command=_words(table, "command"),
        user=own_user,
        group=table.get("group", group if own_user == user else None),
        env=tuple(sorted(table["env"].items())),
        log=table.get("log", f"/var/log/bootagent/{app}.{name}"),
        stable_for=seconds(table["stable_for"]),
        stop_within=seconds(table["stop_within"]),
        check=Check(
            http=check.get("http"),
            tcp=check.get("tcp"),
            command=_words(check, "command"),
            within=seconds(check["within"]),
        ),
        after=tuple(in_full(app, other) for other in table["after"]),
        secrets=(*secrets(of_app), *secrets(table)),
        runtime=table["runtime"] if "runtime" in table else of_app["runtime"],
        wrapper=tuple(table["wrapper"] if "wrapper" in table else of_app.get("wrapper", ())),
        directory=table.get("directory", ""),
        umask=table.get("umask"),
        limits=_limits(table["limits"]),
        cgroup=_cgroup(table["cgroup"]) if "cgroup" in table else None,
        reload=table.get("reload"),
        stop=_words(table, "stop"),
    )


def user_of(app: Table) -> str:
    """The user of an app, by its table."""
    users = {service["user"] for service in app["services"].values() if "user" in service}
    user: str = app.get("user") or (users.pop() if len(users) == 1 else "nobody")
    return user


def in_full(app: str, name: str) -> str:
    """A service's name with its app's, which ``app`` may leave out."""
    return name if "." in name else f"{app}.{name}"


def secrets(table: Table) -> tuple[Secret, ...]:
    """The secrets an app or a service asks for."""
    return tuple(
        Secret(None, item) if isinstance(item, str) else Secret(item["name"], item["from"]) for item in table["secrets"]
    )


def environment(table: Table | None) -> EnvironmentTree | None:
    """Where an app's environment is kept."""
    if table is None:
        return None
    git = None
    if "url" in table:
        git = GitSource(table["url"], table["ref"], table.get("key"), table["known_hosts"], submodules=False)
    return EnvironmentTree(table.get("path", "" if git else "config/env"), git, tuple(table["layers"]))


def traffic(table: Table | None) -> Traffic | None:
    """How traffic reaches a role."""
    if table is None:
        return None
    ip = table.get("elastic_ip")
    return Traffic(
        elastic_ip=ElasticIp(ip.get("allocation"), tuple(sorted(ip.get("tags", {}).items()))) if ip else None,
        target_groups=tuple(
            TargetGroup(one, None) if isinstance(one, str) else TargetGroup(one["group"], one.get("port"))
            for one in table["target_groups"]
        ),
        load_balancers=tuple(table["load_balancers"]),
        within=seconds(table["within"]),
        drain_within=seconds(table["drain_within"]),
    )


def lifecycle(table: Table | None) -> Lifecycle | None:
    """Which lifecycle hooks are answered, and how."""
    if table is None:
        return None
    return Lifecycle(
        launching=table.get("launching"),
        terminating=table.get("terminating"),
        sustained=seconds(table["sustained"]),
        give_up_after=seconds(table["give_up_after"]),
        on_failure=table["on_failure"],
        diagnosis=table.get("diagnosis"),
    )


def telling(table: Table) -> Telling:
    """Who is told how a run ended."""
    return Telling(table["console"], table["tags"], table.get("metrics"))


def _words(table: Table, key: str) -> tuple[str, ...] | None:
    return tuple(table[key]) if key in table else None


def _limits(table: Table) -> ProcessLimits:
    def bytes_of(key: str) -> int | None:
        return size(table[key]) if key in table else None

    return ProcessLimits(
        memory=bytes_of("memory"),
        open_files=table.get("open_files"),
        processes=table.get("processes"),
        core=bytes_of("core"),
        file_size=bytes_of("file_size"),
    )


def _cgroup(table: Table) -> Cgroup:
    return Cgroup(size(table["memory"]) if "memory" in table else None, table.get("cpus"), table.get("processes"))
