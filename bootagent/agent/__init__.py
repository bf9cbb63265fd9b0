"""The agent: read, resolve, plan, carry out, record. Boot, reconfigure, rollback, recovery and stop are this one path.

- ``request.py``: what is asked for, and how it ended
- ``story.py``: a run from its lock to its record
- ``reading.py``: to a plan, forward or back; ``stopping.py``: a stop, planned and carried out
- ``deployment.py``: a plan carried out, and gone back on where it fails
- ``work.py``: what all of them have at hand; ``memory.py``: what is known from run to run
"""

from __future__ import annotations

from bootagent.agent.request import CONFIGURING, Ending, Outcome, Request
from bootagent.agent.story import run

__all__ = ["CONFIGURING", "Ending", "Outcome", "Request", "run"]
