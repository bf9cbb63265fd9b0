"""The resident agent: it runs the agent in a child at boot, and then watches.

- ``launch.py``: how the command turns into ``__main__.py``, a process with nothing loaded but what it needs
- ``resident.py``: the loop: one child at a time, what is due when, signals
- ``lookout.py``: when to look for notices, and what they say of the instance's fate
- ``notices.py``: what instance metadata announces: told to die, or to expect it
- ``child.py``: the processes it starts, and what they tell it
- ``escorts.py``: the process beside a run or a stop that answers the autoscaling group
- ``bare.py``: sockets and signals at their smallest
- ``manager.py``: what the service manager is told (sd_notify); ``log.py``: its own log

It stays for as long as the instance does, so it keeps to the standard library's smallest modules: AWS, HTTP and JSON
are the children's, who give their memory back.
"""
