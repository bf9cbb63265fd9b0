"""An app's secrets, as they are kept now, where its services find them."""

from __future__ import annotations

from dataclasses import dataclass, field

from bootagent.environment import fetch, secrets
from bootagent.environment.concealed import Concealed
from bootagent.environment.fetch import Asked, Store
from bootagent.environment.secrets import Secret
from bootagent.errors import BootagentError
from bootagent.machine import Machine, Note


@dataclass(frozen=True)
class ServiceSecrets:
    """``place`` holds what is ``asked`` for, but not those variables that the configuration itself sets."""

    place: str
    asked: tuple[Asked, ...]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class FetchedSecrets:
    """Each of ``services`` has its secrets, all of them or, if one cannot be had, those it had before.

    They are asked for once in the life of a step, which is a run: for all services together, to see whether they are
    as they should be. What was got is not shown, and does not count when steps are compared. ``or_at_hand``: when they
    cannot be had, which is told, those from before will do, if each service has some.
    """

    app: str
    services: tuple[ServiceSecrets, ...]
    region: str | None
    or_at_hand: bool = False
    _got: list[Store] = field(default_factory=list, init=False, repr=False, compare=False)

    def __str__(self) -> str:
        origins = dict.fromkeys(asked.origin for one in self.services for asked in one.asked)
        return f"fetch the secrets of {self.app} ({', '.join(origins)})"

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether they are what AWS has now. Raises AwsError when it does not say."""
        try:
            return not self._stale(machine)
        except BootagentError as error:
            if not (self.or_at_hand and self.are_there(machine)):
                raise
            machine.tell(Note(f"the secrets of {self.app} are those from before", {"why": str(error)}))
            return True

    def are_there(self, machine: Machine) -> bool:
        """Whether each service has secrets, be they what AWS has now or not. It is not asked."""
        return all(secrets.read(machine, one.place) is not None for one in self.services)

    def apply(self, machine: Machine) -> None:
        """Write those that differ, each service's at once. Raises AwsError or BootagentError before the first."""
        for one, wanted in self._stale(machine):
            secrets.write(machine, one.place, wanted)

    def _stale(self, machine: Machine) -> list[tuple[ServiceSecrets, dict[str, Secret]]]:
        wanted = [(one, self._wanted(machine, one)) for one in self.services]
        return [(one, found) for one, found in wanted if secrets.read(machine, one.place) != _values(found)]

    def _wanted(self, machine: Machine, one: ServiceSecrets) -> dict[str, Secret]:
        if not self._got:
            asked = [asked for each in self.services for asked in each.asked]
            within = 0.0 if self.or_at_hand and self.are_there(machine) else fetch.PATIENCE_SECONDS
            self._got.append(fetch.fetch(machine, asked, self.region, within))
        found = fetch.variables(self._got[0], one.asked)
        return {name: secret for name, secret in found.items() if name not in one.without}


def _values(found: dict[str, Secret]) -> dict[str, Concealed]:
    return {name: secret.value for name, secret in found.items()}
