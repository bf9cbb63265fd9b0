"""Service directories and their links, gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bootagent.deadline import NO_HURRY, Deadline
from bootagent.errors import ServiceError
from bootagent.machine import Machine
from bootagent.services import runit, servicedir


@dataclass(frozen=True)
class RemovedServices:
    """``app`` has no service directory below ``definitions``, no link in ``service_dir``, and no runsv.

    ``services`` are those that are known, each with the seconds it may take to stop, should it be up; ``until`` may
    leave them less.
    """

    app: str
    definitions: str
    service_dir: str
    services: tuple[tuple[str, float], ...]
    until: Deadline = NO_HURRY

    def __str__(self) -> str:
        named = f" ({', '.join(name for name, _ in self.services)})" if self.services else ""
        return f"remove the service directories of {self.app}{named}"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether they are gone."""
        links = (machine.real(self.service_dir) / name for name, _ in self.services)
        installed = servicedir.installed(machine, self.definitions, self.app)
        return not installed and not any(link.is_symlink() for link in links)

    def apply(self, machine: Machine) -> None:
        """Take them down and away. Raises ServiceError for a runsv that stays."""
        within = dict(self.services)
        for name in servicedir.installed(machine, self.definitions, self.app):
            within.setdefault(name, servicedir.patience(machine, self.definitions, name))
        names = sorted(within)
        root = machine.real(self.definitions)

        def remove(name: str) -> bool:
            seconds = self.until.grant(within[name])
            servicedir.remove(machine, self.definitions, self.service_dir, name, within=seconds)
            return not runit.is_supervised(root / name)

        with ThreadPoolExecutor(max(1, len(names))) as pool:
            gone = list(pool.map(remove, names))
        if still := [name for name, is_gone in zip(names, gone, strict=True) if not is_gone]:
            raise ServiceError(f"its runsv does not end: {', '.join(still)}")
