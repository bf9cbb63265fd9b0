"""A machine that really boots: qemu, a disk of its own, the metadata service at its real address.

Emulated, never accelerated: one processor without KVM boots Debian in ten to twenty seconds on any host.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.boot.guest.hand import HERE
from tests.boot.image import Image
from tests.boot.slots import Slots

#: Everything here runs several times slower when other tests share the processors.
PATIENCE = 300.0
#: How long a boot may take until the test's hand is there.
BOOT_SECONDS = 240.0
_CONSOLE_TAIL = 60


@dataclass(frozen=True)
class Ran:
    """How a program in the guest ended."""

    code: int
    out: str
    err: str


class Disk:
    """What a machine writes, on top of an image that stays pristine."""

    def __init__(self, file: Path, image: Image, backing: Path | None = None) -> None:
        self.file = file
        self.image = image
        kind = ["-b", backing, "-F", "qcow2"] if backing else ["-b", image.disk, "-F", "raw"]
        words = ["qemu-img", "create", "-q", "-f", "qcow2", *map(str, kind), str(file)]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)

    def copied(self, file: Path) -> Disk:
        """Another machine's disk with the same content, as an AMI made of this machine would give; it must be off."""
        frozen = file.with_suffix(".frozen")
        shutil.copyfile(self.file, frozen)
        return Disk(file, self.image, frozen)


@dataclass
class Vm:
    """One machine; a context manager that powers it off the hard way at the end.

    ``metadata`` and ``s3`` are ports on the host's loopback. ``kernel_words`` are added to the kernel's command line.
    In the guest, ``forward`` maps ports to ports on the host.
    """

    name: str
    disk: Disk
    place: Path
    metadata: int
    s3: int
    forward: dict[int, int] = field(default_factory=dict)
    kernel_words: tuple[str, ...] = ()
    instance_id: str = "i-0123456789abcdef0"

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._hand: _Hand | None = None
        self.boots = 0
        #: Where further disks go in and out; what is in them stays over reboots and power cuts.
        self.slots = Slots(self.place / f"{self.name}.qmp", self.is_on)

    # --- power -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Vm:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error:
            print(f"\n--- console of {self.name}\n{self.console_tail()}")
        self.plug()

    def start(self, *kernel_words: str) -> None:
        """Switch it on; returns at once. ``kernel_words`` hold for this boot only."""
        assert self._process is None, "it is on"
        self.boots += 1
        self.console.unlink(missing_ok=True)
        with (self.place / f"{self.name}.qemu").open("wb") as log, self.slots.switched() as slots:
            argv = [*self._argv(kernel_words), *slots]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def plug(self) -> None:
        """Pull the plug: what the guest has not handed to its disk is lost, and so is all of its memory."""
        if self._hand:
            self._hand.close()
            self._hand = None
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def power_off(self) -> None:
        """Shut it down in order, and wait until it is off."""
        self._go_down("poweroff")

    def reboot(self, *kernel_words: str) -> None:
        """Shut it down in order, and switch it on again."""
        self._go_down("reboot")
        self.start(*kernel_words)

    def _go_down(self, how: str) -> None:
        # Not heard to the end: the hand goes down, too.
        with contextlib.suppress(GuestError):
            self.run("sh", "-c", f"(sleep 0.2; {how}) >/dev/null 2>&1 &")
        self.wait_off()

    def wait_off(self, within: float = PATIENCE) -> None:
        """Wait until it has switched itself off."""
        assert self._process
        self._process.wait(within)
        self.plug()

    def _argv(self, kernel_words: tuple[str, ...]) -> list[str]:
        image = self.disk.image
        words = [
            # Clocks that are counted against others while the host is busy come out wrong, and then nothing wakes up.
            "nolapic_timer tsc=unstable",
            "root=/dev/nvme0n1 rw rootwait console=ttyS0 loglevel=5 net.ifnames=0 mitigations=off",
            "systemd.show_status=auto module_blacklist=kvm,kvm_amd,powernow_k8",
            # For whoever waits for it, and for people, when a test fails.
            "systemd.journald.forward_to_console=1",
            f"testbed.s3=http://10.0.2.2:{self.s3}",
            *self.kernel_words,
            *kernel_words,
        ]
        if not any("cloud-init" in word or word.startswith("ci.") for word in words):
            words.append("cloud-init=disabled")
        forward = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in self.forward.items())
        metadata = f"guestfwd=tcp:169.254.169.254:80-cmd:socat - TCP:127.0.0.1:{self.metadata}"
        # fmt: off
        return [
            "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64",
            "-machine", "q35,usb=off,vmport=off,sata=off", "-nodefaults", "-no-user-config",
            "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "512",
            "-display", "none", "-serial", f"file:{self.console}", "-no-reboot",
            "-kernel", str(image.kernel), "-append", " ".join(words),
            # As Nitro instances present themselves: EC2 User Guide, "Identify EC2 instances".
            "-smbios", f"type=1,manufacturer=Amazon EC2,serial={_EC2_UUID},uuid={_EC2_UUID}",
            "-smbios", f"type=2,asset={self.instance_id}",
            # The host's disk is not what is tested: what qemu was given is kept, when the plug is pulled, too.
            "-drive", f"if=none,id=root,file={self.disk.file},format=qcow2,cache=unsafe,discard=unmap",
            "-device", "nvme,drive=root,serial=vol0123456789abcdef0",
            "-netdev", f"user,id=net0,ipv6=off{forward}", "-device", "virtio-net-pci,netdev=net0,romfile=",
            "-netdev", f"user,id=net1,ipv6=off,net=169.254.169.0/24,host=169.254.169.2,dns=169.254.169.3,{metadata}",
            "-device", "virtio-net-pci,netdev=net1,romfile=",
            "-device", "virtio-rng-pci",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=hand,path={self._socket},server=on,wait=off",
            "-device", "virtserialport,chardev=hand,name=hand",
        ]
        # fmt: on

    # --- looking at it, and acting in it -----------------------------------------------------------------------

    @property
    def console(self) -> Path:
        """What it printed on its serial console since it was switched on."""
        return self.place / f"{self.name}.console"

    def console_text(self) -> str:
        """The console's text so far."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def console_tail(self) -> str:
        """The end of it, for people."""
        qemu = (self.place / f"{self.name}.qemu").read_text(errors="replace")
        return "\n".join([*self.console_text().splitlines()[-_CONSOLE_TAIL:], qemu])

    def wait_console(self, pattern: str, within: float = PATIENCE) -> re.Match[str]:
        """Wait until the console shows a regular expression."""
        deadline = time.monotonic() + within
        while not (found := re.search(pattern, self.console_text())):
            assert time.monotonic() < deadline, f"{self.name} never printed {pattern!r}:\n{self.console_tail()}"
            assert self.is_on(), f"{self.name} went off before it printed {pattern!r}:\n{self.console_tail()}"
            time.sleep(0.02)
        return found

    def is_on(self) -> bool:
        """Whether it has not switched itself off."""
        return self._process is not None and self._process.poll() is None

    def run(self, *argv: str, input: str = "", within: float = PATIENCE) -> Ran:
        """Run a program in the guest as root, as soon as it is up far enough for that. Raises GuestError."""
        if self._hand is None:
            # What is sent before the guest's end is open can leave qemu, or the guest, waiting for ever.
            self.wait_console(HERE, BOOT_SECONDS)
            self._hand = _Hand(self._socket)
        return self._hand.run(argv, input, within)

    def check(self, *argv: str, input: str = "", within: float = PATIENCE) -> str:
        """The same for a program that must end well; what it printed."""
        ran = self.run(*argv, input=input, within=within)
        assert ran.code == 0, f"{' '.join(argv)} ended with {ran.code} in {self.name}:\n{ran.out}\n{ran.err}"
        return ran.out

    def json(self, *argv: str, within: float = PATIENCE) -> Any:
        """What a program printed, as JSON; its exit code is not looked at."""
        ran = self.run(*argv, within=within)
        try:
            return json.loads(ran.out)
        except ValueError:
            raise AssertionError(f"{' '.join(argv)} ended with {ran.code}:\n{ran.out}\n{ran.err}") from None

    @property
    def _socket(self) -> Path:
        return self.place / f"{self.name}.sock"


class GuestError(AssertionError):
    """The guest does not answer."""


class _Hand:
    """The host's end of the virtio port; see guest/hand.py."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._asked = 0
        self._socket.connect(str(path))
        self._lines = self._read()

    def run(self, argv: tuple[str, ...], input: str, within: float) -> Ran:
        self._asked += 1
        asked = {"id": self._asked, "argv": argv, "input": input, "timeout": within}
        self._socket.settimeout(within + BOOT_SECONDS)
        try:
            self._socket.sendall(json.dumps(asked).encode() + b"\n")
            for line in self._lines:
                reply = json.loads(line)
                if reply["id"] == self._asked:
                    return Ran(reply["code"], reply["out"], reply["err"])
        except OSError as error:
            raise GuestError(f"no answer to {' '.join(argv)}: {error}") from None
        raise GuestError(f"it went off during {' '.join(argv)}")

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> Iterator[bytes]:
        line = b""
        while data := self._socket.recv(65536):
            *lines, line = (line + data).split(b"\n")
            yield from lines


#: Begins with "ec2", as on EC2.
_EC2_UUID = "ec2e1916-9099-7caf-fd21-012345abcdef"
