"""The plug is pulled at random moments; the next boot finds a whole release, or none, and ends in the right state.

What it stands for: qemu is killed. All of the guest's memory is lost, with everything it had not yet written; and of
what it had written but not told the disk to flush, some may be lost too, for qemu keeps part of its tables of the disk
in memory until then. What it flushed stays: a disk that lies about flushing is not simulated, nor one that tears a
block. EBS is kinder: it keeps every write that it has taken.

Chains of cuts run side by side: each chain is one machine, which the plug is pulled from again and again. The first one
boots with systemd, the others with guest/init, in a third of the time.
"""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.boot.guest.witness import tree_digest
from tests.boot.image import Image
from tests.boot.report import CUT, CUTS
from tests.boot.scene import Scene, wait_for_version
from tests.boot.vm import PATIENCE, Vm

pytestmark = pytest.mark.timeout(3600)
CHAIN = 5
#: Enough files, over a wire slow enough, for each part of the agent's work to take its time.
FILES, FILE_BYTES = 200, 4000
WIRE = 150_000
WITNESS = ("python3", "-IS", "/opt/testbed/witness.py", "/srv/web")

#: What the console shows when a part of the agent's work begins, and for how many seconds the plug may stay in then.
MOMENTS: dict[str, tuple[str, float]] = {
    "while it starts and reads": ('"event": "begun"|"event": "run-begin"', 5.0),
    "while it pulls": ('"intent": "deploy"', 4.0),
    "while it switches": ('"step": "write REVISION', 0.7),
    "while it starts the services": ('"step": "point /srv/web/current', 3.0),
    "just after it was done": ('"event": "run-end"', 1.0),
}
EARLY = "before the agent"
BOOT, FIRST, RECONFIGURE, EARLY_BOOT = "a boot", "a first boot", "a reconfigure", "an early boot"
#: The cuts of a chain, in this order. The one of a boot hits the recovery from the cut before it.
KINDS = [FIRST, RECONFIGURE, BOOT, RECONFIGURE, EARLY_BOOT]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cuts = metafunc.config.getoption("--cuts", CUTS)
    lengths = [min(CHAIN, cuts - begun) for begun in range(0, cuts, CHAIN)]
    metafunc.parametrize(("chain", "length"), list(enumerate(lengths)), ids=[f"chain{n}" for n in range(len(lengths))])


def test_power_cuts(
    scene: Scene,
    systemd_image: Image,
    chain: int,
    length: int,
    pytestconfig: pytest.Config,
    testrun_uid: str,
    record_property: Callable[[str, object], None],
) -> None:
    seed = pytestconfig.getoption("--cuts-seed", "") or testrun_uid[:8]
    vm = scene.machine(systemd_image, f"chain{chain}")
    vm.kernel_words = ("testbed.witness=/srv/web", *(() if chain == 0 else ("init=/opt/testbed/init",)))
    story = Story(scene, vm, random.Random(f"{seed}/{chain}"))
    scene.wire.bytes_per_second = WIRE
    unproven: list[dict[str, object]] = []
    try:
        for number in range(length):
            kind = KINDS[number % len(KINDS)]
            moment = story.cut(kind)
            unproven.append({"seed": seed, "kind": kind, "moment": moment, "lost": True})
            record_property(CUT, unproven[-1])
            print(f"cut {number + 1} of chain {chain}, seed {seed}: {kind}, {moment}")
            if number + 1 == length or KINDS[(number + 1) % len(KINDS)] != BOOT:
                story.recover()
                for told in unproven:
                    told["lost"] = False
                unproven.clear()
    except BaseException:
        print(f"\n--- console of {story.vm.name}\n{story.vm.console_tail()}")
        raise
    finally:
        story.vm.plug()


class Story:
    """One machine's life: releases are published, the plug is pulled, it boots again."""

    def __init__(self, scene: Scene, vm: Vm, chance: random.Random) -> None:
        self.scene = scene
        self.vm = vm
        self.chance = chance
        self.published: dict[str, str] = {}  # version → digest of the release's tree
        self.newest = ""
        self.ever_active = False

    # --- cutting -----------------------------------------------------------------------------------------------

    def cut(self, kind: str) -> str:
        """Have the agent deploy something new in a boot or a reconfigure, and pull the plug; in which part of it."""
        self.publish()
        heard = 0
        if kind == RECONFIGURE:
            heard = len(self.vm.console_text())
            self.vm.check("sh", "-c", "bootagent reconfigure --log json </dev/null >/dev/console 2>&1 &")
        else:
            self.vm.plug()  # at rest, if it is on
            self.vm.start()
        if kind == EARLY_BOOT:
            time.sleep(self.chance.uniform(1, 8))
        else:
            if kind == BOOT:
                self.check_what_the_cut_left(self.vm.json("cat", "/run/witness.json"))
            self._wait_for(*self.chance.choice(list(MOMENTS.values())), heard)
        self.vm.plug()
        return part_of(self.vm.console_text()[heard:])

    def _wait_for(self, pattern: str, most: float, heard: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, (text := self.vm.console_text()[heard:])) and '"event": "run-end"' not in text:
            assert time.monotonic() < deadline, f"the agent never came to {pattern}:\n{self.vm.console_tail()}"
            time.sleep(0.02)
        time.sleep(self.chance.uniform(0, most))

    # --- looking -----------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Boot again: what the cut left must be sound, and what the agent makes of it right."""
        self.vm.start()
        wait_for_version(self.vm, self.newest)
        self.check_what_the_cut_left(self.vm.json("cat", "/run/witness.json"))
        ended = self.vm.json("bootagent", "status", "--json", "--wait", str(PATIENCE))
        assert ended["exit_code"] == 0, ended
        self.check_converged(self.vm.json(*WITNESS))
        self.ever_active = True

    def check_what_the_cut_left(self, found: Any) -> None:
        """Before the agent of the next boot did anything: ``current`` is a whole release, or there never was one."""
        sound = set(self.published.values())
        if found["current"] is None:
            assert not self.ever_active, f"current is gone: {found}"
            return
        name = self._release_of(found["current"])
        assert name in found["releases"], f"current dangles: {found}"
        assert found["releases"][name] in sound, f"current is no whole release: {found}"

    def check_converged(self, found: Any) -> None:
        """The newest release serves, each one kept is good and whole, and nothing half-made is left."""
        sound = set(self.published.values())
        app = found["state"]["apps"]["web"]
        name = self._release_of(found["current"])
        assert found["releases"][name] == self.published[self.newest], found
        assert app["pending"] is None, found
        assert set(found["releases"].values()) <= sound, f"half a release is left: {found}"
        assert app["releases"][name]["state"] == "good", found
        for release in found["releases"]:
            # Active: switched to, and overtaken by a newer one before it was seen to serve.
            assert app["releases"][release]["state"] in ("good", "active"), found
        left = self.vm.check("sh", "-c", "ls -A /srv/web /var/lib/bootagent /etc/sv /etc/service")
        hidden = [line for line in left.split() if line.startswith(".") or "tmp" in line or line.endswith("~")]
        assert not hidden, left
        assert self.vm.check("cat", "/etc/sv/web.server/service/supervise/stat").strip() == "run"

    def _release_of(self, link: str) -> str:
        found = re.fullmatch(r"/srv/web/releases/(\d{14})", link)
        assert found, f"current leads to {link}"
        return found[1]

    # --- publishing --------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Publish a release in which every file is another one than before."""
        self.newest = f"v{len(self.published) + 1}"
        files = {
            f"data/{n % 20}/{n}": self.chance.randbytes(FILE_BYTES // 2).hex() + f"{self.newest}\n"
            for n in range(FILES)
        }
        commit = self.scene.publish(self.newest, more=files)
        expected = self.scene.place / f"expected-{self.newest}"
        self._as_released(expected, commit)
        self.published[self.newest] = tree_digest(str(expected))

    def _as_released(self, place: Path, commit: str) -> None:
        """A release as it must look on the machine, made without any code of the agent's."""
        place.mkdir()
        repository = self.scene.place / "repositories/web"
        archive = subprocess.run(
            ["git", "-C", str(repository), "archive", commit], check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "--extract", "--directory", str(place)], input=archive, check=True)
        (place / "REVISION").write_text(f"{commit}\n")
        (place / "log").symlink_to("/srv/web/shared/log")


def part_of(console: str) -> str:
    """The part of its work that the agent was in, as far as it had told."""
    begun = [(found[-1].start(), name) for name, (pattern, _) in MOMENTS.items() if (found := _all(pattern, console))]
    return max(begun)[1] if begun else EARLY


def _all(pattern: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(pattern, text))
