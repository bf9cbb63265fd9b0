"""What every step is."""

from __future__ import annotations

from typing import Protocol

from bootagent.machine import Machine


class Step(Protocol):
    """One thing to be true of the machine.

    ``str(step)`` is a plain sentence in the imperative, which ``plan`` prints.
    """

    def is_satisfied(self, machine: Machine) -> bool:
        """Whether it is so already: equal, not merely present."""

    def apply(self, machine: Machine) -> None:
        """Make it so, under a deadline of its own; safe to run again after a crash. Raises BootagentError."""
