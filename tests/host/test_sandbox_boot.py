"""The sandbox with the real agent in it: the demonstration, a rootless boot, and a configuration of one's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bootagent.sandbox import example
from tests.conftest import processes_of
from tests.host.git_server import Repository

NOBODY = 65534


def bootagent(directory: Path, *words: str, module: str = "bootagent", wrap: Sequence[str] = ()) -> tuple[int, str]:
    """Run it with ``directory`` for everything temporary; its exit code and all it printed."""
    temporary = directory / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    done = subprocess.run(
        [*wrap, sys.executable, "-m", module, *words],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )
    assert list(temporary.iterdir()) == []
    assert processes_of(directory) == []
    return done.returncode, done.stdout


def test_the_demonstration(machine_root: Path) -> None:
    code, said = bootagent(machine_root, module="bootagent.sandbox.demo")
    assert code == 0, said
    claims = re.search(r"(\d+) claims made, (\d+) seen to be true", said)
    assert claims
    assert claims[1] == claims[2] == "18"


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are rootless already")
def test_it_needs_no_root(machine_root: Path) -> None:
    nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", "HOME=/nonexistent"]
    if subprocess.run([*nobody, sys.executable, "-c", "import bootagent"], check=False, capture_output=True).returncode:
        pytest.skip("nobody else can run this Python")
    code, said = bootagent(machine_root, "sandbox", wrap=nobody)
    assert code == 0, said
    assert "hello.server is healthy" in said


def test_a_configuration_and_a_repository_of_ones_own(machine_root: Path) -> None:
    sample = example.write(machine_root)
    config = sample.config.read_text().replace("hello", "mine").replace("{environment}.json", "{environment}.tar.gz")
    sample.config.write_text(config)
    options = {
        "--config": sample.config,
        "--tag": "Role=web",
        "--publish": f"mine={sample.repository}",
        "--file": f"/etc/mine/settings.json={sample.settings}",
        "--root": machine_root / "machine",
    }
    words = [str(word) for pair in options.items() for word in pair]
    code, said = bootagent(machine_root, "sandbox", *words, "--tag", "Environment=production")
    assert code == 0, said
    assert "mine.server is healthy" in said
    assert not (machine_root / "machine").exists()


def test_what_surrounds_the_instance(machine_root: Path) -> None:
    """Balancers, an address and secrets that a configuration names are there, made up or as they are given."""
    sample = example.write(machine_root)
    secrets = 'secrets = ["ssm:/hello/{environment}/", "secretsmanager:hello#KEY"]'
    config = sample.config.read_text().replace("[apps.hello]", f"[apps.hello]\n{secrets}")
    traffic = 'target_groups = ["front"]\nload_balancers = ["old"]\nelastic_ip = { tags = { Pool = "hello" } }'
    sample.config.write_text(f"{config}\n[roles.web.traffic]\n{traffic}\n")
    options = {
        "--config": sample.config,
        "--tag": "Role=web",
        "--publish": f"hello={sample.repository}",
        "--file": f"/etc/hello/settings.json={sample.settings}",
        "--secret": "ssm:/hello/staging/TOKEN=given",
    }
    words = [str(word) for pair in options.items() for word in pair]
    code, said = bootagent(machine_root, "sandbox", *words, "--tag", "Environment=staging")
    assert code == 0, said
    assert "gets requests from target group front, load balancer old, an elastic IP with Pool=hello" in said
    assert "given" not in said


def test_a_configuration_that_is_wrong(machine_root: Path) -> None:
    (machine_root / "config.toml").write_text("[aps.web]\n")
    code, said = bootagent(machine_root, "sandbox", "--config", str(machine_root / "config.toml"))
    assert code == 2
    assert "did you mean 'apps'?" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_volumes(machine_root: Path) -> None:
    sample = example.write(machine_root)
    text = sample.config.read_text()
    config = re.sub(r"source = .*", 'source = { type = "ebs", snapshot = { Name = "hello" }, holds = "release" }', text)
    config += '\n[roles.web.volumes.data]\nmountpoint = "/data"\nvolume = { size = "1GiB" }\n'
    sample.config.write_text(config)
    options = {
        "--config": sample.config,
        "--tag": "Role=web",
        "--publish": f"hello={sample.repository}",
        "--file": f"/etc/hello/settings.json={sample.settings}",
    }
    words = [str(word) for pair in options.items() for word in pair]
    code, said = bootagent(machine_root, "sandbox", *words, "--tag", "Environment=staging")
    assert code == 0, said
    assert "mount the volume of role.web.data at /data" in said
    assert "hello.server is healthy" in said
    # Other tests have disks of their own at the same time.
    assert str(machine_root) not in subprocess.run(["losetup"], capture_output=True, text=True, check=True).stdout


def test_what_an_image_holds_and_a_group_that_waits(machine_root: Path) -> None:
    """Trees come with their owners, a repository is one of the machine's, and the launch is answered."""
    sample = example.write(machine_root)
    Repository(machine_root / "env.git", machine_root / "work", None).commit({"common/GREETING": "hello"})
    data = machine_root / "data"
    (data / "dump").mkdir(parents=True)
    (data / "dump/current").symlink_to("7")
    user = ""
    if os.geteuid() == 0:
        user = 'user = "nobody"'
        for path in (data, data / "dump"):
            os.chown(path, NOBODY, -1)
    environment = '[apps.hello.environment]\nurl = "file:///srv/git/env.git"\nref = "main"\nlayers = ["common"]\n'
    databases = f"""
[apps.databases]
deploy_to = "/var/lib/redis"
{user}
source = {{ type = "image", copy = false }}
[apps.databases.services.redis]
command = ["sh", "-c", "readlink dump/current; touch dump/running && exec sleep 1000"]
stable_for = "300ms"
"""
    group = '[lifecycle]\nlaunching = "ready"\nsustained = "1s"\ndiagnosis = "s3://ops/launches"\n'
    config = sample.config.read_text().replace('apps = ["hello"]', 'apps = "*"')
    sample.config.write_text(f"{config}\n{environment}{databases}{group}")
    options = {
        "--config": sample.config,
        "--tag": "Role=web",
        "--publish": f"hello={sample.repository}",
        "--file": f"/etc/hello/settings.json={sample.settings}",
    }
    words = [str(word) for pair in options.items() for word in pair] + ["--tag", "Environment=staging"]
    trees = ["--file", f"/var/lib/redis={data}", "--file", f"/srv/git/env.git={machine_root}/env.git"]
    code, said = bootagent(machine_root, "sandbox", *words, *trees)
    assert code == 0, said
    assert "databases.redis is healthy" in said
    assert re.search(r"check out \w+ of file:///srv/git/env.git, the environment of hello", said)
    assert "launch: continued" in said
    assert "for its autoscaling group the instance is InService" in said
    assert re.search(r"on the console: bootagent: done, .*, \d+ s\n", said)
    assert not (data / "dump/running").exists(), "the copy is what it works on"
