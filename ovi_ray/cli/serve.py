"""`ovi-ray serve`: the report of a job in a browser, live."""

import os
import secrets
import socket
from typing import Annotated

import typer

from ovi_ray.cli.common import command_console, location
from ovi_ray.cli.options import LOCATION, DisplayOptions, with_display_options
from ovi_ray.errors import COMMAND_LINE, InputError, Problem
from ovi_ray.serving.loopback import is_loopback

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 # names, which nothing is bound to here
TOKEN_VARIABLE = "OVI_RAY_TOKEN"  # noqa: S105 # a name
MIN_TOKEN_CHARS = 12


@with_display_options
def serve(
    out: Annotated[str, typer.Argument(metavar="OUT", help=f"Output folder of a job: {LOCATION}.")],
    display: DisplayOptions,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; any but loopback needs a token.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8650,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar=TOKEN_VARIABLE,
            help="Token that every request needs. [default: none on loopback, else one that is made up and shown]",
        ),
    ] = None,
) -> None:
    """Show the report of a job in a browser, while it runs and after: it is updated, videos can be sought, stars are saved.

    Stars are in OUT/picks.csv. An output in a store is read with the credentials of this process. Ends with Ctrl-C.

    Examples:

        ovi-ray serve out

        ovi-ray serve s3://bucket/out --port 9000

        ovi-ray serve out --host 0.0.0.0
    """
    with command_console(display) as console:
        folder = location(out, "OUT")
        _check_token(token)
        if not folder.is_dir():
            expected = "the output folder of a job"
            raise InputError(
                [Problem(file=COMMAND_LINE, field="OUT", value=f"{folder}, which is not there", expected=expected)]
            )
        needed = token or ("" if is_loopback(host) else secrets.token_urlsafe(16))
        listener = _listener(host, port)
        from ovi_ray.report.html import REPORT
        from ovi_ray.serving.server import run_server

        port = listener.getsockname()[1]
        console.print(f"{folder} is shown at {_address(host, port, needed)} until Ctrl-C", soft_wrap=True)
        if host in EVERY_ADDRESS:
            console.print(f"from another machine: {_address(socket.gethostname(), port, needed)}", soft_wrap=True)
        if not (folder / REPORT).exists():
            console.print(f"there is no {REPORT} yet: it is shown as soon as a job begins there", soft_wrap=True)
        run_server(folder, listener, token=needed)


def _check_token(token: str | None) -> None:
    if token is not None and len(token) < MIN_TOKEN_CHARS:
        expected = f"at least {MIN_TOKEN_CHARS} characters"
        raise InputError(
            [Problem(file=COMMAND_LINE, field="--token", value=f"{len(token)} characters long", expected=expected)]
        )


def _address(host: str, port: int, token: str) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/{f'?token={token}' if token else ''}"


def _listener(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError for an address that cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        value = f"{host}:{port} ({reason})"
        expected = "an address of this machine and a free port; --port 0 takes one"
        raise _wrong("--host, --port", value, expected) from None


def _wrong(field: str, value: str, expected: str) -> InputError:
    return InputError([Problem(file=COMMAND_LINE, field=field, value=value, expected=expected)])
