"""An instance of a fleet: an autoscaling group waits for it, a balancer sends it requests, spot takes it away."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field

import pytest

from bootagent import user_data
from bootagent.sandbox.api import Call
from bootagent.sandbox.autoscaling import AutoScaling, Hook
from bootagent.sandbox.balancer_api import LoadBalancing
from bootagent.sandbox.balancer_model import HealthCheck
from bootagent.sandbox.balancers import Balancers
from bootagent.sandbox.metadata import SPOT, USER_DATA
from tests.boot.image import Image
from tests.boot.scene import PORTS, Answer, Scene, ask, wait_for_version
from tests.boot.test_boot import current, ended, is_down, stopped, systemd_says, until
from tests.boot.vm import Vm

pytestmark = pytest.mark.timeout(1800)

READY, DRAINED = Hook("ready", "launching", 300), Hook("drained", "terminating", 300)
#: As guest/fleet.toml has it.
SUSTAINED = 10.0
CGROUP = "/sys/fs/cgroup/bootagent/jobs.worker"
#: At how many bytes a second a release is pulled that would take minutes, and its size.
WIRE, BYTES = 1000, 200_000


@dataclass
class Witness:
    """Hears the calls of the instance; at those that matter it asks the app, as any client would.

    ``seen`` are the calls with what the app said then; None: nobody answered.
    """

    vm: Vm
    seen: list[tuple[str, Answer | None]] = field(default_factory=list)

    def __call__(self, call: Call, is_done: bool) -> None:
        if call.action in ("RegisterTargets", "DeregisterTargets", "CompleteLifecycleAction") and not is_done:
            said = None
            with contextlib.suppress(OSError, ValueError):
                said = ask(self.vm, "jobs")
            self.seen.append((call.action, said))

    def take(self) -> list[tuple[str, str]]:
        """The calls since the last time, each with the version that served."""
        seen, self.seen = self.seen, []
        return [(action, said.version if said else "nothing") for action, said in seen]


def test_life_of_an_instance_in_an_autoscaling_group(scene: Scene, systemd_image: Image) -> None:
    """From its launch to its end, by a role that it reads in its user-data, without cloud-init."""
    scene.publish("one", "jobs")
    scene.cloud.remove_tag("Role")
    scene.cloud.metadata.put(USER_DATA, user_data.document({"Role": "fleet"}))
    vm = scene.machine(systemd_image)
    vm.kernel_words = ("testbed.fleet",)
    witness = Witness(vm)
    scene.cloud.api.listen(witness)
    with LoadBalancing(scene.cloud) as balancers, AutoScaling(scene.cloud, hooks=[READY, DRAINED]) as group, vm:
        check = HealthCheck(port=vm.forward[PORTS["jobs"]], interval=0.5, timeout=10)
        balancers.add_group("front", 80, check=check, delay=3)
        group.launch()

        # It gets requests once it serves, and is in service once that has lasted.
        wait_for_version(vm, "one", "jobs")
        assert group.state == "Pending:Wait"
        until(lambda: group.state == "InService", "the launch is continued")
        assert gets_requests(scene, balancers)
        assert group.answers == [("ready", "CONTINUE", "call")]
        age = next(said.age for action, said in witness.seen if action == "CompleteLifecycleAction" and said)
        assert age > SUSTAINED
        assert witness.take() == [("RegisterTargets", "one"), ("CompleteLifecycleAction", "one")]
        assert ended(vm)["exit_code"] == 0

        check_limits(vm)
        check_spot_notice(scene, vm, balancers, group, witness)

        # When it is shut down, the balancer is told first; it is back after the boot, with the same limits.
        before = stopped(vm, "jobs")
        vm.reboot()
        assert witness.take() == [("DeregisterTargets", "two")]
        again = wait_for_version(vm, "two", "jobs")
        assert stopped(vm, "jobs") == [*before, "two"]
        until(lambda: gets_requests(scene, balancers), "it is registered again")
        assert vm.check("cat", f"/proc/{again.pid}/cgroup", f"{CGROUP}/memory.max") == in_its_group()
        assert witness.take() == [("RegisterTargets", "two")]

        # Scale-in: out of the balancer, down, and only then the group goes on.
        group.terminate()
        until(lambda: group.state == "Terminated", "the termination is continued")
        assert group.answers == [("ready", "CONTINUE", "call"), ("drained", "CONTINUE", "call")]
        assert witness.take() == [("DeregisterTargets", "two"), ("CompleteLifecycleAction", "nothing")]
        assert stopped(vm, "jobs") == [*before, "two", "two"]
        until(lambda: "terminate" in systemd_says(vm, "StatusText")["StatusText"], "it says why")
        assert systemd_says(vm, "ActiveState")["ActiveState"] == "active"


def check_limits(vm: Vm) -> None:
    """What takes more memory than it may is killed by the kernel, alone, and started again within the same limits."""
    before = ask(vm, "jobs")
    assert vm.check("cat", f"/proc/{before.pid}/cgroup", f"{CGROUP}/memory.max") == in_its_group()
    assert vm.check("cat", f"{CGROUP}/cpu.max", f"{CGROUP}/pids.max") == "90000 100000\n20\n"
    with pytest.raises((OSError, ValueError)):
        ask(vm, "jobs", "/hoard")
    until(lambda: not is_down(vm, "jobs"), "it is started again")
    after = ask(vm, "jobs")
    assert after.pid != before.pid
    assert after.version == before.version
    assert "oom_kill 1" in vm.check("cat", f"{CGROUP}/memory.events").splitlines()
    assert vm.check("cat", f"/proc/{after.pid}/cgroup", f"{CGROUP}/memory.max") == in_its_group()


def in_its_group() -> str:
    """What the kernel says of a process of the service, and of its memory."""
    return f"0::/bootagent/jobs.worker\n{64 * 2**20}\n"


def check_spot_notice(scene: Scene, vm: Vm, balancers: Balancers, group: AutoScaling, witness: Witness) -> None:
    """A notice in the middle of a reconfigure stops that, and then the services; called off, the work is taken up."""
    release = current(vm, "jobs")
    scene.wire.bytes_per_second = WIRE
    scene.publish("two", "jobs", more={"ballast": random.Random(0).randbytes(BYTES).hex()})
    heard = len(vm.console_text())
    vm.check("sh", "-c", "bootagent reconfigure --log json </dev/null >/dev/console 2>&1 & echo $! >/run/reconfigure")
    until(lambda: '"intent": "deploy"' in vm.console_text()[heard:], "it is under way")
    group.interrupt()
    until(lambda: is_down(vm, "jobs"), "the service is down")
    until(lambda: outcome(vm).startswith("stopped"), "it is stopped")
    until(lambda: "spot notice" in systemd_says(vm, "StatusText")["StatusText"], "it says why")
    assert vm.run("sh", "-c", "kill -0 $(cat /run/reconfigure)").code != 0, "the reconfigure has ended"
    assert current(vm, "jobs") == release
    assert stopped(vm, "jobs") == ["one"]
    assert witness.take() == [("DeregisterTargets", "one")]
    assert group.answers[1:] == [], "the group has not said that it waits"

    scene.wire.bytes_per_second = None
    scene.cloud.metadata.remove(SPOT)
    wait_for_version(vm, "two", "jobs")
    until(lambda: gets_requests(scene, balancers), "it is registered again")
    assert witness.take() == [("RegisterTargets", "two")]
    until(lambda: outcome(vm).startswith("done"), "it is well again")


def outcome(vm: Vm) -> str:
    """How the last run of this boot ended, in one line."""
    return vm.run("cat", "/run/bootagent/summary").out


def gets_requests(scene: Scene, balancers: Balancers) -> bool:
    """Whether the balancer sends the instance requests."""
    return balancers.route("front", scene.cloud.instance.instance_id, PORTS["jobs"])
