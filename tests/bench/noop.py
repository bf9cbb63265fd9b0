"""A rerun with nothing to do, against one ``aws s3api head-object``: what polling a fleet costs each instance.

    python -m tests.bench.noop [--runs N] [--json]

Both talk to the same simulated S3 on this machine and run in turn, so that their ratio holds while the machine's speed
drifts. The target is a ratio of at most 0.5.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.supervisor import Supervisor
from tests.host.stage import BUCKET, Stage

TARGET = 0.5


def main() -> int:
    """Measure, print, and say whether the target was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="counted runs of each (default 10)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    aws = shutil.which("aws", path=sysconfig.get_path("scripts")) or shutil.which("aws")
    if aws is None:
        sys.exit("no aws: pip install 'bootagent[bench]'")
    with tempfile.TemporaryDirectory(prefix="bootagent-bench-") as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        with (
            Cloud(tags={"Role": "web", "Environment": "staging"}) as cloud,
            Supervisor(root / "etc/service", log=root / "runsvdir.log"),
        ):
            stage = Stage(cloud, root)
            web = stage.app()
            stage.configure(web.config())
            web.publish("one")
            environment = cloud.process_environment()
            ours = [sys.executable, "-m", "bootagent", "reconfigure", "--root", str(root)]
            subprocess.run(ours, env=environment, check=True, capture_output=True)
            time.sleep(0.5)
            theirs = [aws, "s3api", "head-object", "--bucket", BUCKET, "--key", web.key]
            times = _in_turn({"reconfigure": ours, "head-object": theirs}, environment, options.runs)
    ratio = statistics.median(a / b for a, b in zip(times["reconfigure"], times["head-object"], strict=True))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    medians = {name: round(statistics.median(seconds) * 1000) for name, seconds in times.items()}
    if options.json:
        print(json.dumps({"ms": medians, "ratio": round(ratio, 3), "target": TARGET, "peak_mib": peak}))
    else:
        for name, median in medians.items():
            print(f"{name:12} {median:5} ms")
        print(f"ratio        {ratio:5.2f}    (target {TARGET}; the largest process of either took {peak} MiB)")
    return 0


def _in_turn(commands: dict[str, list[str]], environment: dict[str, str], runs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if turn:  # the first is a warm-up
                times[name].append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(main())
