"""What a service would find in its environment, and where each variable comes from; secrets by their names alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bootagent import beneath
from bootagent.config.model import App, Config, Service
from bootagent.console import table
from bootagent.environment import directories, secrets
from bootagent.environment.concealed import SHOWN
from bootagent.environment.fetch import Asked
from bootagent.errors import UsageError
from bootagent.machine import MINIMAL_ENVIRONMENT, Identity, Machine, login_environment
from bootagent.plan import environment, parts
from bootagent.services import leftovers, runtimes

#: Where a variable comes from, when it is neither a directory nor a secret's origin.
MINIMAL, LOGIN, CONFIGURED, AGENT, SHIMS = "minimal", "login", "configuration", "the agent", "version manager"


@dataclass(frozen=True)
class Variable:
    """One variable, and where it comes from. ``value`` None: it is unset there, or, of a secret, not shown.

    ``name`` None: names that are known only when the secret is fetched.
    """

    name: str | None
    value: str | None
    origin: str
    secret: bool = False


def of_service(machine: Machine, config: Config, wanted: str) -> list[Variable]:
    """The variables of a service, named as SERVICE or APP.SERVICE, by name. Raises UsageError when there is no such.

    Nothing is fetched: the tree is read where it is now, of secrets it is looked up which are there.
    """
    app, service = _chosen(machine, config, wanted)
    found: dict[str, Variable] = {}
    identity = machine.identity(service.user, service.group)
    _add(found, MINIMAL_ENVIRONMENT, MINIMAL)
    _add(found, login_environment(identity), LOGIN)
    current = f"{app.deploy_to}/current"
    if tree := environment.tree(app, current, copied=parts.copies_scripts(app)):
        for layer in directories.read(machine, tree, app.name, service.name):
            _add(found, layer.variables, layer.name)
    later = []
    for secret in _secrets(machine, app, service):
        if secret.name is None:
            later.append(secret)
        else:
            found[secret.name] = secret
    _add(found, dict(service.env), CONFIGURED)
    _add(found, {leftovers.VARIABLE: str(machine.real(config.runit.definitions) / f"{app.name}.{service.name}")}, AGENT)
    _add(found, _shims(machine, app, service, found, identity), SHIMS)
    return [*(found[name] for name in sorted(found)), *later]


def text(variables: Iterable[Variable]) -> str:
    """The variables for people, one a line."""
    rows = [[one.name or "(more)", _shown(one), one.origin] for one in variables]
    return table(rows, ["NAME", "VALUE", "FROM"])


def _shown(one: Variable) -> str:
    if one.secret:
        return SHOWN if one.name else "(secret, not fetched yet)"
    if one.value is None:
        return "(unset)"
    return (
        one.value.encode("unicode_escape", errors="surrogatepass").decode()
        if not one.value.isprintable()
        else one.value
    )


def _add(found: dict[str, Variable], variables: Mapping[str, str | None], origin: str) -> None:
    found.update({name: Variable(name, value, origin) for name, value in variables.items()})


def _secrets(machine: Machine, app: App, service: Service) -> list[Variable]:
    """Those that are there, else those that will be, as far as that is known."""
    own = service.name if service in app.services else "*"
    place = environment.secrets_place(app.name, replace(service, name=own))
    if place is None:
        return []
    if there := secrets.origins(machine, place):
        return [Variable(name, None, origin, secret=True) for name, origin in there.items()]
    asked = [Asked(one.name, one.origin) for one in service.secrets]
    return [Variable(one.own_name, None, one.origin, secret=True) for one in asked]


def _shims(
    machine: Machine, app: App, service: Service, found: Mapping[str, Variable], identity: Identity | None
) -> dict[str, str | None]:
    """What a version manager's shims change, as the service step finds them."""
    current = machine.real(f"{app.deploy_to}/current")
    place = machine.real(service.directory) if service.directory.startswith("/") else current / service.directory
    places = (place, *(above for above in place.parents if above.is_relative_to(current)))
    given = {name: one.value for name, one in found.items() if not one.secret}
    shims = runtimes.find(machine, service.runtime, places, identity=identity, env=given)
    return dict(shims.over(given)) if shims else {}


def _chosen(machine: Machine, config: Config, wanted: str) -> tuple[App, Service]:
    every = [(app, service) for app in config.apps for service in _services(machine, app)]
    names = [f"{app.name}.{service.name}" for app, service in every]
    found = [one for one, name in zip(every, names, strict=True) if wanted in (name, one[1].name)]
    if len(found) == 1:
        return found[0]
    if found:
        both = ", ".join(f"{app.name}.{service.name}" for app, service in found)
        raise UsageError(f"which service {wanted!r}? There are {both}")
    raise UsageError(f"this role has no service {wanted!r}; it has {', '.join(sorted(names)) or 'none'}")


def _services(machine: Machine, app: App) -> list[Service]:
    """Those configured, and those that the release brings by itself."""
    configured = {service.name: service for service in app.services}
    root, relative = machine.real(f"{app.deploy_to}/current"), app.release_services
    if parts.copies_scripts(app):
        root, relative = machine.real(parts.scripts(app)), "."
    brought = [replace(app.unnamed, name=name) for name in _brought(root, relative) if name not in configured]
    return [one for one in (*app.services, *brought) if app.only is None or one.name in app.only]


def _brought(root: Path, relative: str) -> list[str]:
    names = beneath.subdirectories(root, relative) if root.is_dir() else []
    return [name for name in names if not name.startswith(".")]
