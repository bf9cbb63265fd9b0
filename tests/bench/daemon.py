"""What the resident agent costs while nothing happens: memory, and processor time for each look at the metadata.

    python -m tests.bench.daemon [--looks N] [--json]

It runs on the system's own Python, as a package does, against the simulated metadata service, with a run behind it.
The peer is a bare interpreter that sleeps. Targets: at most 12 MiB resident, 8 MiB proportional (shared pages are
divided among those that map them), 100 µs a request.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bootagent.daemon.notices import PATHS
from bootagent.sandbox.cloud import Cloud

PYTHON = "/usr/bin/python3"
PACKAGE = Path(__file__).parents[2]
TARGETS = {"rss_mib": 12.0, "pss_mib": 8.0, "cpu_us_per_request": 100.0}
#: Looks again and again as the daemon does every five seconds, and tells its processor time for each request.
LOOKING = """
import sys, time
sys.path.insert(0, sys.argv[1])
from bootagent.daemon import notices
url, looks, token = sys.argv[2], int(sys.argv[3]), ""
found, token = notices.read(url, token, {})
began = time.process_time()
for _ in range(looks):
    found, token = notices.read(url, token, {})
print((time.process_time() - began) / looks / len(notices.PATHS) * 1e6)
"""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", type=int, default=500, metavar="N", help="looks to measure (default 500)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with Cloud(tags={"Role": "web"}) as cloud, tempfile.TemporaryDirectory(prefix="bootagent-bench-") as root:
        bare = [PYTHON, "-I", "-S", "-c", "import time; time.sleep(600)"]
        program = str(PACKAGE / "bootagent/daemon/__main__.py")
        daemon = [PYTHON, "-I", "-S", program, "--root", root, "--", "--log", "json", "--", "/bin/true"]
        environment = {"PATH": os.environ["PATH"], **cloud.environment()}
        subprocess.run([PYTHON, "-m", "compileall", "-q", str(PACKAGE / "bootagent/daemon")], check=True)
        memory = {name: _memory(argv, environment) for name, argv in {"bare": bare, "daemon": daemon}.items()}
        looking = [PYTHON, "-I", "-S", "-c", LOOKING, str(PACKAGE), cloud.metadata.endpoint, str(options.looks)]
        microseconds = float(subprocess.run(looking, capture_output=True, check=True, text=True).stdout)
    found = {**memory["daemon"], "cpu_us_per_request": round(microseconds, 1)}
    if options.json:
        print(json.dumps({"daemon": found, "bare": memory["bare"], "targets": TARGETS}))
        return 0
    for name, value in found.items():
        beside = f", a bare interpreter {memory['bare'][name]:.1f}" if name in memory["bare"] else ""
        print(f"{name:20} {value:6.1f}   (target {TARGETS[name]:g}{beside})")
    print(f"A look is {len(PATHS)} requests on one connection.")
    return 0


def _memory(argv: list[str], environment: dict[str, str]) -> dict[str, float]:
    """What a process holds after ten seconds, when it has come to rest."""
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(10)
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in rollup if line.endswith("kB")}
    finally:
        process.terminate()
        process.wait()
    return {"rss_mib": round(kilobytes["Rss"] / 1024, 2), "pss_mib": round(kilobytes["Pss"] / 1024, 2)}


if __name__ == "__main__":
    sys.exit(main())
