"""`cloudrun-sidecar token`: prints the claims of a route's token, or (`--raw`) the token itself."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from proxy.cli.completion import complete_subjects
from proxy.cli.deployment_options import (
    deployment_flags,
    find_targets,
    given_for,
    sidecar_of,
    subject_of,
    take_authentication,
)
from proxy.cli.failures import CommandFailed, Gathered, Unusable
from proxy.cli.options import GroupedCommand, settings_flags, settings_from
from proxy.doctor.checking import Doctor
from proxy.doctor.claims import decode_token, format_duration, jwt_of
from proxy.errors import Failure
from proxy.http2.choice import EngineUnavailable
from proxy.observe.lines import configure_logging
from proxy.routes import Route
from proxy.settings.model import Settings
from proxy.tokens.model import Token

__all__ = ["token"]

_SHOWN: Final = frozenset({"mint_timeout"})

_EPILOG: Final = """\
Exit code: 0 there is a token; 1 it could not be minted; 2 the settings cannot be used, or there is no such route.

\b
  curl -H "X-Serverless-Authorization: Bearer $(cloudrun-sidecar token --raw greeter)" \\
      https://greeter-….run.app/health
"""


@click.command(cls=GroupedCommand, params=[*settings_flags(shown=_SHOWN), *deployment_flags()], epilog=_EPILOG)
@click.argument("name", metavar="ROUTE|HOST", shell_complete=complete_subjects)
@click.option("--raw", "alone", is_flag=True, help="Print the token itself, a secret, and nothing else.")
def token(
    name: str, config: Path | None, alone: bool, extra_header: tuple[str, ...], sidecar: str | None, **flags: Any
) -> None:
    """Mint a token for ROUTE, as the sidecar would, and print its header and claims as JSON.

    Of an open route the HOST is named, and the --gcp-… flags are its authentication.

    The signature is not printed, so what is shown is no credential; with --raw it is the whole token.
    """
    authentication, mistakes = take_authentication(flags), Gathered()
    place, headers = given_for(sidecar, extra_header, mistakes)
    with mistakes:
        settings = settings_from(config, flags).settings
        if sidecar is None:
            place = sidecar_of(settings, required=False)
        (target,) = find_targets((name,), settings, place, authentication, headers, flags)
        chosen = target.route
        if not chosen.signed:
            raise Unusable(f"the route /{subject_of(target).name} adds no token (gcp_id_token = false)")
    mistakes.raise_found()
    configure_logging("critical", "auto")  # A failure is told below, once.
    try:
        with asyncio.Runner() as runner:
            minted = runner.run(_mint(settings, chosen))
    except EngineUnavailable as exc:
        raise Unusable(str(exc)) from None
    except Failure as failure:
        raise CommandFailed(str(failure)) from None
    now = time.time()
    if not alone:
        click.echo(json.dumps(decode_token(minted, now), indent=2))
        return
    if sys.stdout.isatty():
        remaining = format_duration(minted.local_expiry - now)
        click.echo(f"This is a secret: for {remaining}, anyone who has it can call {chosen.audience}.", err=True)
    click.echo(jwt_of(minted))


async def _mint(settings: Settings, route: Route) -> Token:
    async with Doctor(settings) as doctor:
        return await doctor.token(route)
