"""The agent's own time on the way from a snapshot to a mounted volume, on top of what EC2 takes.

    python -m tests.bench.ebs [--runs N] [--create S] [--attach S] [--json]

The simulated EC2 takes so many seconds to make and to attach a volume; the disk is a loop device, the filesystem a real
xfs. The peer does the same with the AWS command line as teams write it in shell: create-volume, wait
volume-available, attach-volume, a loop until the device is there, mount. Both run in turn. For root only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.loop_host import LoopHost, private_mounts
from bootagent.sandbox.supervisor import Supervisor
from tests.host.stage import Stage

#: What such a script does: EC2 is asked every 15 seconds by "wait", the kernel every second.
SHELL = """
set -e
snapshot=$(aws ec2 describe-snapshots --owner-ids self --filters Name=tag:Name,Values=web Name=status,Values=completed \
    --query 'sort_by(Snapshots,&StartTime)[-1].SnapshotId' --output text)
volume=$(aws ec2 create-volume --snapshot-id "$snapshot" --availability-zone "$ZONE" --query VolumeId --output text)
aws ec2 wait volume-available --volume-ids "$volume"
aws ec2 attach-volume --volume-id "$volume" --instance-id "$INSTANCE" --device /dev/sdf >/dev/null
while ! device=$(grep -ls "vol${volume#vol-}" "$ROOT"/sys/block/*/device/serial); do sleep 1; done
device=${device#"$ROOT/sys/block/"}
mkdir -p "$ROOT/cp"
mount -o noatime,nouuid "$ROOT/dev/${device%%/*}" "$ROOT/cp"
"""
CONFIG = """
[apps.web]
deploy_to = "/srv/web"
user = "nobody"
source = { type = "ebs", snapshot = { Name = "web" }, mountpoint = "/cp" }
[roles.web]
apps = ["web"]
"""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="counted runs of each (default 5)")
    parser.add_argument("--create", type=float, default=1.0, metavar="S", help="what EC2 takes to make a volume")
    parser.add_argument("--attach", type=float, default=2.0, metavar="S", help="what EC2 takes to attach it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    aws = shutil.which("aws", path=sysconfig.get_path("scripts")) or shutil.which("aws")
    if aws is None:
        sys.exit("no aws: pip install 'bootagent[bench]'")
    private_mounts()
    waits = options.create + options.attach
    times: dict[str, list[float]] = {"bootagent": [], "shell": []}
    for turn in range(options.runs + 1):
        for name, command in (("bootagent", _agent), ("shell", lambda root, cloud: _shell(root, cloud, aws))):
            took = _measured(command, options.create, options.attach)
            if turn:  # the first is a warm-up
                times[name].append(took - waits)
    ratio = statistics.median(a / b for a, b in zip(times["bootagent"], times["shell"], strict=True))
    medians = {name: round(statistics.median(seconds), 2) for name, seconds in times.items()}
    if options.json:
        print(json.dumps({"overhead_s": medians, "ratio": round(ratio, 3), "ec2_s": waits}))
    else:
        for name, median in medians.items():
            print(f"{name:10} {median:5.2f} s on top of EC2's own {waits:g} s")
        print(f"ratio      {ratio:5.2f}")
    return 0


def _measured(command: Callable[[Path, Cloud], None], create: float, attach: float) -> float:
    with tempfile.TemporaryDirectory(prefix="bootagent-bench-") as place:
        root = Path(place) / "root"
        root.mkdir()
        Path(place).chmod(0o755)
        with (
            Cloud(tags={"Role": "web", "Environment": "staging"}) as cloud,
            Disks(cloud, LoopHost(root), Path(place) / "disks") as disks,
            Supervisor(root / "etc/service", log=root / "runsvdir.log"),
        ):
            Stage(cloud, root).configure(CONFIG, roles="")
            content = Path(place) / "content"
            (content / "releases/1").mkdir(parents=True)
            (content / "current").symlink_to("releases/1")
            disks.snapshot_of(content, tags={"Name": "web"})
            disks.timing.create, disks.timing.attach = create, attach
            began = time.perf_counter()
            command(root, cloud)
            took = time.perf_counter() - began
            assert (root / "cp/current").is_dir()
            return took


def _agent(root: Path, cloud: Cloud) -> None:
    argv = [sys.executable, "-m", "bootagent", "reconfigure", "--root", str(root)]
    subprocess.run(argv, env=cloud.process_environment(), check=True, capture_output=True)


def _shell(root: Path, cloud: Cloud, aws: str) -> None:
    instance = cloud.instance
    environment = cloud.process_environment() | {
        "ROOT": str(root),
        "ZONE": instance.zone,
        "INSTANCE": instance.instance_id,
        "PATH": f"{Path(aws).parent}:{os.environ['PATH']}",
    }
    subprocess.run(["sh", "-c", SHELL], env=environment, check=True, capture_output=True)


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(main())
