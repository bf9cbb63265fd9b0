"""The disks that the tests' machines boot from: Debian 12 with the project's own package baked into it.

Built when first wanted and kept in ``$XDG_CACHE_HOME/bootagent/boot``, named by everything they are made of: the list
of packages, the files of the test's hand, and the ``.deb``. Several test processes may want them at once.

There is no initrd: Debian's cloud kernel has NVMe and ext4 built in, and so the root is an NVMe disk, as on EC2.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

CHECKOUT = Path(__file__).parents[2]
GUEST = Path(__file__).with_name("guest")
BAKE = CHECKOUT / "packaging/bake"
SUITE = "bookworm"
#: What the host must have, by the Debian packages it comes in.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "ganesha.nfsd": "nfs-ganesha nfs-ganesha-vfs",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "socat": "socat",
}

Init = Literal["systemd", "runit"]
_COMMON = ["udev", "kmod", "mount", "procps", "iproute2", "linux-image-cloud-amd64", "tiny-initramfs"]
_COMMON += ["python3", "ca-certificates", "zstd", "runit"]
_STORAGE = ["nfs-common", "xfsprogs", "git"]
_DATABASES = ["redis-server"]
PACKAGES: dict[Init, list[str]] = {
    "systemd": [*_COMMON, "systemd", "systemd-sysv", "runit-run", "cloud-init", *_STORAGE, *_DATABASES],
    "runit": [*_COMMON, "runit-init"],
}
#: Nobody reads them in a machine that lives for a minute.
_LEFT_OUT = ["/usr/share/locale/*"]
#: What would start by itself while a machine of the tests is up, waits for a terminal it does not have, or costs the
#: emulated processor seconds for what nothing here uses.
_MASKED = ["serial-getty@ttyS0.service", "getty@tty1.service", "getty-static.service", "systemd-timesyncd.service"]
_MASKED += ["apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "e2scrub_all.timer"]
_MASKED += ["e2scrub_reap.service", "systemd-pstore.service", "systemd-binfmt.service", "systemd-update-utmp.service"]
_MASKED += ["proc-sys-fs-binfmt_misc.automount", "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount"]
_MASKED += ["sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount"]
_MASKED += ["systemd-sysusers.service", "systemd-update-utmp-runlevel.service", "systemd-random-seed.service"]
_MASKED += ["systemd-network-generator.service", "systemd-sysctl.service", "kmod-static-nodes.service"]
_MASKED += [f"modprobe@{module}.service" for module in ("configfs", "dm_mod", "efi_pstore", "fuse", "loop", "drm")]
# NFS 4 needs none of what mounts by older versions wait for.
_MASKED += ["rpcbind.service", "rpcbind.socket", "nfs-client.target", "rpc-statd-notify.service"]
_MASKED += ["var-lib-nfs-rpc_pipefs.mount", "auth-rpcgss-module.service"]
# What runs is for bootagent to say.
_MASKED += ["redis-server.service"]
_SIZE = "3G"
_UNUSED_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class Image:
    """A pristine disk (raw; to be used as the backing file of overlays) and the kernel it boots with.

    ``seconds`` is how long it took to make, or to find it made.
    """

    disk: Path
    kernel: Path
    init: Init
    seconds: float = 0.0


def missing() -> str:
    """Why images cannot be built here; "" when they can."""
    lacking = sorted(package for tool, package in TOOLS.items() if not shutil.which(tool))
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def built(init: Init, deb: Path) -> Image:
    """The image of a machine with ``init`` and the package ``deb``; quick when there is one already."""
    began = time.monotonic()
    base_key = _digest(" ".join([SUITE, *PACKAGES[init], *_LEFT_OUT]))
    key = _digest(base_key, deb.read_bytes(), *map(Path.read_bytes, _sources()))
    base, disk = _cache() / f"{init}-{base_key}.tar", _cache() / f"{init}-{key}.raw"
    image = Image(disk, disk.with_suffix(".vmlinuz"), init)
    with _locked(init):
        _forget_unused(init)
        if not disk.exists():
            if not base.exists():
                _bootstrap(init, base)
            _bake(base, deb, image)
        for file in (base, image.disk, image.kernel):
            os.utime(file)
    return replace(image, seconds=time.monotonic() - began)


def package(output: Path) -> Path:
    """The project's package, built from the work tree as it is now."""
    _run([CHECKOUT / "packaging/build", "--work-tree", "--output", output, "deb"])
    (deb,) = output.glob("*.deb")
    return deb


def _bootstrap(init: Init, base: Path) -> None:
    unfinished = base.with_suffix(".unfinished.tar")
    options = [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    packages = ",".join(PACKAGES[init])
    _run(["mmdebstrap", "--quiet", "--variant=minbase", *options, f"--include={packages}", SUITE, unfinished])
    unfinished.rename(base)


def _bake(base: Path, deb: Path, image: Image) -> None:
    with tempfile.TemporaryDirectory(dir=_cache(), prefix="root-") as place:
        root = Path(place)
        root.chmod(0o755)
        _run(["tar", "--extract", "--file", base, "--numeric-owner", "--directory", root])
        _configure(root)
        _run([BAKE, root, "--deb", deb, "--no-recommends"])
        _furnish(root, image.init)
        shutil.copyfile(deb, root / "opt/testbed/bootagent.deb")
        (kernel,) = (root / "boot").glob("vmlinuz-*")
        shutil.copyfile(kernel, image.kernel)
        unfinished = image.disk.with_suffix(".unfinished")
        _run(["truncate", f"--size={_SIZE}", unfinished])
        _run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", root, unfinished])
        unfinished.rename(image.disk)


def _configure(root: Path) -> None:
    place = root / "etc/bootagent/conf.d"
    place.mkdir(parents=True)
    shutil.copy(GUEST / "testbed.toml", place)


def _furnish(root: Path, init: Init) -> None:
    """The machine's own settings, and the test's hand in it."""
    hand = root / "opt/testbed"
    hand.mkdir()
    for name in ("hand.py", "witness.py", "furnish", "network", "init", "nfs.toml", "modes.toml", "fleet.toml"):
        shutil.copy(GUEST / name, hand)
    (root / "etc/hostname").write_text("testbed\n")
    # An image has none, and on its first boot systemd then presets all units once more, for a second.
    (root / "etc/machine-id").write_text(f"{_digest('testbed')}{_digest('machine')}\n")
    (root / "etc/fstab").write_text("/dev/nvme0n1 / ext4 defaults 0 0\n")
    if init == "systemd":
        shutil.copy(GUEST / "hand.service", root / "etc/systemd/system")
        for interface in ("eth0", "eth1"):
            shutil.copy(GUEST / f"{interface}.network", root / "etc/systemd/network")
        coldplug = root / "etc/systemd/system/systemd-udev-trigger.service.d"
        coldplug.mkdir()
        shutil.copy(GUEST / "coldplug.conf", coldplug)
        _run(["systemctl", "--root", root, "--quiet", "enable", "hand.service", "systemd-networkd.service"])
        _run(["systemctl", "--root", root, "--quiet", "mask", *_MASKED])
    else:
        shutil.copy(GUEST / "testbed.init", root / "etc/init.d/testbed")
        _run(["chroot", root, "update-rc.d", "testbed", "defaults"])
        service = root / "etc/sv/testbed"
        service.mkdir()
        shutil.copy(GUEST / "testbed.run", service / "run")
        # Not by way of /etc/service: its links are absolute, and would lead out of this root.
        enabled = root / "etc/runit/runsvdir/default"
        (enabled / "testbed").symlink_to("/etc/sv/testbed")
        for terminal in enabled.glob("getty-*"):
            terminal.unlink()


def _sources() -> list[Path]:
    return [Path(__file__), BAKE, *sorted(path for path in GUEST.iterdir() if path.is_file())]


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = home / "bootagent/boot"
    place.mkdir(parents=True, exist_ok=True)
    return place


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    with (_cache() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_unused(init: Init) -> None:
    for file in _cache().glob(f"{init}-*"):
        if file.stat().st_mtime < time.time() - _UNUSED_SECONDS:
            file.unlink()


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def _run(argv: Sequence[str | Path]) -> None:
    done = subprocess.run(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}:\n{done.stdout.decode(errors='replace')}")
