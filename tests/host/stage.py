"""A machine with one or more apps on it, for the tests of the agent: config, bundles, and what came of them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bootagent.pointer import Pointer
from bootagent.sandbox.cloud import Cloud
from bootagent.services import runit

BUCKET = "deploys"
#: Root in the tests' own machine runs the apps as this user; anybody else runs them as himself.
USER = "nobody"
SERVER = """\
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(open("VERSION", "rb").read())
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
Tree = Mapping[str, str | bytes]


_OWN = socket.socket(socket.AF_UNIX)


@functools.cache
def _ports() -> Iterator[int]:
    """Below those the kernel gives to whoever asks for any, so that no client or other server takes one before its
    service does. Each test process has its own: they are whose who holds a name, which goes with the process.
    """
    for start in range(20000, 32000, 400):
        with contextlib.suppress(OSError):
            _OWN.bind(f"\0bootagent tests at {start}")
            return itertools.cycle(range(start, start + 400))
    raise RuntimeError("too many tests run at once: no ports are left")


def free_port() -> int:
    """A port of this machine that nobody listens on, and nobody else will be given soon."""
    while True:
        port = next(_ports())
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def tar(tree: Tree, *, executables: tuple[str, ...] = ()) -> bytes:
    """An uncompressed archive of a tree; names that end in ``run``, ``prepare`` and the like are executable."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in sorted(tree.items()):
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o755 if data.startswith(b"#!") or name in executables else 0o644
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def compressed(archive: bytes, suffix: str) -> bytes:
    tool = {".tar": ["cat"], ".tar.gz": ["gzip", "-c"], ".tar.zst": ["zstd", "-qc"], ".tar.xz": ["xz", "-c"]}[suffix]
    return subprocess.run(tool, input=archive, stdout=subprocess.PIPE, check=True).stdout


class App:
    """One app: its place, its port, and how to publish versions of it."""

    def __init__(self, cloud: Cloud, root: Path, name: str) -> None:
        self.cloud = cloud
        self.root = root
        self.name = name
        self.port = free_port()
        self.deploy_to = root / "srv" / name

    @property
    def key(self) -> str:
        return f"{self.name}/staging.json"

    def tree(self, version: str, **more: str | bytes) -> dict[str, str | bytes]:
        return {"VERSION": version, "server.py": SERVER, **{k.replace("__", "/"): v for k, v in more.items()}}

    def publish(self, version: str, tree: Tree | None = None, **wrong: Any) -> str:
        """Upload a bundle and point at it; ``wrong`` overrides what the pointer says. Returns its revision."""
        archive = tar(self.tree(version) if tree is None else tree)
        bundle = compressed(archive, ".tar.zst")
        digest = hashlib.sha256(bundle).hexdigest()
        key = f"{self.name}/bundles/{digest[:16]}.tar.zst"
        version_id = self.cloud.put(BUCKET, key, bundle)
        revision = hashlib.sha1(version.encode()).hexdigest()
        says = {
            "bundle": key,
            "sha256": digest,
            "size": len(bundle),
            "revision": revision,
            "created": "2026-11-20T12:00:00Z",
            "version_id": version_id,
            **wrong,
        }
        self.cloud.put(BUCKET, self.key, Pointer(**says).to_json())
        return revision

    def config(
        self, *, extra: str = "", service: str | None = None, user: str | None = USER, url: str = "", source: str = ""
    ) -> str:
        who = f'user = "{user}"' if user else ""
        place = url or f"s3://{BUCKET}/{self.name}/{{environment}}.json"
        source = source or f'{{ type = "s3", url = "{place}" }}'
        default = f"""
[apps.{self.name}.services.server]
command = ["python3", "server.py"]
env = {{ PORT = "{self.port}" }}
stable_for = "300ms"
stop_within = "3s"
check = {{ http = "http://127.0.0.1:{self.port}/", within = "4s" }}
"""
        return f"""
[apps.{self.name}]
deploy_to = "/srv/{self.name}"
{who}
source = {source}
{extra}
{default if service is None else service}
"""

    # --- what came of it ---------------------------------------------------------------------------------------

    @property
    def current(self) -> str:
        return (self.deploy_to / "current").resolve(strict=True).name

    @property
    def releases(self) -> list[str]:
        return sorted(path.name for path in (self.deploy_to / "releases").iterdir())

    def answer(self, within: float = 5) -> str:
        """What the running service says."""
        deadline = time.monotonic() + within
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2) as response:
                    return str(response.read().decode())
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def service(self, name: str = "server") -> Path:
        return self.root / "etc/sv" / f"{self.name}.{name}" / "service"

    def pid(self, name: str = "server") -> int:
        found = runit.status(self.service(name))
        assert found is not None and found.state == "run", found
        return found.pid


class Stage:
    """The machine: writes its configuration and reads its state."""

    def __init__(self, cloud: Cloud, root: Path) -> None:
        self.cloud = cloud
        self.root = root
        cloud.create_bucket(BUCKET)

    def app(self, name: str = "web") -> App:
        return App(self.cloud, self.root, name)

    def configure(self, *parts: str, roles: str | None = None) -> None:
        names = [
            line[6:-1]
            for part in parts
            for line in part.splitlines()
            if line.startswith("[apps.") and line.count(".") == 1
        ]
        role = roles if roles is not None else f"[roles.web]\napps = {json.dumps(names)}\n"
        path = self.root / "etc/bootagent/config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(parts) + "\n" + role)
        path.chmod(0o600)

    def state(self) -> Any:
        return json.loads((self.root / "var/lib/bootagent/state.json").read_text())

    def release_state(self, app: str, release: str) -> str:
        return str(self.state()["apps"][app]["releases"][release]["state"])
