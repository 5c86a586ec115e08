"""`cloudrun-sidecar check`: runs the doctor; prints tables for people or (`--json`) JSON for programs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from proxy.cli.completion import complete_subjects
from proxy.cli.deployment_options import (
    CHECKED,
    Access,
    deployment_flags,
    find_targets,
    given_for,
    restate_access,
    restate_flags,
    sidecar_of,
    subject_of,
    take_authentication,
    timeout_option,
)
from proxy.cli.failures import Gathered, Unusable
from proxy.cli.options import GroupedCommand, settings_flags, settings_from
from proxy.cli.screen import Screen
from proxy.deployments.admin_api import AdminFailure, RestateAdmin
from proxy.deployments.stale import examine
from proxy.deployments.target import Authentication
from proxy.doctor.checking import Doctor, Subject
from proxy.doctor.rendering import render_restate, summary
from proxy.doctor.report import DeploymentReport, Outcome, RestateReport, RouteReport, as_json, worst_outcome
from proxy.exit_codes import ExitCode
from proxy.http2.choice import EngineUnavailable
from proxy.observe.lines import configure_logging
from proxy.quoting import one_line
from proxy.settings.model import Settings

__all__ = ["check"]

_EPILOG: Final = """\
Exit code: 0 all is well, or nothing worse than warnings; 1 something fails; 2 the settings cannot be used, or there is
no such route; 3 with --strict, there are warnings.

The --gcp-… flags are the authentication of the deployments at the hosts that are named; if routes are given by --route
or --upstream, or by their variables, they are those of these routes, and a host is refused together with them.

All other flags and variables of `serve` are taken as well and change nothing here: a command line that serves can be
checked by writing `check` in the place of `serve`.
"""

_ADMIN_HELP: Final = (
    "Ask Restate's admin API, such as http://127.0.0.1:9070, which of its deployments the sidecar would refuse: their "
    "route is gone, or the lists of [deployments] do not allow them."
)


@click.command(
    cls=GroupedCommand,
    params=[*settings_flags(shown=CHECKED), *deployment_flags(), *restate_flags(_ADMIN_HELP, None)],
    epilog=_EPILOG,
)
@click.argument("names", nargs=-1, metavar="[ROUTE|HOST]...", shell_complete=complete_subjects)
@click.option("--json", "for_programs", is_flag=True, help="Print JSON (version 1) instead of a table.")
@click.option("--strict", is_flag=True, help="Exit with 3 if there are warnings.")
@timeout_option("How long a service may take over an answer, cold start included.")
def check(
    names: tuple[str, ...],
    config: Path | None,
    for_programs: bool,
    strict: bool,
    answer_timeout: float,
    extra_header: tuple[str, ...],
    sidecar: str | None,
    restate_admin: str | None,
    restate_token_file: Path | None,
    **flags: Any,
) -> None:
    """Try each ROUTE (all, if none is named) as the sidecar would, and say what is wrong and what mends it.

    Of an open route the HOST is named, which the lists of [deployments] must allow.

    Steps: credentials, token, DNS, TCP, TLS, HTTP/2; whether a request without a token is refused; the clock; and a
    signed discovery, as Restate makes one when a deployment is registered. Nothing is changed anywhere, and no token
    is shown.
    """
    authentication = take_authentication(flags) if names else Authentication()
    mistakes, access = Gathered(), None
    with mistakes:
        access = None if restate_admin is None else restate_access(restate_admin, restate_token_file)
    place, headers = given_for(sidecar, extra_header, mistakes)
    with mistakes:
        settings = settings_from(config, flags).settings
        with mistakes:
            place = place if sidecar is not None else sidecar_of(settings, required=restate_admin is not None)
        if names:
            targets = find_targets(names, settings, place, authentication, headers, flags)
            subjects = [subject_of(target) for target in targets]
        elif extra_header:
            raise Unusable("--extra-header belongs to a deployment; name the host or the route that it is at")
        else:
            subjects = [Subject.of_route(route) for route in settings.route_table().routes]
            if not subjects and restate_admin is None:
                raise Unusable(
                    "there is no named route, only [deployments]: name a host that the list allows, or let "
                    "--restate-admin say which deployments there are"
                )
    mistakes.raise_found()
    configure_logging("critical", "auto")  # The report has everything that would be logged.
    screen = Screen([subject.name for subject in subjects], silent=for_programs)
    try:
        with asyncio.Runner() as runner:
            reports = runner.run(_examine(settings, subjects, answer_timeout, screen))
            restate = None if access is None else runner.run(_ask_restate(access, settings, place, answer_timeout))
    except EngineUnavailable as exc:
        raise Unusable(str(exc)) from None
    _finish(reports, restate, screen, for_programs=for_programs)
    outcomes = [report.outcome for report in reports] + ([] if restate is None else [restate.outcome])
    outcome = worst_outcome(outcomes)
    if outcome is Outcome.FAILED:
        raise SystemExit(ExitCode.FAILED)
    if strict and outcome is Outcome.WARNING:
        raise SystemExit(ExitCode.WARNINGS)


async def _examine(
    settings: Settings, subjects: Sequence[Subject], answer_timeout: float, screen: Screen
) -> list[RouteReport]:
    async with Doctor(settings, answer_timeout_seconds=answer_timeout, progress=screen.begins) as doctor:
        try:
            return await doctor.check_all(subjects, screen.show)
        finally:
            screen.clear()


async def _ask_restate(access: Access, settings: Settings, sidecar: str, answer_timeout: float) -> RestateReport:
    """Return what Restate has registered at the sidecar; that it cannot be asked is reported, not raised."""
    try:
        async with RestateAdmin(access.url, access.token, answer_timeout) as admin:
            deployments = await admin.deployments()
    except AdminFailure as failure:
        return RestateReport(url=access.url, problem=str(failure))
    found = examine(deployments, settings.route_table(), sidecar)
    return RestateReport(
        url=access.url,
        deployments=tuple(
            DeploymentReport(
                id=one_line(one.deployment.id),
                url=one.deployment.url,
                services=tuple(one_line(name) for name, _ in one.deployment.services),
                refusal=one.refusal,
            )
            for one in found
        ),
    )


def _finish(reports: list[RouteReport], restate: RestateReport | None, screen: Screen, *, for_programs: bool) -> None:
    """Print the summary and Restate's deployments, or all reports as JSON."""
    if for_programs:
        click.echo(json.dumps(as_json(reports, restate), indent=2))
        return
    parts = [summary(reports, screen.style, restate)] if reports else []
    if restate is not None:
        parts.insert(0, render_restate(restate, screen.style))
    screen.write("\n" * bool(reports) + "\n".join(parts))
