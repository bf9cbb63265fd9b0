"""The lifecycle hooks of the autoscaling group that this instance is in, answered without queues.

- ``group.py``: what Auto Scaling is asked and told
- ``place.py``: which hooks are ours, and who we are
- ``escort.py``: goes beside the runs and the stop of the daemon: the answer at the end
- ``heart.py``: the heartbeats meanwhile
- ``verdict.py``: what the runs' ends say of a launch
- ``diagnosis.py``: what is stored of a launch that is given up

Nothing is remembered but since when a launch waits: whether it does, and for which hook, is asked of AWS each time.
"""
