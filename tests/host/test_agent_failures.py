"""What cannot be trusted is not run: the old release keeps serving, and one sentence says why."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable

import pytest

from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent
from tests.host.stage import BUCKET, SERVER, App, Stage, compressed, tar

Breakage = Callable[[App], None]


def _missing(app: App) -> None:
    app.publish("two", bundle="web/bundles/not-there.tar.zst", version_id=None)


def _truncated(app: App) -> None:
    whole = compressed(tar(app.tree("two")), ".tar.zst")
    app.cloud.put(BUCKET, "web/cut.tar.zst", whole[: len(whole) // 2])
    app.publish("two", bundle="web/cut.tar.zst", version_id=None)


def _tampered(app: App) -> None:
    app.cloud.put(BUCKET, "web/other.tar.zst", compressed(tar(app.tree("evil")), ".tar.zst"))
    size = len(compressed(tar(app.tree("evil")), ".tar.zst"))
    app.publish("two", bundle="web/other.tar.zst", size=size, version_id=None)


def _hostile(app: App) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("../../../escaped")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    app.cloud.put(BUCKET, "web/hostile.tar.zst", compressed(out.getvalue(), ".tar.zst"))
    _point_at(app, "web/hostile.tar.zst")


def _garbage_pointer(app: App) -> None:
    app.cloud.put(BUCKET, app.key, b"<html>not json</html>")


def _point_at(app: App, key: str) -> None:
    import hashlib

    body = app.cloud.get(BUCKET, key)
    app.publish("two", bundle=key, size=len(body), sha256=hashlib.sha256(body).hexdigest(), version_id=None)


BREAKAGES: dict[str, tuple[Breakage, str]] = {
    "missing": (_missing, "NoSuchKey"),
    "truncated": (_truncated, "web/cut.tar.zst"),
    "tampered": (_tampered, "sha256"),
    "hostile": (_hostile, "climbs with '..'"),
    "garbage pointer": (_garbage_pointer, "not a release pointer"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_bad_bundle_leaves_the_old_release_serving(stage: Stage, web: App, agent: Agent, name: str) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    pid, release = web.pid(), web.current
    breakage, word = BREAKAGES[name]
    breakage(web)

    ran = agent("reconfigure", "--json", "--log", "text")

    assert ran.code == 3, ran.stderr
    sentence = json.loads(ran.stdout)["endings"]["web"]["sentence"]
    assert word in sentence
    assert "\n" not in sentence and "Traceback" not in ran.stderr
    assert (web.pid(), web.current, web.answer()) == (pid, release, "one")
    assert [path.name for path in (web.deploy_to / "releases").iterdir()] == [release]
    assert not (stage.root / "escaped").exists() and not (stage.root / "srv/escaped").exists()
    assert agent("status").code == 3

    web.publish("three")
    assert agent("reconfigure").code == 0
    assert web.answer() == "three"


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_bad_bundle_at_first_boot_fails_and_leaves_nothing_half_made(
    stage: Stage, web: App, agent: Agent, name: str
) -> None:
    breakage, word = BREAKAGES[name]
    breakage(web)
    ran = agent("reconfigure")
    assert ran.code == 1
    assert word in ran.stderr
    assert not (web.deploy_to / "current").is_symlink()
    assert not list(web.deploy_to.glob("releases/*")) and not list(web.deploy_to.glob("releases/.*"))
    assert not (stage.root / "etc/service/web.server").exists()


def test_a_release_that_does_not_start_is_taken_back(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    good = web.current
    web.publish("two", web.tree("two", server_py="") | {"server.py": "raise SystemExit('no database for you')\n"})

    ran = agent("reconfigure")

    assert ran.code == 3, ran.stderr
    assert "web.server is not healthy" in ran.stderr and "crashed" in ran.stderr
    assert "no database for you" in ran.stderr, "the end of its log is shown"
    assert web.current == good and web.answer() == "one"
    [bad] = [name for name in web.releases if name != good]
    assert stage.release_state("web", bad) == "bad"
    assert (web.deploy_to / "revisions.log").read_text().splitlines()[-1] == f"bootagent rolled back to release {good}"

    # It is not tried again and again, but on demand.
    again = agent("reconfigure")
    assert again.code == 3 and "--retry" in again.stderr
    assert web.current == good
    retried = agent("reconfigure", "--retry")
    assert retried.code == 3 and "crashed" in retried.stderr
    assert web.answer() == "one"
    web.publish("three")
    assert agent("reconfigure").code == 0
    assert web.answer() == "three"


def test_a_first_release_that_does_not_start_fails_and_is_looked_at_again(stage: Stage, web: App, agent: Agent) -> None:
    (stage.root / "gate").mkdir()
    gate = stage.root / "gate/open"
    gate.parent.chmod(0o755)
    wait = f"import os, sys\nif not os.path.exists({str(gate)!r}): sys.exit('no gate')\n"
    web.publish("one", web.tree("one") | {"server.py": wait + SERVER})
    assert agent("reconfigure").code == 1
    assert stage.release_state("web", web.current) == "bad"
    gate.touch()
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert web.answer() == "one" and len(web.releases) == 1
    assert stage.release_state("web", web.current) == "good"


def test_a_failing_prepare_hook_is_told_and_tried_again(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    good = web.current
    hook = 'hooks = { prepare = ["sh", "-c", "test -e ../../shared/gems || { echo no gems; exit 7; }"] }'
    stage.configure(web.config(extra=hook))
    web.publish("two")
    ran = agent("reconfigure")
    assert ran.code == 3
    assert "exit code 7" in ran.stderr and "no gems" in ran.stderr
    assert web.current == good and web.answer() == "one"
    (web.deploy_to / "shared/gems").touch()
    assert agent("reconfigure").code == 0
    assert web.answer() == "two"


def test_a_hook_of_the_image_that_others_could_change_is_refused(stage: Stage, web: App, agent: Agent) -> None:
    hook = stage.root / "opt/prepare"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o777)
    stage.configure(web.config(extra='hooks = { prepare = ["/opt/prepare"] }'))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "opt/prepare" in ran.stderr and "written by others" in ran.stderr


def test_a_configuration_that_others_could_change_is_refused(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one")
    (stage.root / "etc/bootagent/config.toml").chmod(0o666)
    ran = agent("reconfigure")
    assert ran.code == 2
    assert "config.toml" in ran.stderr and "chmod go-w" in ran.stderr
    assert not web.deploy_to.exists()
    assert agent("status").code == 2, "what stopped a boot is there to be asked for"


def test_s3_down_keeps_the_old_release(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    web.publish("one")
    assert agent("reconfigure").code == 0
    web.publish("two")
    cloud.api.fail("s3", "GetObject", code="InternalError", status=500, times=20)
    ran = agent("reconfigure")
    assert ran.code == 3 and "InternalError" in ran.stderr
    assert web.answer() == "one"
    cloud.api.fail("s3", "GetObject", code="SlowDown", status=503, times=2)  # a hiccup is nobody's business
    assert agent("reconfigure").code in (0, 3)


def test_a_denial_names_the_action_and_the_request(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    cloud.api.fail("s3", "GetObject", code="AccessDenied", status=403)
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "AccessDenied" in ran.stderr and "allow s3:GetObject" in ran.stderr and "request" in ran.stderr


def test_a_missing_linked_file_says_which(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(web.config(extra='linked_files = ["config/database.yml"]'))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "/srv/web/shared/config/database.yml does not exist" in ran.stderr
    (web.deploy_to / "shared/config/database.yml").write_text("x")
    assert agent("reconfigure").code == 0


def test_no_runsvdir_is_said(cloud: Cloud, machine_root: object, agent: Agent) -> None:
    from pathlib import Path

    stage = Stage(cloud, Path(str(machine_root)))
    app = stage.app()
    stage.configure(app.config())
    app.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "is runsvdir watching /etc/service?" in ran.stderr


def test_a_full_disk_is_refused_before_it_is_full(stage: Stage, web: App, agent: Agent) -> None:
    web.publish("one", unpacked_size=2**50)
    stage.configure(web.config(extra='limits = { unpacked = "4096TiB" }'))
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "free" in ran.stderr
