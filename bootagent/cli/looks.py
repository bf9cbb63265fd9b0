"""The commands that only look."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from bootagent.cli.common import (
    complain,
    config_file,
    definitions_of,
    machine_of,
    print_json,
    tags_of,
)
from bootagent.errors import EXIT_DONE, BootagentError, UsageError


def plan(options: argparse.Namespace) -> int:
    """What a run would do."""
    from bootagent import plan, readiness, state, survey
    from bootagent.config import resolve
    from bootagent.report import plan as report

    machine = machine_of(options)
    document = survey.load_document(config_file(options))
    loaded = state.load(machine)
    instance = survey.read_instance(document, tags_of(options), loaded.tags_on)
    config = resolve.resolve(document, instance.coordinates(), instance.tags)
    remembered = loaded.on_instance(instance.instance_id)
    before = survey.attachments(config, instance, machine, survey.moment_of(instance, retry=options.retry))
    known = survey.look(config, instance, machine, remembered)
    pooled = readiness.is_kept_back(hooked=config.lifecycle is not None)
    there = survey.services_to_stop(document, remembered, machine)
    made = survey.make_plan(config, known, there, remembered.apps, instance, machine, options.retry, not pooled)
    down = plan.services_down(there) if pooled else None
    lanes = report.facts(made, machine, before, down)
    print_json(lanes) if options.json else print(report.text(lanes))
    return EXIT_DONE


def status(options: argparse.Namespace) -> int:
    """How it is."""
    from bootagent.report import status

    found = status.wait(machine_of(options), definitions_of(options), options.wait, serving=options.until_serving)
    print_json(found) if options.json else print(status.text(found))
    code: int = found["exit_code"]
    return code


def history(options: argparse.Namespace) -> int:
    """Every run that is known."""
    from bootagent.report import history

    runs = history.facts(machine_of(options))
    print_json(runs) if options.json else print(history.text(runs))
    return EXIT_DONE


def timeline(options: argparse.Namespace) -> int:
    """Where the seconds went."""
    from bootagent.report import picture, timeline

    if options.svg:
        text = picture.svg(timeline.of_boot(machine_of(options)))
        print(text, end="") if options.svg == "-" else Path(options.svg).write_text(text)
        return EXIT_DONE
    found = timeline.facts(machine_of(options))
    print_json(found) if options.json else print(timeline.text(found))
    return EXIT_DONE


def env(options: argparse.Namespace) -> int:
    """What a service sees."""
    from bootagent import state, survey, variables
    from bootagent.config import resolve

    if options.root == "/" and os.geteuid() != 0:
        raise UsageError("only root sees what services get", remedy="sudo bootagent env …")
    machine = machine_of(options)
    document = survey.load_document(config_file(options))
    instance = survey.read_instance(document, tags_of(options), state.load(machine).tags_on)
    config = resolve.resolve(document, instance.coordinates(), instance.tags)
    found = variables.of_service(machine, config, options.service)
    print_json([vars(one) for one in found]) if options.json else print(variables.text(found))
    return EXIT_DONE


def facts(options: argparse.Namespace) -> int:
    """What the instance is known by."""
    from bootagent import console, instance, state

    overrides = instance.Overrides(tags_of(options), remembered=state.load(machine_of(options)).tags_on)
    found = instance.read(overrides, lambda tags: set(), within=options.within)
    if not {"metadata", "user-data"} & set(found.tag_origin.values()):  # metadata shows none: a boot would ask EC2 now
        try:
            own = instance.ec2_tags(found)
            found = replace(
                found, tags={**own, **found.tags}, tag_origin={**dict.fromkeys(own, "ec2"), **found.tag_origin}
            )
        except BootagentError as error:
            complain(str(error))
    facts = {name: value for name, value in vars(found).items() if name not in ("tags", "tag_origin", "region_origin")}
    if options.json:
        print_json(facts | {"tags": dict(found.tags), "tag_origin": dict(found.tag_origin)})
    else:
        rows = [
            [name, value or "-", found.region_origin if name == "region" else "metadata"]
            for name, value in facts.items()
        ]
        rows += [[f"tag:{key}", value, found.tag_origin[key]] for key, value in sorted(found.tags.items())]
        print(console.table(rows, ["FACT", "VALUE", "FROM"]))
    return EXIT_DONE


def check(options: argparse.Namespace) -> int:
    """Whether a configuration is good."""
    from bootagent.config import document, resolve

    main_file = Path(options.file) if options.file else config_file(options)
    files = document.config_files(main_file)
    # A file named here is somebody's draft; the one in place must be safe to act on.
    found = resolve.validate(document.load(files, trusted=not options.file))
    if options.json:
        names = {"apps": list(found.tables["apps"])} | {key: sorted(found.tables[key]) for key in ("roles", "modes")}
        print_json({"problems": [], **names})
        return EXIT_DONE
    roles, modes = (", ".join(sorted(found.tables[key])) for key in ("roles", "modes"))
    told = f"apps {', '.join(found.tables['apps'])}; roles {roles or 'none'}" + (f"; modes {modes}" if modes else "")
    print(f"{', '.join(map(str, files))}: good; {told}")
    return EXIT_DONE


def keys(options: argparse.Namespace) -> int:
    """The keys of the configuration."""
    from bootagent import console
    from bootagent.config import coordinates, reference

    found = [key for key in reference.all_keys() if options.word in key.path]
    if not found:
        raise UsageError(f"no key has {options.word!r} in its name", remedy="bootagent keys lists them all")
    if options.json:
        print_json([vars(key) for key in found])
    else:
        rows = [[key.path, key.default or "-", "{}" if key.filled_in else "", key.meaning] for key in found]
        print(console.table(rows, ["KEY", "DEFAULT", "", "MEANING"]))
        if any(key.filled_in for key in found):
            names = ", ".join(f"{{{name}}}" for name in (*coordinates.NAMES, "tag:KEY"))
            print(f"\n{{}}: {names} are filled in")
    return EXIT_DONE


def schema(options: argparse.Namespace) -> int:
    """The schema of the configuration."""
    from bootagent.config import schema

    print(schema.text(), end="")
    return EXIT_DONE
