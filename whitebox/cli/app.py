"""The `whitebox` command: its commands, its global options, and how it fails.

What enters: arguments. What leaves: an exit code. A failure is one line on stderr that says what
is wrong and what to do next; a traceback only when WHITEBOX_DEBUG asks for it. Nothing heavy is
imported here, nor at the top of a command's module, so that `--help` and `list` answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from whitebox import config
from whitebox.cli import (
    accuracy,
    compose,
    doctor,
    explain,
    opt,
    predict,
    register,
    serve,
    show,
    stats,
    tune,
    unregister,
)
from whitebox.cli import list as list_
from whitebox.errors import WhiteboxError

EX_SOFTWARE = 70
EX_INTERRUPTED = 130

app = typer.Typer(
    name="whitebox",
    help="Register ONNX models, serve them, and look inside.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("register")(register.run)
app.command("compose")(compose.run)
app.command("list")(list_.run)
app.command("show")(show.run)
app.command("unregister")(unregister.run)
app.command("serve")(serve.run)
app.command("predict")(predict.run)
app.command("explain")(explain.run)
app.command("stats")(stats.run)
app.command("tune")(tune.run)
app.command("accuracy")(accuracy.run)
app.command("opt")(opt.run)
app.command("doctor")(doctor.run)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"whitebox {version('whitebox-runtime')}")
        raise typer.Exit


@app.callback()
def global_options(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(help="Where models are kept (default: $WHITEBOX_HOME or your data folder)."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Register ONNX models, serve them, and look inside.

    \b
    Examples:
      whitebox register resnet50.onnx
      whitebox serve --port 8000
      whitebox explain resnet50
    """
    context.obj = home.expanduser() if home is not None else config.home()


def main() -> NoReturn:
    """The entry point: run the command line, then exit."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except WhiteboxError as error:
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        # Wrong usage: an unknown option, a missing argument.
        _fail(f"{error.format_message()} (see 'whitebox --help')", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _exit(EX_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does; no one is to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(1)
    except Exception as error:
        if config.debug():
            raise
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        _fail(f"unexpected {what}; set WHITEBOX_DEBUG=1 for the traceback", EX_SOFTWARE)
    _exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"whitebox: error: {' '.join(message.split())}", file=sys.stderr)
    _exit(code)


def _exit(code: int) -> NoReturn:
    raise SystemExit(code)
