"""The life of a sandbox from the outside: what it prints, how it ends, and what is left. The agent is a stand-in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import processes_of

CONFIG = """
[apps.web]
deploy_to = "/srv/web"
source = { type = "s3", url = "s3://deploys/web/{environment}.json" }
[apps.plain]
deploy_to = "/srv/plain"
source = { type = "s3", url = "s3://others/plain.tar.gz" }
[roles.web]
apps = "*"
"""

AGENT = """
import boto3, json, os, subprocess, sys, time
from pathlib import Path
words = sys.argv[1:]
if words[0] == "publish":
    bucket, key = words[1].removeprefix("s3://").split("/", 1)
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=words[3].encode())
else:
    s3 = boto3.client("s3")
    held = [b["Name"] + "/" + o["Key"] for b in s3.list_buckets()["Buckets"]
            for o in s3.list_objects_v2(Bucket=b["Name"]).get("Contents", [])]
    root = Path(words[words.index("--root") + 1])
    files = {str(f.relative_to(root)): oct(f.stat().st_mode & 0o777) for f in root.rglob("etc/**/*") if f.is_file()}
    if words[0] == "reconfigure":
        subprocess.Popen(["setsid", "sleep", "1000"], cwd=root)  # a hook that leaves a daemon behind
    print("BOOT", json.dumps({"words": words, "held": held, "files": files}), flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    time.sleep(float(os.environ.get("LINGER", "0")))
    sys.exit(int(os.environ.get("CODE", "0")))
"""


class Started:
    """A sandbox in a process of its own."""

    def __init__(self, directory: Path, options: str, **environment: str) -> None:
        self.directory = directory
        (directory / "agent.py").write_text(AGENT)
        (directory / "config.toml").write_text(CONFIG)
        (directory / "tmp").mkdir(exist_ok=True)
        script = f"""
        import sys
        from pathlib import Path
        from bootagent.errors import BootagentError
        from bootagent.sandbox.session import SandboxOptions, run
        try:
            code = run(SandboxOptions({options}), sys.stdout, argv0=[sys.executable, {str(directory / "agent.py")!r}])
        except BootagentError as error:
            print("ERROR", error)
            code = error.exit_code
        sys.exit(code)
        """
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=directory,
            env={**os.environ, "TMPDIR": str(directory / "tmp"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout
        while not (found := re.search(pattern, self.output)):
            line = self.process.stdout.readline()
            assert line, f"{pattern!r} was not said:\n{self.output}"
            self.output += line
        return found

    def end(self) -> int:
        assert self.process.stdout
        self.output += self.process.stdout.read()
        return self.process.wait(60)

    def boot(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.until(r"BOOT (.*)")[1])
        return found

    def left(self) -> list[object]:
        return [*(self.directory / "tmp").iterdir(), *processes_of(self.directory)]


@pytest.fixture
def directory(machine_root: Path) -> Iterator[Path]:
    (machine_root / "repo").mkdir()
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com", "-C", str(machine_root / "repo")]
    (machine_root / "repo/file").write_text("content")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    yield machine_root


OWN = 'config=Path("config.toml"), tags={"Role": "web", "Environment": "production"}'


def test_a_boot_of_ones_own(directory: Path) -> None:
    (directory / "secret").write_text("x")
    (directory / "secret").chmod(0o640)
    publish = 'publish={"web": Path("repo"), "plain": Path("repo")}'
    started = Started(directory, f'{OWN}, {publish}, files={{"/etc/app/secret": Path("secret")}}', CODE="3")
    assert started.end() == 3
    boot = started.boot()
    assert boot["words"][0] == "reconfigure"
    assert boot["held"] == ["deploys/web/production.json", "others/plain.tar.gz"]
    assert boot["files"] == {"etc/bootagent/config.toml": "0o600", "etc/app/secret": "0o640"}
    assert "to stderr" in started.output
    assert started.left() == []


def test_the_sample_app_boots_without_any_option(directory: Path) -> None:
    started = Started(directory, "")
    assert started.end() == 0
    boot = started.boot()
    assert boot["held"] == ["deploys/hello/staging.json"]
    assert set(boot["files"]) == {"etc/bootagent/config.toml", "etc/hello/settings.json"}
    assert started.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_boot_leaves_nothing(directory: Path, number: signal.Signals) -> None:
    started = Started(directory, OWN, LINGER="1000")
    started.boot()
    started.process.send_signal(number)
    assert started.end() == 130
    assert "interrupted" in started.output
    assert started.left() == []


def test_it_stays_till_interrupted(directory: Path) -> None:
    started = Started(directory, f'{OWN}, publish={{"web": Path("repo")}}, keep=True', CODE="1")
    started.until("Ctrl-C tears everything down")
    found = re.search(r"\. (\S+/sandbox\.env)", started.output)
    assert found
    assert "publish s3://deploys/web/production.json --repo repo" in started.output
    script = f"""
        . {found[1]}
        curl -sf -X PUT -d staging $SANDBOX_CONTROL/tags/Environment && curl -s $SANDBOX_CONTROL
        echo $AWS_ENDPOINT_URL ${{AWS_PROFILE-unset}}
        bootagent status --root $SANDBOX_ROOT
        """
    path = f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin"
    env = {"PATH": path, "AWS_PROFILE": "mine"}
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert '"meta-data/tags/instance/Environment": "staging"' in done.stdout
    assert 'BOOT {"words": ["status"' in done.stdout, done.stderr
    started.process.send_signal(signal.SIGINT)
    started.process.send_signal(signal.SIGINT)  # the impatient one
    assert started.end() == 1  # the boot's
    assert started.left() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('config=Path("absent.toml")', "cannot read absent.toml: No such file"),
        (f'{OWN}, files={{"/etc/x": Path("absent")}}', "cannot read absent: No such file"),
        (f'{OWN}, files={{"/../x": Path("repo/file")}}', "not an absolute path"),
        (f'{OWN}, publish={{"other": Path("repo")}}', "--publish other: role web runs web, plain"),
        ('config=Path("config.toml"), publish={"web": Path("repo")}', "needs to know the tags Role"),
        (f'{OWN}, publish={{"plain": Path("absent")}}', "git archive of absent failed"),
        (f'{OWN}, root=Path("repo")', "not an empty directory"),
        ('tags={"a/b": "c"}', "EC2 refuses the tag key 'a/b'"),
        (f'{OWN}, user_data=Path("absent")', "cannot read absent"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(directory: Path, options: str, said: str) -> None:
    started = Started(directory, options)
    assert started.end() in (1, 2)
    assert "ERROR" in started.output
    assert said in started.output
    assert "Traceback" not in started.output
    assert started.left() == []


def test_a_chosen_root(directory: Path) -> None:
    started = Started(directory, f'{OWN}, root=Path("chosen")')
    assert started.end() == 0
    assert started.boot()["words"][2] == str(directory / "chosen")
    assert not (directory / "chosen").exists()
