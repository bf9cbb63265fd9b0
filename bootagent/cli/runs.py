"""The commands that change the machine, and the daemon."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NoReturn

from bootagent.cli.common import (
    complain,
    config_file,
    indented,
    machine_of,
    place_of,
    print_json,
    tags_of,
)
from bootagent.errors import EXIT_DONE, EXIT_FAILED, UsageError


def run(options: argparse.Namespace) -> int:
    """Configure once, or stay."""
    if options.escort:
        return _escort(options)
    if not options.once:
        _stay(options)
    return _agent(options, options.because)


def _stay(options: argparse.Namespace) -> NoReturn:
    from bootagent.daemon import launch

    if options.retry:
        raise UsageError("--retry is for one run", remedy="bootagent reconfigure --retry")
    tags = tags_of(options)  # refused here, not by every run to come
    words = [
        "--lock-wait",
        f"{options.lock_wait:g}",
        "--log",
        options.log,
        *(["--verbose"] if options.verbose else []),
        *(["--json"] if options.json else []),
    ]
    words += [f"--tag={key}={value}" for key, value in tags.items()]
    launch.become(place_of(options), words)


def _escort(options: argparse.Namespace) -> int:
    from bootagent import console
    from bootagent.lifecycle import place
    from bootagent.lifecycle.escort import Escort

    signal.signal(signal.SIGTERM, _end_at_once)
    found = place.read(machine_of(options), config_file(options), tags_of(options))
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


def stop(options: argparse.Namespace) -> int:
    """Take all down."""
    from bootagent import shutdown

    begun = time.monotonic()
    extent = "reset" if options.reset else "stop"
    if options.shutdown or (not options.reset and shutdown.is_under_way(machine_of(options))):
        extent = "shutdown"
    limits = [options.within] if options.within is not None else []
    limits += [shutdown.seconds_until(options.until)] if options.until is not None else []
    over_at = begun + min(limits) if limits else None
    return _agent(options, "stop", extent=extent, over_at=over_at, escorted=options.escorted)


def reconfigure(options: argparse.Namespace) -> int:
    """Configure again."""
    return _agent(options, "reconfigure")


def rollback(options: argparse.Namespace) -> int:
    """Go back to a release."""
    return _agent(options, "rollback", rollback_to=options.release or "", app=options.app)


def _agent(options: argparse.Namespace, command: str, **more: Any) -> int:
    from bootagent import agent, console

    told = console.stderr(options.log, options.verbose)
    request = agent.Request(
        command=command,
        config=config_file(options),
        tags=tags_of(options) if hasattr(options, "tag") else {},
        lock_wait=options.lock_wait,
        retry=getattr(options, "retry", False),
        force=getattr(options, "force", False),
        reason=getattr(options, "reason", agent.Request.reason),
        **more,
    )
    signal.signal(signal.SIGTERM, _end_at_once)
    relay = _relay(options)
    hearers = [told, relay] if relay else [told]
    machine = machine_of(options, lambda event: _each(hearer.hear(event) for hearer in hearers))
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
        print_json(asdict(outcome))
    else:
        _print_outcome(outcome)


def _print_outcome(outcome: Any) -> None:
    for problem in outcome.problems:
        complain(problem)
    for name, ending in outcome.endings.items():
        if ending.exit_code == EXIT_DONE:
            print(f"{name}: {ending.sentence}")
        else:
            complain(f"{name}: {ending.sentence}")
            if ending.tail.strip():
                print(indented(ending.tail), file=sys.stderr)
