"""The commands of the command line, their exit codes, and the only printer."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from bootagent.arguments import DEFAULT_CONFIG, parser
from bootagent.errors import EXIT_DONE, EXIT_FAILED, BootagentError, ConfigError, UsageError, plain

#: A developer's machine has no metadata, and whoever sits there waits.
HERE_SECONDS = 2.0
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def _parser() -> argparse.ArgumentParser:
    return parser(
        {
            "run": _run,
            "reconfigure": _reconfigure,
            "stop": _stop,
            "rollback": _rollback,
            "plan": _plan,
            "status": _status,
            "history": _history,
            "timeline": _timeline,
            "env": _env,
            "env-import": _env_import,
            "env-export": _env_export,
            "facts": _facts,
            "check": _check,
            "keys": _keys,
            "schema": _schema,
            "publish": _publish,
            "snapshot": _snapshot,
            "gc": _gc,
            "user-data": _user_data,
            "sandbox": _sandbox,
        }
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
    if options.escort:
        return _escort(options)
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


def _escort(options: argparse.Namespace) -> int:
    from bootagent import console
    from bootagent.lifecycle import place
    from bootagent.lifecycle.escort import Escort

    signal.signal(signal.SIGTERM, _end_at_once)
    found = place.read(_machine(options), _config_file(options), _tags(options))
    if found is None:
        return EXIT_DONE
    told, relay, started = console.stderr(options.log, options.verbose), _relay(options), time.monotonic()

    def tell(sentence: str, wrong: bool) -> None:
        about = {"t": round(time.monotonic() - started, 2), "step": "answer the autoscaling group"}
        told.hear_record(
            {"event": "failed", **about, "error": sentence} if wrong else {"event": "note", **about, "step": sentence}
        )
        if relay:
            relay.say(sentence)

    escort = Escort(found, tell)
    done = escort.launching() if options.escort == "launching" else escort.terminating()
    return EXIT_DONE if done else EXIT_FAILED


def _stop(options: argparse.Namespace) -> int:
    from bootagent import shutdown

    begun = time.monotonic()
    extent = "reset" if options.reset else "stop"
    if options.shutdown or (not options.reset and shutdown.is_under_way(_machine(options))):
        extent = "shutdown"
    limits = [options.within] if options.within is not None else []
    limits += [shutdown.seconds_until(options.until)] if options.until is not None else []
    over_at = begun + min(limits) if limits else None
    return _agent(options, "stop", extent=extent, over_at=over_at, escorted=options.escorted)


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
        _print_json(asdict(outcome))
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
    from bootagent import plan, readiness, state, survey
    from bootagent.config import resolve
    from bootagent.report import plan as report

    machine = _machine(options)
    document = survey.load_document(_config_file(options))
    loaded = state.load(machine)
    instance = survey.read_instance(document, _tags(options), loaded.tags_on)
    config = resolve.resolve(document, instance.coordinates(), instance.tags)
    remembered = loaded.on_instance(instance.instance_id)
    before = survey.attachments(config, instance, machine, survey.moment_of(instance, retry=options.retry))
    known = survey.look(config, instance, machine, remembered)
    pooled = config.lifecycle is not None and readiness.is_pooled()
    there = survey.services_to_stop(document, remembered, machine)
    made = survey.make_plan(config, known, there, remembered.apps, instance, machine, options.retry, not pooled)
    down = plan.services_down(there) if pooled else None
    lanes = report.facts(made, machine, before, down)
    _print_json(lanes) if options.json else print(report.text(lanes))
    return EXIT_DONE


def _status(options: argparse.Namespace) -> int:
    from bootagent.report import status

    found = status.wait(_machine(options), _definitions(options), options.wait, serving=options.until_serving)
    _print_json(found) if options.json else print(status.text(found))
    code: int = found["exit_code"]
    return code


def _history(options: argparse.Namespace) -> int:
    from bootagent.report import history

    runs = history.facts(_machine(options))
    _print_json(runs) if options.json else print(history.text(runs))
    return EXIT_DONE


def _timeline(options: argparse.Namespace) -> int:
    from bootagent.report import picture, timeline

    if options.svg:
        text = picture.svg(timeline.of_boot(_machine(options)))
        print(text, end="") if options.svg == "-" else Path(options.svg).write_text(text)
        return EXIT_DONE
    found = timeline.facts(_machine(options))
    _print_json(found) if options.json else print(timeline.text(found))
    return EXIT_DONE


def _env(options: argparse.Namespace) -> int:
    from bootagent import state, survey, variables
    from bootagent.config import resolve

    if options.root == "/" and os.geteuid() != 0:
        raise UsageError("only root sees what services get", remedy="sudo bootagent env …")
    machine = _machine(options)
    document = survey.load_document(_config_file(options))
    instance = survey.read_instance(document, _tags(options), state.load(machine).tags_on)
    config = resolve.resolve(document, instance.coordinates(), instance.tags)
    found = variables.of_service(machine, config, options.service)
    _print_json([vars(one) for one in found]) if options.json else print(variables.text(found))
    return EXIT_DONE


def _env_import(options: argparse.Namespace) -> int:
    from bootagent.environment import dump, exchange
    from bootagent.machine import Machine

    content = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
    found = dump.parse(content)
    shown = "standard input" if options.file == "-" else options.file
    exchange.put(Machine(), Path(options.directory).absolute(), found, shown)
    print(f"{options.directory} has {len(found)} variables of {shown}")
    return EXIT_DONE


def _env_export(options: argparse.Namespace) -> int:
    from bootagent.environment import dump, exchange

    found = exchange.read(Path(options.directory).absolute())
    text = dump.to_json(found) if options.json else dump.text(found)
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
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
        names = {"apps": list(found.tables["apps"])} | {key: sorted(found.tables[key]) for key in ("roles", "modes")}
        _print_json({"problems": [], **names})
        return EXIT_DONE
    roles, modes = (", ".join(sorted(found.tables[key])) for key in ("roles", "modes"))
    told = f"apps {', '.join(found.tables['apps'])}; roles {roles or 'none'}" + (f"; modes {modes}" if modes else "")
    print(f"{', '.join(map(str, files))}: good; {told}")
    return EXIT_DONE


def _keys(options: argparse.Namespace) -> int:
    from bootagent import console
    from bootagent.config import reference

    found = [key for key in reference.all_keys() if options.word in key.path]
    if options.json:
        _print_json([vars(key) for key in found])
    else:
        print(
            console.table([[key.path, key.default or "-", key.meaning] for key in found], ["KEY", "DEFAULT", "MEANING"])
        )
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


def _snapshot(options: argparse.Namespace) -> int:
    from bootagent import console
    from bootagent.publish import snapshot

    told = console.stderr(options.log, options.verbose)
    taken = snapshot.take(
        _machine(options, told.hear),
        snapshot.Wanted(
            what=options.what,
            tags=tuple(_pairs(options.tag, "--tag KEY=VALUE")),
            keep=options.keep,
            region=options.region or _here().region,
            description=options.description,
            wait=not options.no_wait,
            within=options.within,
        ),
    )
    told.close()
    if options.json:
        _print_json(vars(taken))
        return EXIT_DONE
    frozen = f", frozen for {taken.frozen_seconds:g} s" if taken.mountpoint else ""
    print(f"{taken.snapshot_id} of {taken.volume_id} is {taken.state}{frozen}")
    if taken.pruned:
        print(f"deleted {', '.join(taken.pruned)}")
    if taken.spared:
        _complain(f"in use, and so not deleted: {', '.join(taken.spared)}")
    return EXIT_DONE


def _gc(options: argparse.Namespace) -> int:
    from bootagent import console, gc

    told = console.stderr(options.log, options.verbose)
    here = _here()
    machine, region = _machine(options, told.hear), options.region or here.region
    found = gc.strays(machine, region, instance_id=here.instance_id, zone=options.zone)
    removals = gc.delete(machine, region, found) if options.delete else []
    told.close()
    errors = {one.stray.id: one.error for one in removals if one.error}
    fates = {one.id: ("left" if one.id in errors else "deleted") if options.delete else "stray" for one in found}
    if options.json:
        _print_json([{**vars(one), "fate": fates[one.id], "error": errors.get(one.id)} for one in found])
    elif not found:
        print("nothing is left over")
    else:
        rows = [[one.id, f"{one.size_gib} GiB", one.purpose, one.since, fates[one.id], one.why] for one in found]
        print(console.table(rows, ["ID", "SIZE", "FOR", "SINCE", "FATE", "WHY"]))
        if not options.delete:
            print("\nbootagent gc --delete deletes them.")
    for name, error in errors.items():
        _complain(f"{name}: {error}")
    return EXIT_FAILED if errors else EXIT_DONE


def _here() -> Any:
    """The instance this is; on a machine that is none, nothing is known of it."""
    from bootagent import instance

    try:
        return instance.read(instance.Overrides(), lambda tags: set(), within=HERE_SECONDS)
    except BootagentError:
        return instance.Instance(None, None)


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
            secrets=dict(_pairs(options.secret, "--secret ORIGIN=VALUE")),
            root=Path(options.root) if options.root else None,
            keep=options.keep,
            user_data=Path(options.user_data) if options.user_data else None,
        ),
        sys.stdout,
    )


# --- the machine and its surroundings ------------------------------------------------------------------------------


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
