"""The demonstration: one simulated instance through three releases, each claim checked as it is made.

``python -m bootagent.sandbox.demo`` ends with 0 only if everything it says was seen to be true.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import requests

from bootagent.errors import EXIT_DEGRADED, EXIT_DONE, EXIT_FAILED, BootagentError
from bootagent.sandbox.example import APP, DEPLOY_TO, Example
from bootagent.sandbox.init import descendants
from bootagent.sandbox.session import INTERRUPTED, Sandbox, SandboxOptions, interruptible


class NotSeenError(BootagentError):
    """What the story claims was not so."""


class Story:
    """Tells what happens, and checks it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        unicode = (out.encoding or "").lower().replace("-", "") == "utf8"
        self._tick, self._cross, self._arrow = ("✓", "✗", "→") if unicode else ("[ok]", "[no]", "->")
        self._chapters = 0
        self.seen = 0

    def chapter(self, title: str) -> None:
        """Begin the next part."""
        self._chapters += 1
        self._say(f"\n{self._chapters}. {title}\n")

    def command(self, text: str) -> None:
        """Show a command that is about to run."""
        self._say(f"   {self._arrow} {text}")

    def check(self, claim: str, expected: object, look: Callable[[], object]) -> None:
        """Look, and raise NotSeenError unless what is seen is what is expected."""
        found = look()
        if found != expected:
            self._say(f"   {self._cross} {claim}: expected {expected!r}, saw {found!r}")
            raise NotSeenError(claim)
        self.seen += 1
        self._say(f"   {self._tick} {claim}")

    def end(self, sentence: str) -> None:
        """The last line."""
        self._say(f"\n{sentence}")

    def _say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def run(out: TextIO) -> int:
    """Tell the story; 0 if all of it was seen to be true."""
    story = Story(out)
    started = time.monotonic()
    try:
        with interruptible():
            with Sandbox(SandboxOptions(), out) as sandbox:
                _tell(story, sandbox)
            story.chapter("Everything is torn down")
            story.check("no file is left", False, sandbox.root.exists)
            story.check("no process is left", [], lambda: descendants(os.getpid()))
    except KeyboardInterrupt:
        story.end("interrupted")
        return INTERRUPTED
    except BootagentError as error:
        story.end(f"The demonstration failed: {error}")
        return EXIT_FAILED
    story.end(f"{story.seen} claims made, {story.seen} seen to be true, in {time.monotonic() - started:.0f} s.")
    return EXIT_DONE


def _tell(story: Story, sandbox: Sandbox) -> None:
    sample = sandbox.example
    assert sample is not None
    machine = _Machine(sandbox, sample)

    story.chapter("An instance with the tags Role=web and Environment=staging boots, on an empty disk")
    story.command("bootagent publish (v1)")
    sandbox.publish_all()
    story.command("bootagent reconfigure")
    story.check("the boot is done, exit code 0", EXIT_DONE, machine.reconfigure)
    story.check(f"the service answers on {sample.url}", _greeting("v1"), machine.answer)
    story.check("`current` is the published commit", machine.published(), machine.revision)
    story.check("the tags came from instance metadata: not one EC2 call", 0, lambda: sandbox.cloud.count("ec2"))

    story.chapter("The same again, with nothing new")
    release = machine.current()
    story.command("bootagent reconfigure")
    story.check("there is nothing to do, exit code 0", EXIT_DONE, machine.reconfigure)
    story.check("the same release serves", release, machine.current)

    story.chapter("A second release is published")
    sample.release("v2")
    story.command("bootagent publish (v2)")
    sandbox.publish(APP, sample.repository)
    story.command("bootagent reconfigure")
    story.check("it rolls forward, exit code 0", EXIT_DONE, machine.reconfigure)
    story.check("the service answers with v2", _greeting("v2"), machine.answer)
    story.check("`current` is the second commit", machine.published(), machine.revision)
    story.check("the first release is still there to go back to", 2, lambda: len(machine.releases()))

    story.chapter("A third release is published, and it is broken: it exits as it starts")
    good, good_release = machine.published(), machine.current()
    sample.release_broken("v3")
    story.command("bootagent publish (v3)")
    sandbox.publish(APP, sample.repository)
    story.command("bootagent reconfigure")
    story.check("it says so, exit code 3: an older release serves", EXIT_DEGRADED, machine.reconfigure)
    story.check("the service answers with v2 again", _greeting("v2"), machine.answer)
    story.check("`current` is the second release again", good_release, machine.current)
    story.check("which is the second commit", good, machine.revision)

    story.chapter("What happened here, afterwards")
    story.command("bootagent status")
    story.check("status knows it, exit code 3", EXIT_DEGRADED, lambda: sandbox.bootagent("status"))
    story.command("bootagent timeline")
    story.check("timeline shows where the seconds went", EXIT_DONE, lambda: sandbox.bootagent("timeline"))


def _greeting(version: str) -> str:
    return f"Hello from the sample app, {version}, in staging"


class _Machine:
    """What the story looks at."""

    def __init__(self, sandbox: Sandbox, sample: Example) -> None:
        self._sandbox = sandbox
        self._sample = sample
        self._deploy_to = sandbox.machine.real(DEPLOY_TO)

    def reconfigure(self) -> int:
        return self._sandbox.bootagent("reconfigure", "--log", "text")

    def answer(self) -> str:
        with requests.Session() as session:
            session.trust_env = False
            try:
                return session.get(self._sample.url, timeout=5).text.strip()
            except requests.RequestException as error:
                return str(error)

    def current(self) -> Path:
        return (self._deploy_to / "current").resolve()

    def releases(self) -> list[Path]:
        return [path for path in (self._deploy_to / "releases").iterdir() if path.name.isdigit()]

    def revision(self) -> str:
        return (self.current() / "REVISION").read_text().strip()

    def published(self) -> str:
        head = ["git", "-C", str(self._sample.repository), "rev-parse", "HEAD"]
        return subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(run(sys.stdout))
