"""How traffic reaches this instance.

- ``registrations.py``: what this instance has told balancers of itself
- ``held_address.py``, ``elastic_ip.py``: which elastic IP it was given, and the calls for it
- ``balancers.py``: the calls of both kinds of Elastic Load Balancing
- ``admission.py``: tell balancers and wait for their verdict; have them let go and wait until they have
"""

from __future__ import annotations

from bootagent.traffic.admission import admit, dismiss, is_admitted

__all__ = ["admit", "dismiss", "is_admitted"]
