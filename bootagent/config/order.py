"""What starts after what: the rules that modes, roles and services have to keep together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from bootagent.config.schema import Found, choices
from bootagent.config.services import in_full

Table = dict[str, Any]


def check_modes(modes: Table, apps: Table) -> Iterator[Found]:
    """Yield (key path, sentence) for modes that name what is not there."""
    for name, mode in modes.items():
        chosen = mode.get("apps", [])
        for index, app in enumerate(chosen if isinstance(chosen, list) else []):
            if app not in apps:
                yield ("modes", name, "apps", f"[{index}]"), f"{app!r} is no app{choices(app, apps)}"
            elif app in chosen[:index]:
                yield ("modes", name, "apps", f"[{index}]"), f"{app!r} is named twice"


def check_after(apps: Table) -> Iterator[Found]:
    """Yield (key path, sentence) for what would have to start after something that is not there, or after itself."""
    for name, app in apps.items():
        for index, other in enumerate(app["after"]):
            if other not in apps:
                yield ("apps", name, "after", f"[{index}]"), f"{other!r} is no app{choices(other, apps)}"
        for service, table in app["services"].items():
            for index, other in enumerate(table["after"]):
                owner = in_full(name, other).partition(".")[0]
                if owner not in apps:
                    where = ("apps", name, "services", service, "after", f"[{index}]")
                    yield where, f"{owner!r} is no app{choices(owner, apps)}"
    for name, app in apps.items():
        own = {in_full(name, service): _own_after(name, table) for service, table in app["services"].items()}
        if circle := _circle(own):
            service = circle[0].partition(".")[2]
            yield ("apps", name, "services", service, "after"), f"goes in a circle: {' after '.join(circle)}"
    if circle := _circle({name: apps_before(name, app) for name, app in apps.items()}):
        yield ("apps", circle[0], "after"), f"goes in a circle: {' after '.join(circle)}"


def apps_before(name: str, app: Table) -> list[str]:
    """The apps whose services come before those of this one: those it names, and those its services name."""
    named = [in_full(name, other).partition(".")[0] for table in app["services"].values() for other in table["after"]]
    return sorted({*app["after"], *(other for other in named if other != name)})


def services_before(app: str, services: Table) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """For each service of an app the others of it that come before, all as ``APP.SERVICE``."""
    return tuple((in_full(app, name), tuple(_own_after(app, table))) for name, table in services.items())


def _own_after(app: str, table: Table) -> list[str]:
    names = [in_full(app, other) for other in table["after"]]
    return [other for other in names if other.partition(".")[0] == app]


def _circle(graph: Mapping[str, list[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []
