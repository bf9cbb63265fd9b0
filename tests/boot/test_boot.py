"""An instance boots, and is what its tags say."""

from __future__ import annotations

from tests.boot.image import Image
from tests.boot.scene import Scene, wait_for_version


def test_first_boot_is_what_the_tags_say(scene: Scene, systemd_image: Image) -> None:
    scene.publish("one")
    with scene.machine(systemd_image) as vm:
        assert wait_for_version(vm, "one").environment == "staging"
        assert vm.run("bootagent", "status", "--wait", "60").code == 0
