"""Which hooks the configuration names, and which instance this is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootagent import instance, state, survey
from bootagent.config import coordinates, resolve, services
from bootagent.config.document import Document
from bootagent.config.model import Lifecycle
from bootagent.instance import Instance, Overrides
from bootagent.machine import Machine


@dataclass(frozen=True)
class Place:
    """A machine with a configuration that names hooks; ``tags`` are those of the command line."""

    machine: Machine
    document: Document
    lifecycle: Lifecycle
    tags: Mapping[str, str]

    def instance(self) -> Instance:
        """The instance with the tags it has by now. Raises MetadataError, ConfigError."""
        remembered = state.load(self.machine).tags_on
        overrides = Overrides(self.tags, resolve.default_tags(self.document), remembered)
        return instance.read(overrides, lambda seen: set(), within=resolve.metadata_within(self.document))

    def diagnosis(self, here: Instance) -> str | None:
        """The s3:// prefix for diagnoses, as far as it can be filled in: much may be unknown after a failure."""
        wanted, keys = self.lifecycle.diagnosis, self.document.tables["tags"]
        if wanted is None:
            return None
        values = {**here.coordinates(), **{f"tag:{key}": value for key, value in here.tags.items()}}
        values |= {name: here.tags.get(keys[name], "") for name in ("role", "environment")}
        try:
            return coordinates.fill(wanted, values, strict=True).rstrip("/")
        except ValueError:
            return wanted.partition("{")[0].rstrip("/")


def read(machine: Machine, config: Path, tags: Mapping[str, str]) -> Place | None:
    """The place; None when the configuration has nothing to do with hooks. Raises ConfigError."""
    document = survey.load_document(config)
    lifecycle = services.lifecycle(document.tables.get("lifecycle"))
    return Place(machine, document, lifecycle, tags) if lifecycle else None
