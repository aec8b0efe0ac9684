"""`radit serve --workdir=runs/tiny`: a page to ask on, and the same in JSON, until Ctrl-C.

`python -m radit_jax.ask --serve` is the same command. Others reach the service only where RADIT_SERVE_TOKEN
holds a token, which they then have to bring.
"""

import argparse
import importlib.util
import os

from radit_jax.command_line import spelled
from radit_jax.runtime.distributed.devices import prepare_devices
from radit_jax.runtime.storage.runs_folder import default_workdir
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder


def parser() -> argparse.ArgumentParser:
    """The command line of `radit serve`."""
    p = argparse.ArgumentParser(description="Answer questions on a page and in JSON, until Ctrl-C.")
    add_export(p)
    add_options(p)
    p.set_defaults(run=serve_export)
    return p


def add_export(p: argparse.ArgumentParser) -> None:
    """The options that name what is asked."""
    p.add_argument("--workdir", metavar="FOLDER", help="of a finished run (default: the only one in runs/)")
    p.add_argument("--export", metavar="FOLDER", help="an export; default: the workdir's")


def add_options(p: argparse._ActionsContainer) -> None:
    """The options that say where to listen, and how many may wait."""
    p.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; one that others reach takes a token from RADIT_SERVE_TOKEN",
    )
    p.add_argument("--port", type=int, default=8765, metavar="N", help="0: any free one (default: 8765)")
    p.add_argument(
        "--max-waiting", type=int, default=64, metavar="N", help="questions; others get 503 (default: 64)"
    )


def find_export(options: argparse.Namespace) -> TopLevelFolder:
    """The export that the options name; ValueError where it is not finished."""
    if options.export:
        export, remedy = TopLevelFolder(options.export), "Name another"
    else:
        workdir = options.workdir or default_workdir()
        export = TopLevelFolder(f"{workdir}/export")
        remedy = f"Run `{spelled(f'export --workdir={workdir}')}`, or name one"
    if not export.complete:
        raise ValueError(f"{export.home}: expected a finished export, got none. {remedy} with --export.")
    return export


def serve_export(options: argparse.Namespace) -> None:
    """Answer over HTTP until Ctrl-C or SIGTERM; ValueError where aiohttp is not installed."""
    if importlib.util.find_spec("aiohttp") is None:
        raise ValueError("serve: expected aiohttp for a service, got none. pip install 'radit_jax[serve]'.")
    prepare_devices()  # before jax starts
    from radit_jax.runtime.monitoring.compilation import announcing_compilation
    from radit_jax.serving.server import ServeOptions, check_port, serve
    from radit_jax.serving.system import AnsweringSystem

    # A wrong address or a taken port is refused before the models are read.
    serving = ServeOptions(
        options.host,
        options.port,
        token=os.environ.get("RADIT_SERVE_TOKEN", ""),
        max_waiting=options.max_waiting,
    )
    export = find_export(options)
    check_port(serving)
    with announcing_compilation():
        serve(AnsweringSystem.load(export), serving)
