"""The commands of whoever prepares what instances get, and the sandbox."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bootagent.cli.common import (
    complain,
    instance_here,
    machine_of,
    pairs,
    print_json,
    tags_of,
)
from bootagent.errors import EXIT_DONE, EXIT_FAILED, UsageError


def publish(options: argparse.Namespace) -> int:
    """A commit as a bundle."""
    from bootagent import console
    from bootagent.publish import publish

    told = console.stderr(options.log, options.verbose)
    done = publish(
        machine_of(options, told.hear),
        url=options.url,
        repo=Path(options.repo),
        ref=options.ref,
        compression=options.compression,
        region=options.region,
    )
    told.close()
    if options.json:
        print_json(vars(done) | {"pointer": vars(done.pointer)})
    elif done.unchanged:
        print(f"{done.pointer_url} names {done.pointer.revision} already")
    else:
        print(f"{done.pointer_url} now names {done.pointer.revision}: {done.bundle_url} ({done.pointer.size} bytes)")
    return EXIT_DONE


def snapshot(options: argparse.Namespace) -> int:
    """Take a snapshot of a volume."""
    from bootagent import console
    from bootagent.publish import snapshot

    told = console.stderr(options.log, options.verbose)
    taken = snapshot.take(
        machine_of(options, told.hear),
        snapshot.Wanted(
            what=options.what,
            tags=tuple(pairs(options.tag, "--tag KEY=VALUE")),
            keep=options.keep,
            region=options.region or instance_here().region,
            description=options.description,
            wait=not options.no_wait,
            within=options.within,
        ),
    )
    told.close()
    if options.json:
        print_json(vars(taken))
        return EXIT_DONE
    frozen = f", frozen for {taken.frozen_seconds:g} s" if taken.mountpoint else ""
    print(f"{taken.snapshot_id} of {taken.volume_id} is {taken.state}{frozen}")
    if taken.pruned:
        print(f"deleted {', '.join(taken.pruned)}")
    if taken.spared:
        complain(f"in use, and so not deleted: {', '.join(taken.spared)}")
    return EXIT_DONE


def gc(options: argparse.Namespace) -> int:
    """Volumes that are left over."""
    from bootagent import console, gc

    told = console.stderr(options.log, options.verbose)
    here = instance_here()
    machine, region = machine_of(options, told.hear), options.region or here.region
    found = gc.strays(machine, region, instance_id=here.instance_id, zone=options.zone)
    removals = gc.delete(machine, region, found) if options.delete else []
    told.close()
    errors = {one.stray.id: one.error for one in removals if one.error}
    fates = {one.id: ("left" if one.id in errors else "deleted") if options.delete else "stray" for one in found}
    if options.json:
        print_json([{**vars(one), "fate": fates[one.id], "error": errors.get(one.id)} for one in found])
    elif not found:
        print("nothing is left over")
    else:
        rows = [[one.id, f"{one.size_gib} GiB", one.purpose, one.since, fates[one.id], one.why] for one in found]
        print(console.table(rows, ["ID", "SIZE", "FOR", "SINCE", "FATE", "WHY"]))
        if not options.delete:
            print("\nbootagent gc --delete deletes them.")
    for name, error in errors.items():
        complain(f"{name}: {error}")
    return EXIT_FAILED if errors else EXIT_DONE


def env_import(options: argparse.Namespace) -> int:
    """From a dump to a directory."""
    from bootagent.environment import dump, exchange
    from bootagent.machine import Machine

    content = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
    shown = "standard input" if options.file == "-" else options.file
    found = dump.parse(content, shown)
    exchange.put(Machine(), Path(options.directory).absolute(), found, shown)
    print(f"{options.directory} has {len(found)} variables of {shown}")
    return EXIT_DONE


def env_export(options: argparse.Namespace) -> int:
    """From a directory to a dump."""
    from bootagent.environment import dump, exchange

    found = exchange.read(Path(options.directory).absolute())
    text = dump.to_json(found) if options.json else dump.text(found)
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    return EXIT_DONE


def user_data(options: argparse.Namespace) -> int:
    """What a launch is given."""
    from bootagent import user_data

    tags = user_data.tags_of(
        options.role,
        options.environment,
        tags_of(options),
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


def sandbox(options: argparse.Namespace) -> int:
    """Try it all here."""
    try:
        from bootagent.sandbox.session import SandboxOptions, run
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the sandbox needs {error.name}", remedy="install it: pip install 'bootagent[sandbox]'"
        ) from None
    return run(
        SandboxOptions(
            config=Path(options.config) if options.config else None,
            tags=tags_of(options),
            publish={app: Path(path) for app, path in pairs(options.publish, "--publish APP=REPOSITORY")},
            files={place: Path(path) for place, path in pairs(options.file, "--file DESTINATION=PATH")},
            secrets=dict(pairs(options.secret, "--secret ORIGIN=VALUE")),
            root=Path(options.root) if options.root else None,
            keep=options.keep,
            user_data=Path(options.user_data) if options.user_data else None,
        ),
        sys.stdout,
    )
