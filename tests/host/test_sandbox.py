"""The simulated cloud and machine: that they are real enough, and that nothing of them stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bootagent.errors import BootagentError, UsageError
from bootagent.sandbox import example
from bootagent.sandbox.cloud import Cloud
from bootagent.sandbox.loop_host import LoopHost
from bootagent.sandbox.scratch import clear, mounts_below, scratch_root
from bootagent.sandbox.supervisor import Supervisor
from tests.conftest import TAGS, processes_of
from tests.waiting import until


def inside(cloud: Cloud, script: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**cloud.process_environment(), **extra},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- the cloud -----------------------------------------------------------------------------------------------


def test_a_program_finds_everything_through_the_standard_variables(cloud: Cloud) -> None:
    cloud.create_bucket("deploys")
    version = cloud.put("deploys", "some/key", b"content")
    done = inside(
        cloud,
        """
        import boto3, json
        found = boto3.client("s3").get_object(Bucket="deploys", Key="some/key")
        tags = boto3.client("ec2").describe_tags()["Tags"]
        print(json.dumps([found["Body"].read().decode(), found["VersionId"], {t["Key"]: t["Value"] for t in tags},
                          tags[0]["ResourceId"]]))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["content", version, TAGS, cloud.instance.instance_id]
    # No keys in the environment: they came from the instance's role.
    assert any("security-credentials" in request for request in cloud.metadata.requests)


def test_calls_are_counted_but_not_the_sandboxs_own(cloud: Cloud) -> None:
    cloud.create_bucket("deploys")
    cloud.put("deploys", "key", b"content")
    cloud.set_tag("Another", "tag")
    assert cloud.calls == []
    inside(
        cloud,
        """
        import boto3
        s3 = boto3.client("s3")
        s3.head_object(Bucket="deploys", Key="key")
        s3.get_object(Bucket="deploys", Key="key", Range="bytes=0-3")
        s3.list_objects_v2(Bucket="deploys")
        boto3.client("ec2").describe_tags()
        """,
    )
    assert [(call.service, call.action) for call in cloud.calls] == [
        ("s3", "HeadObject"),
        ("s3", "GetObject"),
        ("s3", "ListObjectsV2"),
        ("ec2", "DescribeTags"),
    ]
    assert (cloud.count("s3"), cloud.count("s3", "GetObject"), cloud.count("ec2")) == (3, 1, 1)


def test_a_call_fails_on_request(cloud: Cloud) -> None:
    cloud.create_bucket("deploys")
    cloud.put("deploys", "key", b"content")
    cloud.api.fail("s3", "GetObject", code="AccessDenied", status=403)
    cloud.api.fail("ec2", "DescribeTags", code="UnauthorizedOperation", status=403)
    done = inside(
        cloud,
        """
        import boto3
        from botocore.exceptions import ClientError
        s3, ec2 = boto3.client("s3"), boto3.client("ec2")
        for call in (lambda: s3.get_object(Bucket="deploys", Key="key"), ec2.describe_tags) * 2:
            try:
                call()
                print("done")
            except ClientError as error:
                print(error.response["Error"]["Code"])
        """,
    )
    assert done.stdout.split() == ["AccessDenied", "UnauthorizedOperation", "done", "done"], done.stderr


def test_no_setting_of_ones_own_leads_out_of_it(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAMINE")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.com")
    environment = cloud.process_environment()
    assert not {"AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL_S3"} & set(environment)
    cloud.create_bucket("mine")  # its own clients do not look at them either
    assert cloud.buckets() == ["mine"]


def test_every_test_gets_an_empty_one(cloud: Cloud) -> None:
    assert cloud.buckets() == []
    assert cloud.metadata.tags == TAGS


def test_a_bucket_without_versions(cloud: Cloud) -> None:
    cloud.create_bucket("plain", versioned=False)
    assert cloud.put("plain", "key", b"1") is None
    assert (cloud.keys("plain"), cloud.get("plain", "key")) == (["key"], b"1")
    cloud.delete("plain", "key")
    assert cloud.keys("plain") == []


# --- the supervisor ------------------------------------------------------------------------------------------


def write_service(directory: Path, script: str) -> None:
    directory.mkdir(parents=True)
    (directory / "run").write_text(f"#!/bin/sh\nexec 2>&1\n{script}\n")
    (directory / "run").chmod(0o755)


def test_services_run_and_nothing_of_them_stays(machine_root: Path, runsvdir: Supervisor) -> None:
    # Nested as the agent does it: the outer service is a runsv of its own directory.
    inner = machine_root / "etc/sv/web/service"
    write_service(inner, f"echo up >>{machine_root}/log; exec sleep 1000")
    write_service(inner / "log", f"exec svlogd -tt {machine_root}/logs")
    (machine_root / "logs").mkdir()
    outer = machine_root / "etc/sv/web/outer"
    write_service(outer, f"exec runsv {inner}")
    (machine_root / "etc/service/web").symlink_to(outer)
    until((machine_root / "log").exists)
    assert len(processes_of(machine_root)) >= 6  # init, runsvdir, two runsv, the service, svlogd
    runsvdir.stop()
    assert processes_of(machine_root) == []


def test_what_escapes_is_ended_too(machine_root: Path, runsvdir: Supervisor) -> None:
    # A daemon that leaves its session and its environment, ignores TERM and stands in /: only its parentage tells.
    (machine_root / "daemon").write_text("trap '' TERM\necho $$ >pid\ncd /\nwhile :; do sleep 1; done\n")
    script = f"cd {machine_root}; env -i setsid sh daemon >/dev/null 2>&1 & exec sleep 1000"
    write_service(machine_root / "etc/service/daemon", script)
    until(lambda: (machine_root / "pid").exists() and (machine_root / "pid").read_text().strip())
    pid = int((machine_root / "pid").read_text())
    os.kill(pid, 0)
    runsvdir.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_dies_with_the_one_who_started_it(machine_root: Path) -> None:
    write_service(machine_root / "etc/service/web", "exec sleep 1000")
    script = f"""
    import time
    from pathlib import Path
    from bootagent.sandbox.supervisor import Supervisor
    root = Path({str(machine_root)!r})
    Supervisor(root / "etc/service", log=root / "log").start()
    time.sleep(1000)
    """
    starter = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    until((machine_root / "etc/service/web/supervise/pid").exists)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    until(lambda: processes_of(machine_root) == [])


def test_a_machine_without_runit_is_told_so(machine_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bootagent.sandbox.supervisor._PROGRAMS", ("runsvdir", "no-such-program"))
    with pytest.raises(BootagentError, match=r"no-such-program not found .*install runit"):
        Supervisor(machine_root, log=machine_root / "log").start()


# --- the scratch root ----------------------------------------------------------------------------------------


def test_a_scratch_root_is_gone_afterwards(tmp_path: Path) -> None:
    with scratch_root(None) as root:
        (root / "a/b").mkdir(parents=True)
        (root / "a/b/c").write_text("x")
        (root / "a").chmod(0)
    assert not root.exists()
    with scratch_root(tmp_path / "chosen") as root:
        (root / "link").symlink_to("/etc")
    assert not (tmp_path / "chosen").exists()
    with scratch_root(tmp_path):
        (tmp_path / "x").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UsageError, match="not an empty directory"), scratch_root(tmp_path):
        pass
    with pytest.raises(UsageError, match="not an empty directory"), scratch_root(tmp_path / "precious"):
        pass
    assert (tmp_path / "precious").read_text() == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_mount_is_unmounted_not_deleted(tmp_path: Path) -> None:
    precious, root = tmp_path / "precious", tmp_path / "ro ot"
    precious.mkdir()
    (precious / "data").write_text("x")
    (root / "mnt/a b").mkdir(parents=True)
    subprocess.run(["mount", "--bind", precious, root / "mnt/a b"], check=True)
    assert mounts_below(root) == [root / "mnt/a b"]
    with (root / "mnt/a b/data").open():  # busy: it stays, and so does everything
        with pytest.raises(BootagentError, match="still mounted"):
            clear(root)
        assert (root / "mnt/a b/data").exists()
    clear(root)
    assert (precious / "data").read_text() == "x"
    assert list(root.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_root_that_is_a_mount_point_stays_one_and_what_it_hides_stays_mounted(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "mnt").mkdir(parents=True)
    tmpfs = ["mount", "-t", "tmpfs", "tmpfs"]
    try:
        subprocess.run([*tmpfs, root / "mnt"], check=True)
        subprocess.run([*tmpfs, root], check=True)
        with scratch_root(root):
            for name in ("mnt", "mnt/in it"):
                (root / name).mkdir(parents=True)
                subprocess.run([*tmpfs, root / name], check=True)
            assert mounts_below(root) == [root / "mnt", root / "mnt/in it"]
            LoopHost(root).halt()
            assert mounts_below(root) == []
        assert root.is_mount()
        assert list(root.iterdir()) == []
        subprocess.run(["umount", root], check=True)
        assert (root / "mnt").is_mount()
    finally:
        subprocess.run(["umount", "--recursive", "--quiet", root], check=False)
        subprocess.run(["umount", "--quiet", root / "mnt"], check=False)


# --- the sample app ------------------------------------------------------------------------------------------


def test_the_sample_app_is_the_same_commit_everywhere(tmp_path: Path) -> None:
    heads = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sample = example.write(tmp_path / name)
        sample.release("v2")
        sample.release_broken("v3")
        show = ["git", "-C", str(sample.repository), "log", "--format=%H %s"]
        heads.append(subprocess.run(show, capture_output=True, text=True, check=True).stdout)
    assert heads[0] == heads[1]
    assert [line.split(" ", 1)[1] for line in heads[0].splitlines()] == ["Release v3", "Release v2", "Release v1"]
