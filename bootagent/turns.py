"""What comes after what, in turns: those of one turn may go side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from graphlib import TopologicalSorter


def turns(after: Mapping[str, Collection[str]]) -> list[list[str]]:
    """All names, in groups; each comes in a later one than those it is ``after``, as far as they are there.

    Raises graphlib.CycleError, which is a ValueError.
    """
    order = TopologicalSorter({name: [other for other in others if other in after] for name, others in after.items()})
    order.prepare()
    found = []
    while order.is_active():
        ready = order.get_ready()
        order.done(*ready)
        found.append(sorted(ready))
    return found
