"""The interpreter's own sockets and signals, without what the standard library wraps around them.

Those wrappers bring enum, selectors and collections along: a seventh of what the daemon may keep for ever.
"""

import _socket as socket

# typeshed knows it only by its wrapper.
import _signal as signal  # type: ignore[import-not-found]  # isort: skip

__all__ = ["signal", "socket"]
