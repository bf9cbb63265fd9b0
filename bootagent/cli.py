"""The command line: arguments, exit codes, and the only printer."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from bootagent import __version__
from bootagent.errors import EXIT_DONE, EXIT_FAILED, BootagentError, ConfigError, UsageError, plain

DEFAULT_CONFIG = "/etc/bootagent/config.toml"
#: How long a run waits for another by itself: user-data and the boot take turns.
TURN_SECONDS = 3600.0
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_EPILOG = (
    "exit codes: 0 done, 1 failed, 2 usage or configuration, 3 degraded (an old release serves), 75 try later\n"
    "The standard AWS variables are honoured: AWS_ENDPOINT_URL, AWS_EC2_METADATA_SERVICE_ENDPOINT, AWS_REGION …"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    os.umask(0o022)  # directories that other users must pass through are made here; secrets say their own mode
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except ConfigError as error:
        if getattr(options, "json", False):
            _print_json({"problems": [vars(problem) for problem in error.problems]})
        for problem in error.problems:
            _complain(str(problem))
        return error.exit_code
    except BootagentError as error:
        _complain(str(error))
        if tail := str(getattr(error, "tail", "")).strip():
            print(_indented(tail), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return EXIT_DONE
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EXIT_FAILED


# --- commands ----------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    if not options.once:
        _stay(options)
    return _agent(options, options.because)


def _stay(options: argparse.Namespace) -> NoReturn:
    from bootagent.daemon import launch

    if options.retry:
        raise UsageError("--retry is for one run", remedy="bootagent reconfigure --retry")
    tags = _tags(options)  # refused here, not by every run to come
    words = [
        "--lock-wait",
        f"{options.lock_wait:g}",
        "--log",
        options.log,
        *(["--verbose"] if options.verbose else []),
        *(["--json"] if options.json else []),
    ]
    words += [f"--tag={key}={value}" for key, value in tags.items()]
    launch.become(_place(options), words)


def _stop(options: argparse.Namespace) -> int:
    return _agent(options, "stop")


def _reconfigure(options: argparse.Namespace) -> int:
    return _agent(options, "reconfigure")


def _rollback(options: argparse.Namespace) -> int:
    return _agent(options, "rollback", rollback_to=options.release or "", app=options.app)


def _agent(options: argparse.Namespace, command: str, **more: Any) -> int:
    from bootagent import agent, console

    told = console.stderr(options.log, options.verbose)
    request = agent.Request(
        command=command,
        config=_config_file(options),
        tags=_tags(options) if hasattr(options, "tag") else {},
        lock_wait=options.lock_wait,
        retry=getattr(options, "retry", False),
        force=getattr(options, "force", False),
        reason=getattr(options, "reason", "somebody asked"),
        **more,
    )
    signal.signal(signal.SIGTERM, _end_at_once)
    relay = _relay(options)
    hearers = [told, relay] if relay else [told]
    machine = _machine(options, lambda event: _each(hearer.hear(event) for hearer in hearers))
    outcome = agent.run(request, machine, lambda record: _each(hearer.hear_record(record) for hearer in hearers))
    told.close()
    if relay:
        relay.end(outcome)
    with contextlib.suppress(OSError):  # the exit code says it, even when nobody reads the rest
        _tell_outcome(outcome, as_json=options.json)
        sys.stdout.flush()
    return outcome.exit_code


def _end_at_once(number: int, frame: object) -> NoReturn:
    """Leave as a power cut would, which the next run knows how to take up; but leave no program behind."""
    from bootagent.machine import kill_programs

    kill_programs()
    os._exit(128 + number)


def _relay(options: argparse.Namespace) -> Any:
    """Where the daemon listens, when it started this run."""
    if getattr(options, "report_to", None) is None:
        return None
    from bootagent.relay import Relay

    return Relay(options.report_to)


def _each(calls: Iterable[None]) -> None:
    for _ in calls:
        pass


def _tell_outcome(outcome: Any, *, as_json: bool) -> None:
    if as_json:
        endings = {name: vars(ending) for name, ending in outcome.endings.items()}
        _print_json(vars(outcome) | {"endings": endings})
    else:
        _print_outcome(outcome)


def _print_outcome(outcome: Any) -> None:
    for problem in outcome.problems:
        _complain(problem)
    for name, ending in outcome.endings.items():
        if ending.exit_code == EXIT_DONE:
            print(f"{name}: {ending.sentence}")
        else:
            _complain(f"{name}: {ending.sentence}")
            if ending.tail.strip():
                print(_indented(ending.tail), file=sys.stderr)


def _plan(options: argparse.Namespace) -> int:
    from bootagent import report, state, survey
    from bootagent.config import resolve

    machine = _machine(options)
    document = survey.load_document(_config_file(options))
    loaded = state.load(machine)
    instance = survey.read_instance(document, _tags(options), loaded.tags_on)
    config = resolve.resolve(document, instance.coordinates(), instance.tags)
    remembered = loaded.on_instance(instance.instance_id)
    before = survey.attachments(config, instance, machine, survey.moment_of(instance, retry=options.retry))
    known = survey.look(config, instance, machine, remembered)
    made = survey.make_plan(config, known, remembered.apps, instance, machine, options.retry)
    lanes = report.planned(made, machine, before)
    _print_json(lanes) if options.json else print(report.plan_text(lanes))
    return EXIT_DONE


def _status(options: argparse.Namespace) -> int:
    from bootagent import report

    found = report.wait_for_status(
        _machine(options), _definitions(options), options.wait, serving=options.until_serving
    )
    _print_json(found) if options.json else print(report.status_text(found))
    code: int = found["exit_code"]
    return code


def _history(options: argparse.Namespace) -> int:
    from bootagent import report

    runs = report.history(_machine(options))
    _print_json(runs) if options.json else print(report.history_text(runs))
    return EXIT_DONE


def _timeline(options: argparse.Namespace) -> int:
    from bootagent import picture, report

    if options.svg:
        text = picture.svg(report.boot_timeline(_machine(options)))
        print(text, end="") if options.svg == "-" else Path(options.svg).write_text(text)
        return EXIT_DONE
    found = report.timeline(_machine(options))
    _print_json(found) if options.json else print(report.timeline_text(found))
    return EXIT_DONE


def _facts(options: argparse.Namespace) -> int:
    from bootagent import console, instance, state

    overrides = instance.Overrides(_tags(options), remembered=state.load(_machine(options)).tags_on)
    found = instance.read(overrides, lambda tags: set(), within=options.within)
    if not {"metadata", "user-data"} & set(found.tag_origin.values()):  # metadata shows none: a boot would ask EC2 now
        try:
            own = instance.ec2_tags(found)
            found = replace(
                found, tags={**own, **found.tags}, tag_origin={**dict.fromkeys(own, "ec2"), **found.tag_origin}
            )
        except BootagentError as error:
            _complain(str(error))
    facts = {name: value for name, value in vars(found).items() if name not in ("tags", "tag_origin", "region_origin")}
    if options.json:
        _print_json(facts | {"tags": dict(found.tags), "tag_origin": dict(found.tag_origin)})
    else:
        rows = [
            [name, value or "-", found.region_origin if name == "region" else "metadata"]
            for name, value in facts.items()
        ]
        rows += [[f"tag:{key}", value, found.tag_origin[key]] for key, value in sorted(found.tags.items())]
        print(console.table(rows, ["FACT", "VALUE", "FROM"]))
    return EXIT_DONE


def _check(options: argparse.Namespace) -> int:
    from bootagent.config import document, resolve

    main_file = Path(options.file) if options.file else _config_file(options)
    files = document.config_files(main_file)
    # A file named here is somebody's draft; the one in place must be safe to act on.
    found = resolve.validate(document.load(files, trusted=not options.file))
    if options.json:
        _print_json({"problems": [], "apps": list(found.tables["apps"]), "roles": sorted(found.tables["roles"])})
        return EXIT_DONE
    roles = ", ".join(sorted(found.tables["roles"]))
    print(f"{', '.join(map(str, files))}: good; apps {', '.join(found.tables['apps'])}; roles {roles}")
    return EXIT_DONE


def _schema(options: argparse.Namespace) -> int:
    from bootagent.config import schema

    print(schema.text(), end="")
    return EXIT_DONE


def _publish(options: argparse.Namespace) -> int:
    from bootagent import console
    from bootagent.publish import publish

    told = console.stderr(options.log, options.verbose)
    done = publish(
        _machine(options, told.hear),
        url=options.url,
        repo=Path(options.repo),
        ref=options.ref,
        compression=options.compression,
        region=options.region,
    )
    told.close()
    if options.json:
        _print_json(vars(done) | {"pointer": vars(done.pointer)})
    elif done.unchanged:
        print(f"{done.pointer_url} names {done.pointer.revision} already")
    else:
        print(f"{done.pointer_url} now names {done.pointer.revision}: {done.bundle_url} ({done.pointer.size} bytes)")
    return EXIT_DONE


def _user_data(options: argparse.Namespace) -> int:
    from bootagent import user_data

    tags = user_data.tags_of(
        options.role,
        options.environment,
        _tags(options),
        role_key=options.role_key,
        environment_key=options.environment_key,
    )
    if options.document and options.install:
        raise UsageError("--document and --install exclude each other: the document is for an image with the agent")
    if not options.install and (options.sha256 or options.config):
        raise UsageError("--sha256 and --config go with --install")
    if options.document:
        print(user_data.document(tags), end="")
    elif options.install:
        configuration = _draft(Path(options.config), options.role) if options.config else None
        text = user_data.install_script(tags, options.install, sha256=options.sha256, configuration=configuration)
        print(text, end="")
    else:
        print(user_data.script(tags), end="")
    return EXIT_DONE


def _draft(file: Path, role: str) -> str:
    """A configuration that is to be sent along: wrong, it would be found out where nobody looks."""
    from bootagent.config import document, resolve

    found = resolve.validate(document.load([file], trusted=False))
    if role not in found.tables["roles"]:
        raise UsageError(f"{file} has no role {role!r}; it has {', '.join(sorted(found.tables['roles']))}")
    return file.read_text()


def _sandbox(options: argparse.Namespace) -> int:
    try:
        from bootagent.sandbox.session import SandboxOptions, run
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the sandbox needs {error.name}", remedy="install it: pip install 'bootagent[sandbox]'"
        ) from None
    return run(
        SandboxOptions(
            config=Path(options.config) if options.config else None,
            tags=_tags(options),
            publish={app: Path(path) for app, path in _pairs(options.publish, "--publish APP=REPOSITORY")},
            files={place: Path(path) for place, path in _pairs(options.file, "--file DESTINATION=PATH")},
            root=Path(options.root) if options.root else None,
            keep=options.keep,
            user_data=Path(options.user_data) if options.user_data else None,
        ),
        sys.stdout,
    )


# --- arguments ---------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bootagent",
        description="Makes this instance what its tags say: releases, services, health.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bootagent {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], said: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=said, description=said[0].upper() + said[1:] + ".", epilog=_EPILOG)
        added.formatter_class = argparse.RawDescriptionHelpFormatter
        added.set_defaults(run=run)
        return added

    for name, run, said in (
        ("run", _run, "configure this instance at boot, then stay and watch for notices and signals"),
        ("reconfigure", _reconfigure, "do the same again without a reboot; with nothing new it changes nothing"),
    ):
        added = command(name, run, said)
        _add_place(added)
        _add_tags(added)
        _add_work(added)
        added.add_argument(
            "--retry", action="store_true", help="deploy a revision that failed or was rolled back again"
        )
        if name == "run":
            added.add_argument("--once", action="store_true", help="configure and end; do not stay")
            added.add_argument(
                "--because", choices=("run", "reconfigure", "watch", "retry"), default="run", help=argparse.SUPPRESS
            )
            _add_report_to(added)
    added = command("stop", _stop, "take all services down gracefully; a reboot or reconfigure starts them again")
    _add_place(added)
    _add_work(added)
    added.add_argument("--force", action="store_true", help="end a run that is still at work after --lock-wait")
    added.add_argument("--reason", default="somebody asked", metavar="TEXT", help="why, for history and status")
    _add_report_to(added)
    added = command("rollback", _rollback, "go back to the release before the current one, or to RELEASE")
    added.add_argument("release", nargs="?", metavar="RELEASE", help="e.g. 20261120093000")
    added.add_argument("--app", help="which app, when the role has several")
    _add_place(added)
    _add_tags(added)
    _add_work(added)

    added = command("plan", _plan, "show what reconfigure would do, and change nothing")
    _add_place(added)
    _add_tags(added)
    _add_json(added)
    added.add_argument("--retry", action="store_true", help="plan as reconfigure --retry would")
    added = command("status", _status, "show how the last run ended, the releases and the services")
    _add_place(added)
    _add_json(added)
    added.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="SECONDS", help="wait for a run to finish, but no longer"
    )
    added.add_argument("--until-serving", action="store_true", help="wait on while the last run left nothing to serve")
    for name, run, said in (
        ("history", _history, "list the runs, newest first"),
        ("timeline", _timeline, "show where the last run's seconds went"),
    ):
        added = command(name, run, said)
        _add_place(added)
        _add_json(added)
    added.add_argument("--svg", metavar="FILE", help="draw the boot, kernel and systemd included; - is standard output")
    added = command("facts", _facts, "show what this instance knows about itself, and from where")
    _add_root(added)
    _add_tags(added)
    _add_json(added)
    added.add_argument("--within", type=_seconds, default=10.0, metavar="SECONDS", help="give up after (default 10)")
    added = command("check", _check, "check a configuration and list everything that is wrong with it")
    added.add_argument("file", nargs="?", metavar="FILE", help="a draft; default: the configuration in place")
    _add_place(added)
    _add_json(added)
    command("schema", _schema, "print the configuration's JSON Schema, for editors")

    added = command("publish", _publish, "publish a git tree as a release: bundle first, pointer last")
    added.add_argument("url", metavar="s3://BUCKET/NAME.json", help="the release pointer")
    added.add_argument("--repo", default=".", help="the git work tree (default: here)")
    added.add_argument("--ref", default="HEAD", help="what to publish (default: HEAD, of a clean tree)")
    added.add_argument("--compression", choices=("zst", "gz"), default="zst", help="default: zst")
    added.add_argument("--region", help="the bucket's region")
    _add_logging(added)
    _add_json(added)
    added.set_defaults(root="/")
    added = command("user-data", _user_data, "print the user-data that gives an instance its role at launch")
    added.add_argument("--role", required=True, help="the role")
    added.add_argument("--environment", help="the environment")
    _add_tags(added, "a further tag")
    added.add_argument("--document", action="store_true", help="a document the agent reads itself, without cloud-init")
    added.add_argument(
        "--install",
        metavar="URL",
        help="for a stock image: install the agent first, from s3:// or https://….deb or .pyz",
    )
    added.add_argument("--sha256", metavar="DIGEST", help="with --install: what the package must be")
    added.add_argument("--config", metavar="FILE", help="with --install: a configuration to put into the image")
    added.add_argument("--role-key", default="Role", metavar="KEY", help="the role's tag (default Role)")
    added.add_argument(
        "--environment-key", default="Environment", metavar="KEY", help="the environment's tag (default Environment)"
    )
    added = command(
        "sandbox", _sandbox, "boot a configuration against a simulated cloud on this machine, then clean up"
    )
    added.add_argument("--config", metavar="FILE", help="your configuration; default: a small sample app")
    _add_tags(added)
    added.add_argument(
        "--publish", action="append", default=[], metavar="APP=REPOSITORY", help="publish a git tree for an app first"
    )
    added.add_argument(
        "--file", action="append", default=[], metavar="DESTINATION=PATH", help="put a file into the machine first"
    )
    added.add_argument("--user-data", metavar="FILE", help="the instance's user-data")
    added.add_argument("--root", metavar="DIR", help="where the machine's files go; default: a temporary directory")
    added.add_argument("--keep", action="store_true", help="stay up afterwards, and say what to try")
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help=f"configuration (default {DEFAULT_CONFIG}, and conf.d/*.toml)")
    _add_root(parser)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", default="/", metavar="DIR", help="put every absolute path below DIR")


def _add_tags(
    parser: argparse.ArgumentParser,
    said: str = "overrides the instance's tag; run and reconfigure remember it on this instance until told KEY=",
) -> None:
    parser.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE", help=said)


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lock-wait",
        type=_seconds,
        default=TURN_SECONDS,
        metavar="SECONDS",
        help=f"how long to wait for another bootagent to finish (default {TURN_SECONDS:g})",
    )
    _add_logging(parser)
    _add_json(parser)


def _add_report_to(parser: argparse.ArgumentParser) -> None:
    """Where the daemon listens: a file descriptor, its own affair."""
    parser.add_argument("--report-to", type=int, help=argparse.SUPPRESS)


def _add_logging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log", choices=("auto", "text", "json"), default="auto", help="how to log; auto: json when not a terminal"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what was so already, too")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _machine(options: argparse.Namespace, listener: Callable[[Any], None] = lambda event: None) -> Any:
    from bootagent.machine import Machine

    return Machine(Path(options.root), listener)


def _config_file(options: argparse.Namespace) -> Path:
    if options.config:
        return Path(options.config)
    found: Path = _machine(options).real(DEFAULT_CONFIG)
    return found


def _place(options: argparse.Namespace) -> list[str]:
    """The options that say where the machine is, in full: the daemon does not keep our working directory's meaning."""
    config = ["--config", str(Path(options.config).absolute())] if options.config else []
    return ["--root", str(Path(options.root).absolute()), *config]


def _definitions(options: argparse.Namespace) -> str:
    """Where service directories are; a broken configuration must not keep ``status`` from answering."""
    from bootagent.config import document, resolve

    try:
        found = resolve.validate(document.load(document.config_files(_config_file(options)), trusted=False))
    except ConfigError:
        return "/etc/sv"
    place: str = found.tables["runit"]["definitions"]
    return place


def _tags(options: argparse.Namespace) -> dict[str, str]:
    return dict(_pairs(options.tag, "--tag KEY=VALUE", empty=True))


def _pairs(words: Sequence[str], form: str, *, empty: bool = False) -> list[tuple[str, str]]:
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and (value or empty)):
            raise UsageError(f"{word!r} has not the form {form}")
        pairs.append((key, value))
    return pairs


def _print_json(found: Any) -> None:
    print(json.dumps(found, indent=2, default=str))


def _complain(sentence: str) -> None:
    print(f"bootagent: {plain(sentence)}", file=sys.stderr)


def _indented(text: str) -> str:
    return "\n".join(f"    | {plain(line)}" for line in text.strip().splitlines())
