"""Commands: parse, call one library function, print, map errors to exit codes.

Exit codes: 0 all done, 1 some scan failed or it was interrupted (what was finished is kept), 2 wrong use. What is heavy
is imported inside the commands.
"""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Final, NoReturn

from slidescreen.cli import (  # noqa: F401  # each adds its commands
    data,
    evaluate,
    explain,
    look,
    models,
    pages,
    screen,
    train,
)
from slidescreen.cli.app import app, log, stopped
from slidescreen.errors import ModelError, SlidescreenError, UsageError

ORDER: Final = ("run", "report", "info", "selfcheck", "classify", "explain", "evaluate", "demo", "doctor")
"""Of the commands in the help: what most people come for first. Groups follow."""
app.registered_commands.sort(key=lambda command: ORDER.index(getattr(command.callback, "__name__", "")))

TYPER_INTERRUPTED: Final = 130
"""What typer makes of Ctrl-C."""


def _stop(_signal: int, _frame: object) -> NoReturn:
    stopped.set()
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: run a command and exit with its code."""
    for blow in (signal.SIGINT, signal.SIGTERM):
        signal.signal(blow, _stop)
    try:
        app()
    except (UsageError, ModelError) as error:
        code = _say(error, 2)
    except SlidescreenError as error:
        code = _say(error, 1)
    except OSError as error:
        code = _say(SlidescreenError(f"{error.filename or 'output'}: {error.strerror or error}; check disk and permissions"), 1)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != TYPER_INTERRUPTED:
            raise
        log.error("interrupted: what was finished is kept, nothing is half written; the same command goes on from there")
        code = 1
    sys.exit(code)


def _say(error: SlidescreenError, code: int) -> int:
    log.error("%s", error)
    log.debug("%s", "".join(traceback.format_exception(error)).rstrip(), extra={"lines": True})
    return code
