"""``bootagent sandbox``: the user's own configuration, booted on a simulated machine in a simulated cloud."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TextIO

from bootagent import state
from bootagent.config import document, resolve
from bootagent.config.model import App, Config, EbsSource, S3Source
from bootagent.errors import BootagentError, ConfigError, UsageError
from bootagent.instance import user_data_tags
from bootagent.machine import Machine
from bootagent.sandbox import example, furnish, launch
from bootagent.sandbox.autoscaling import AutoScaling
from bootagent.sandbox.cloud import FOREIGN_PREFIXES, Cloud
from bootagent.sandbox.disks import Disks
from bootagent.sandbox.init import adopt_orphans, end_descendants
from bootagent.sandbox.loop_host import LoopHost, private_mounts
from bootagent.sandbox.repository import FORMATS, archive, deploy_to, release
from bootagent.sandbox.scratch import scratch_root
from bootagent.sandbox.supervisor import PYTHONPATH, Supervisor
from bootagent.sandbox.surroundings import surroundings
from bootagent.telling import console_line

CONFIG = "/etc/bootagent/config.toml"
SUPERVISOR_LOG = "/var/log/runsvdir.log"
#: What ``--keep`` leaves for other terminals to source.
ENVIRONMENT_FILE = "/sandbox.env"
INTERRUPTED = 130
#: How long an interrupted command has to end by itself.
INTERRUPT_SECONDS = 10.0

_BOOTAGENT = (sys.executable, "-m", "bootagent")


@dataclass(frozen=True)
class SandboxOptions:
    """What to boot. Without ``config`` it is the sample app.

    - ``tags``: the instance's tags
    - ``publish``: app name → git repository, published before the boot to where the app's source looks
    - ``files``: absolute path on the machine → a file or a tree to put there before the boot; of a tree root keeps
      the owners
    - ``root``: the machine's root, an empty or absent directory; a temporary one when None
    - ``user_data``: a file with the instance's user-data
    - ``secrets``: where a secret is kept (``ssm:NAME``, ``secretsmanager:NAME``) → its value; others are made up
    - ``keep``: stay up after the boot until interrupted
    """

    config: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    publish: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    user_data: Path | None = None
    keep: bool = False


def run(options: SandboxOptions, out: TextIO, *, argv0: Sequence[str] = _BOOTAGENT) -> int:
    """Boot in the sandbox, and tear everything down again; the exit code is the boot's.

    ``out`` is a real file, to which the commands print as well; ``argv0`` starts bootagent.
    Raises BootagentError when the sandbox itself cannot be set up.
    """
    with interruptible():
        try:
            with Sandbox(options, out, argv0=argv0) as sandbox:
                sandbox.publish_all()
                code = sandbox.boot()
                if options.keep:
                    sandbox.invite()
                    _wait_for_interrupt()
                    out.write("\ntearing down\n")
                return code
        except KeyboardInterrupt:
            out.write("interrupted\n")
            return INTERRUPTED


class Sandbox:
    """A simulated machine in a simulated cloud, ready to boot; a context manager that leaves nothing behind.

    It takes the process for itself: what is orphaned by the programs it runs is adopted, and ended with it.
    """

    cloud: Cloud
    machine: Machine
    #: The sample app, when that is what runs here.
    example: example.Example | None

    def __init__(self, options: SandboxOptions, out: TextIO, *, argv0: Sequence[str] = _BOOTAGENT) -> None:
        self._options = options
        self._out = out
        self._argv0 = tuple(argv0)
        self._running = contextlib.ExitStack()
        self._user_data: bytes | None = None
        self._disks: Disks | None = None
        self._group: AutoScaling | None = None
        self.example = None

    @property
    def root(self) -> Path:
        """The machine's root directory."""
        return self.machine.root

    def __enter__(self) -> Sandbox:
        try:
            self._set_up(self._running)
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tear_down()

    def _set_up(self, stack: contextlib.ExitStack) -> None:
        self.machine = Machine(stack.enter_context(scratch_root(self._options.root)))
        stack.enter_context(_no_descendants())
        if self._options.config is None:
            self._options = self._with_example()
        if self._options.user_data:
            self._user_data = furnish.read(self._options.user_data)
        self._furnish()
        wants_disks = self._wants_disks()
        if wants_disks:
            if os.geteuid() != 0:
                raise UsageError("this configuration has EBS volumes: real disks, for root only", remedy="use sudo")
            private_mounts()  # before there are threads: they would stay behind
        self.cloud = stack.enter_context(Cloud(tags=self._options.tags, user_data=self._user_data))
        if wants_disks:
            contents = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bootagent-disks-")))
            self._disks = stack.enter_context(Disks(self.cloud, LoopHost(self.root), contents))
        with contextlib.suppress(ConfigError):  # which the boot will tell of
            self._group = stack.enter_context(surroundings(self.cloud, self._config(), self._options.secrets))
        services = self.machine.real("/etc/service")
        stack.enter_context(Supervisor(services, log=self.machine.real(SUPERVISOR_LOG)))

    def _tear_down(self) -> None:
        with _handling(signal.SIG_IGN):  # a second Ctrl-C must not leave half of it behind
            self._running.close()

    def _with_example(self) -> SandboxOptions:
        directory = self.machine.real("/usr/src/hello")
        directory.mkdir(parents=True)
        self.example = example.write(directory)
        options = self._options
        return dataclasses.replace(
            options,
            config=self.example.config,
            tags={**example.TAGS, **options.tags},
            publish={example.APP: self.example.repository, **options.publish},
            files={example.SETTINGS: self.example.settings, **options.files},
        )

    def _furnish(self) -> None:
        assert self._options.config is not None
        for place, source in self._options.files.items():
            (furnish.put_tree if source.is_dir() else furnish.put_file)(self.machine, place, source)
        furnish.put_file(self.machine, CONFIG, self._options.config, mode=0o600)

    # --- acting on it ----------------------------------------------------------------------------------------

    def boot(self) -> int:
        """Boot, and answer the group that waits for it; the exit code is the run's."""
        waited = self._group is not None and any(hook.transition == "launching" for hook in self._group.hooks)
        with launch.escorted(self.machine, self._start) if waited else contextlib.nullcontext():
            code = self.bootagent("reconfigure", "--log", "text")
        if self._group:
            self._out.write(f"for its autoscaling group the instance is {self._group.state}\n")
        self._show_console()
        return code

    def bootagent(self, command: str, *words: str) -> int:
        """Run a bootagent command on the machine, what it prints passed through; its exit code."""
        return self._run(self._argv(command, *words))

    def publish_all(self) -> None:
        """Publish every repository the options name, to where the instance will look for it."""
        for app, repository in self._options.publish.items():
            self.publish(app, repository)

    def publish(self, app: str, repository: Path) -> None:
        """Publish a repository's HEAD as the next release of an app.

        Raises UsageError when the instance's role has no such app, BootagentError when publishing fails.
        """
        found = self._app(app)
        source = found.source
        if isinstance(source, EbsSource):
            self._publish_snapshot(found, source, repository)
        elif isinstance(source, S3Source):
            self._publish_bundle(app, source, repository)
        else:
            raise UsageError(f"--publish {app}: only sources in S3 and on EBS are published to from here")

    def _publish_bundle(self, app: str, source: S3Source, repository: Path) -> None:
        if source.bucket not in self.cloud.buckets():
            self.cloud.create_bucket(source.bucket)
        suffix = next((suffix for suffix in FORMATS if source.key.endswith(suffix)), None)
        if suffix:
            self.cloud.put(source.bucket, source.key, archive(repository, FORMATS[suffix]))
        elif self._run([*self._argv0, "publish", str(source), "--repo", str(repository)]):
            raise BootagentError(f"{app} could not be published from {repository}")

    def _publish_snapshot(self, app: App, source: EbsSource, repository: Path) -> None:
        make = release if source.holds == "release" else deploy_to
        with tempfile.TemporaryDirectory() as place:
            content = make(repository, Path(place) / "volume")
            if owner := self.machine.identity(app.user, app.group):  # as on a deploy box
                for path in (content, *content.rglob("*")):
                    os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
            assert self._disks  # the configuration names an EBS source
            self._disks.snapshot_of(content, tags=dict(source.snapshot))

    def _document(self) -> document.Document:
        return resolve.validate(document.load([self.machine.real(CONFIG)], trusted=False))

    def _wants_disks(self) -> bool:
        try:
            tables = self._document().tables
        except ConfigError:  # which the boot will tell of
            return False
        sources = [app["source"]["type"] for app in tables["apps"].values()]
        return "ebs" in sources or any(role["volumes"] for role in tables["roles"].values())

    def _app(self, name: str) -> App:
        found, tags = self._document(), self._tags()
        if missing := sorted(resolve.required_tags(found, tags) - set(tags)):
            raise UsageError(f"--publish needs to know the tags {', '.join(missing)}", remedy="add --tag KEY=VALUE")
        config = self._config()
        apps = {app.name: app for app in config.apps}
        if name not in apps:
            raise UsageError(f"--publish {name}: role {config.role} runs {', '.join(apps) or 'no app'}")
        return apps[name]

    def _tags(self) -> dict[str, str]:
        defaults = resolve.default_tags(self._document())
        return {**defaults, **self.cloud.metadata.tags, **user_data_tags(self._user_data)}

    def _config(self) -> Config:
        """What the instance is to be, as far as its tags are there already. Raises ConfigError."""
        instance = self.cloud.instance
        facts = {
            "region": instance.region,
            "availability_zone": instance.zone,
            "account_id": instance.account_id,
            "instance_id": instance.instance_id,
            "instance_type": instance.instance_type,
        }
        return resolve.resolve(self._document(), facts, self._tags())

    def _show_console(self) -> None:
        """The line that a real instance would have written to its console: the simulated one has none."""
        known = state.load(self.machine)
        with contextlib.suppress(ConfigError):  # which the boot has told of
            if known.last_run and resolve.telling(self._document()).console:
                self._out.write(f"on the console: {console_line.line(known)}\n")

    def _argv(self, command: str, *words: str) -> list[str]:
        return [*self._argv0, command, "--root", str(self.root), *words]

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        return self._started(self._argv(*words))

    def _started(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program of ours in the cloud's environment, its output on the same terminal as ours."""
        self._out.flush()
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self._out, env=self._environment())

    def _run(self, argv: Sequence[str]) -> int:
        process = self._started(argv)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(INTERRUPT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise

    def _environment(self) -> dict[str, str]:
        environment = self.cloud.process_environment()
        theirs = environment.get("PYTHONPATH")
        return {**environment, "PYTHONPATH": f"{PYTHONPATH}:{theirs}" if theirs else PYTHONPATH}

    # --- inviting to play ------------------------------------------------------------------------------------

    def environment_file(self) -> str:
        """Shell lines that put another terminal into this cloud."""
        foreign = "\\|".join(FOREIGN_PREFIXES)
        names = {
            **self.cloud.environment(),
            "SANDBOX_ROOT": str(self.root),
            "SANDBOX_CONTROL": f"{self.cloud.metadata.endpoint}/_sandbox",
            "SVDIR": str(self.machine.real("/etc/service")),
        }
        # That terminal may have a profile of its own, into somebody's real account.
        lines = [
            f"for name in $(env | sed -n 's/^\\(\\({foreign}\\)[A-Za-z0-9_]*\\)=.*/\\1/p'); do unset \"$name\"; done"
        ]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in names.items()]
        # Whether that terminal has one on its path, and which version, is its own affair.
        # Disks are mounted in the sandbox's own mount namespace, where nobody else sees them.
        enter = f'nsenter --target {os.getpid()} --mount -- sh -c \'cd "$0" && exec "$@"\' "$PWD" '
        argv = (enter if self._disks else "") + shlex.join(self._argv0)
        lines.append(f'bootagent() {{ PYTHONPATH={shlex.quote(PYTHONPATH)} {argv} "$@"; }}')
        return "\n".join(lines) + "\n"

    def invite(self) -> None:
        """Print what can be tried from another terminal."""
        file = self.machine.real(ENVIRONMENT_FILE)
        self.machine.write(file, self.environment_file().encode(), mode=0o600)
        services = sorted(path.name for path in self.machine.real("/etc/service").iterdir())
        commands = {
            "bootagent status --root $SANDBOX_ROOT": "what runs, and which release",
            "bootagent timeline --root $SANDBOX_ROOT": "where the seconds went",
            **self._publish_commands(),
            "bootagent plan --root $SANDBOX_ROOT": "what a run would do now",
            "bootagent reconfigure --root $SANDBOX_ROOT": "the same as a boot, without one",
            f"sv status $SANDBOX_ROOT/etc/sv/{services[0] if services else '*'}/service": "ask the supervisor",
            "curl -X PUT -d production $SANDBOX_CONTROL/tags/Environment": "change a tag of the instance",
        }
        shown = "\n".join(f"\n  # {meaning}\n  {command}" for command, meaning in commands.items())
        self._out.write(
            f"\nThe machine is {self.root}. In another terminal:\n\n  . {shlex.quote(str(file))}\n{shown}\n\n"
            "Ctrl-C tears everything down.\n"
        )
        self._out.flush()

    def _publish_commands(self) -> dict[str, str]:
        commands = {}
        for app, repository in self._options.publish.items():
            source = self._app(app).source
            if isinstance(source, S3Source):
                command = shlex.join(["bootagent", "publish", str(source), "--repo", str(repository)])
                commands[command] = f"the next release of {app}"
        return commands


# --- ends ----------------------------------------------------------------------------------------------------

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a TERM, or a terminal that closes, unwind as Ctrl-C does."""
    with _handling(signal.default_int_handler):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted
        return
    before = {number: signal.signal(number, handler) for number in _ENDS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def _no_descendants() -> Iterator[None]:
    adopt_orphans()
    try:
        yield
    finally:
        end_descendants()


def _wait_for_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            signal.pause()
