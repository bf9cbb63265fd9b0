"""What can be told without changing anything: facts as plain data, and as text for people."""

from __future__ import annotations

from typing import Any

Facts = dict[str, Any]
