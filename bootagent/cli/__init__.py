"""The commands of the command line, their exit codes, and the only printers.

Commands import what they need when they are called: one that is looked at often should not load all others.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from bootagent.arguments import parser
from bootagent.cli import looks, runs, tools
from bootagent.cli.common import complain, indented, print_json
from bootagent.errors import EXIT_DONE, EXIT_FAILED, BootagentError, ConfigError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def _parser() -> argparse.ArgumentParser:
    return parser(
        {
            "run": runs.run,
            "reconfigure": runs.reconfigure,
            "stop": runs.stop,
            "rollback": runs.rollback,
            "plan": looks.plan,
            "status": looks.status,
            "history": looks.history,
            "timeline": looks.timeline,
            "env": looks.env,
            "env-import": tools.env_import,
            "env-export": tools.env_export,
            "facts": looks.facts,
            "check": looks.check,
            "keys": looks.keys,
            "schema": looks.schema,
            "publish": tools.publish,
            "snapshot": tools.snapshot,
            "gc": tools.gc,
            "user-data": tools.user_data,
            "sandbox": tools.sandbox,
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
            print_json({"problems": [vars(problem) for problem in error.problems]})
        for problem in error.problems:
            complain(str(problem))
        return error.exit_code
    except BootagentError as error:
        complain(str(error))
        if tail := str(getattr(error, "tail", "")).strip():
            print(indented(tail), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return EXIT_DONE
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EXIT_FAILED
