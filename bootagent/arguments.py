"""What the command line understands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from bootagent import __version__

DEFAULT_CONFIG = "/etc/bootagent/config.toml"
#: How long a run waits for another by itself: user-data and the boot take turns.
TURN_SECONDS = 3600.0
_EPILOG = (
    "exit codes: 0 done, 1 failed, 2 usage or configuration, 3 degraded (an old release serves), 75 try later\n"
    "The standard AWS variables are honoured: AWS_ENDPOINT_URL, AWS_EC2_METADATA_SERVICE_ENDPOINT, AWS_REGION …"
)


def parser(commands: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The parser; ``commands`` are what the parsed ``run`` is to be, by name."""
    parser = argparse.ArgumentParser(
        prog="bootagent",
        description="Makes this instance what its tags say: releases, services, health.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bootagent {__version__}")
    added_to = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, said: str) -> argparse.ArgumentParser:
        added = added_to.add_parser(name, help=said, description=said[0].upper() + said[1:] + ".", epilog=_EPILOG)
        added.formatter_class = argparse.RawDescriptionHelpFormatter
        added.set_defaults(run=commands[name])
        return added

    for name, said in (
        ("run", "configure this instance at boot, then stay and watch for notices and signals"),
        ("reconfigure", "do the same again without a reboot; with nothing new it changes nothing"),
    ):
        added = command(name, said)
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
            # Beside the daemon's runs: answer the lifecycle hooks of the autoscaling group.
            added.add_argument("--escort", choices=("launching", "terminating"), help=argparse.SUPPRESS)
            _add_report_to(added)
    added = command("stop", "take all services down gracefully, and this agent's mounts; reconfigure brings them back")
    _add_place(added)
    _add_work(added)
    added.add_argument("--force", action="store_true", help="end a run that is still at work after --lock-wait")
    how_far = added.add_mutually_exclusive_group()
    how_far.add_argument(
        "--shutdown", action="store_true", help="keep what the next boot needs; so it is when systemd shuts down"
    )
    how_far.add_argument(
        "--reset", action="store_true", help="remove the releases it made, too: as before the first boot; never data"
    )
    added.add_argument(
        "--reason", default="asked by bootagent stop", metavar="TEXT", help="why, for history and status"
    )
    added.add_argument(
        "--within",
        type=_seconds,
        metavar="SECONDS",
        help="be done by then: whoever does not end in time is cut short, which is told; default: no limit",
    )
    # From the daemon: the instant a notice tells; and that heartbeats may have the autoscaling group wait.
    added.add_argument("--until", metavar="TIME", help=argparse.SUPPRESS)
    added.add_argument("--escorted", action="store_true", help=argparse.SUPPRESS)
    _add_report_to(added)
    added = command("rollback", "go back to the release before the current one, or to RELEASE")
    added.add_argument("release", nargs="?", metavar="RELEASE", help="e.g. 20261120093000")
    added.add_argument("--app", help="which app, when the role has several")
    _add_place(added)
    _add_tags(added)
    _add_work(added)

    added = command("plan", "show what reconfigure would do, and change nothing")
    _add_place(added)
    _add_tags(added)
    _add_json(added)
    added.add_argument("--retry", action="store_true", help="plan as reconfigure --retry would")
    added = command("status", "show how the last run ended, the releases and the services")
    _add_place(added)
    _add_json(added)
    added.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="SECONDS", help="wait for a run to finish, but no longer"
    )
    added.add_argument("--until-serving", action="store_true", help="wait on while the last run left nothing to serve")
    for name, said in (
        ("history", "list the runs, newest first"),
        ("timeline", "show where the last run's seconds went"),
    ):
        added = command(name, said)
        _add_place(added)
        _add_json(added)
    added.add_argument("--svg", metavar="FILE", help="draw the boot, kernel and systemd included; - is standard output")
    added = command("env", "show what a service finds in its environment, and from where; secrets are not shown")
    added.add_argument("service", metavar="SERVICE", help="SERVICE or APP.SERVICE")
    _add_place(added)
    _add_tags(added)
    _add_json(added)
    added = command("env-import", "put a .env file or a Heroku dump into a directory for chpst -e")
    added.add_argument(
        "file", metavar="FILE", help="NAME=value lines, JSON, or what heroku config prints; - is standard input"
    )
    added.add_argument("directory", metavar="DIRECTORY", help="made if it is not there; what else it holds stays")
    added = command("env-export", "print a directory for chpst -e as a .env file that a shell reads too")
    added.add_argument("directory", metavar="DIRECTORY", help="the directory")
    _add_json(added)
    added = command("facts", "show what this instance knows about itself, and from where")
    _add_root(added)
    _add_tags(added)
    _add_json(added)
    added.add_argument("--within", type=_seconds, default=10.0, metavar="SECONDS", help="give up after (default 10)")
    added = command("check", "check a configuration and list everything that is wrong with it")
    added.add_argument("file", nargs="?", metavar="FILE", help="a draft; default: the configuration in place")
    _add_place(added)
    _add_json(added)
    added = command("keys", "list the keys of a configuration with their defaults and meanings")
    added.add_argument("word", nargs="?", default="", metavar="WORD", help="only those that have it in their names")
    _add_json(added)
    command("schema", "print the configuration's JSON Schema, for editors")

    added = command("publish", "publish a git tree as a release: bundle first, pointer last")
    added.add_argument("url", metavar="s3://BUCKET/NAME.json", help="the release pointer")
    added.add_argument("--repo", default=".", help="the git work tree (default: here)")
    added.add_argument("--ref", default="HEAD", help="what to publish (default: HEAD, of a clean tree)")
    added.add_argument("--compression", choices=("zst", "gz"), default="zst", help="default: zst")
    added.add_argument("--region", help="the bucket's region")
    _add_logging(added)
    _add_json(added)
    added.set_defaults(root="/")
    added = command("snapshot", "take a snapshot of a mounted volume, wait until it is completed, and delete old ones")
    added.add_argument(
        "what", metavar="MOUNTPOINT|VOLUME", help="what is on the volume is frozen for the moment it takes"
    )
    added.add_argument(
        "--tag",
        action="append",
        default=[],
        required=True,
        metavar="KEY=VALUE",
        help="a tag of the snapshot; those with the same tags are a series",
    )
    added.add_argument("--keep", type=int, default=5, metavar="N", help="how many of the series stay (default 5)")
    added.add_argument("--description", metavar="TEXT", help="default: says what it is of")
    added.add_argument("--region", help="default: the instance's")
    added.add_argument("--no-wait", action="store_true", help="do not wait until it is completed")
    added.add_argument(
        "--within",
        type=_seconds,
        default=24 * 3600.0,
        metavar="SECONDS",
        help="how long to wait until it is completed (default: a day)",
    )
    _add_root(added)
    _add_logging(added)
    _add_json(added)
    added = command("gc", "list volumes and snapshots that were left over and that nothing uses")
    added.add_argument("--delete", action="store_true", help="delete them")
    added.add_argument("--region", help="default: the instance's")
    added.add_argument("--zone", help="volumes of this availability zone only")
    _add_root(added)
    _add_logging(added)
    _add_json(added)
    added = command("user-data", "print the user-data that gives an instance its role at launch")
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
    added = command("sandbox", "boot a configuration against a simulated cloud on this machine, then clean up")
    added.add_argument("--config", metavar="FILE", help="your configuration; default: a small sample app")
    _add_tags(added)
    added.add_argument(
        "--publish", action="append", default=[], metavar="APP=REPOSITORY", help="publish a git tree for an app first"
    )
    added.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="DESTINATION=PATH",
        help="put a file or a tree into the machine first",
    )
    added.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="ORIGIN=VALUE",
        help="a secret of the simulated cloud, e.g. ssm:/web/TOKEN=…; those not given are made up",
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
