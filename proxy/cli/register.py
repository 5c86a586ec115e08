"""`cloudrun-sidecar register`: checks a deployment, registers it with Restate, and shows what that changes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from proxy.cli.completion import complete_accounts, complete_audiences, complete_subjects
from proxy.cli.deployment_options import (
    ADMIN_VARIABLE,
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
from proxy.cli.failures import CommandFailed, Gathered, Unusable
from proxy.cli.options import GroupedCommand, HeadedOption, settings_flags, settings_from
from proxy.cli.output import output_problem
from proxy.cli.screen import Screen
from proxy.deployments.admin_api import AdminFailure, RestateAdmin
from proxy.deployments.changes import Changes, ServiceChange, changed_calls, compare
from proxy.deployments.plain_command import DEFAULT_ADMIN_URL, plain_command
from proxy.deployments.records import Deployment, Registered
from proxy.deployments.target import Target
from proxy.doctor.checking import Doctor
from proxy.doctor.rendering import TerminalStyle, styled
from proxy.doctor.report import Outcome
from proxy.exit_codes import ExitCode
from proxy.http2.choice import EngineUnavailable
from proxy.observe.lines import configure_logging
from proxy.quoting import one_line
from proxy.settings.model import Settings

__all__ = ["register"]

_AUTHENTICATION: Final = "Authentication of the deployment, on an open route"
_HOW: Final = "How to register"

_EPILOG: Final = """\
Exit code: 0 it is registered, or was already, in the same way; 1 the check fails, Restate cannot be reached or fails,
or you said no; 2 something must be changed first: the command line (--force or --breaking is needed), the settings (the
lists of [deployments] do not allow the deployment), the token of the admin API.

\b
  cloudrun-sidecar register greeter
  cloudrun-sidecar register https://greeter-….run.app --gcp-impersonate-service-account EMAIL
  cloudrun-sidecar register --force https://greeter-….run.app --gcp-impersonate-service-account OTHER

Flags and variables of `serve` are taken as well; with routes that are given by --route or --upstream, or by their
variables, the --gcp-… flags are those of these routes, and an open route is refused together with them.
"""

_GREEN, _YELLOW, _RED, _BOLD, _FAINT = "32", "33", "31", "1", "2"  # SGR (ECMA-48, 8.3.117)
_MARKS: Final = {"added": ("+", _GREEN), "changed": ("~", _YELLOW), "removed": ("-", _RED), "same": (" ", "")}
_KINDS: Final = {"Service": "service", "VirtualObject": "virtual object", "Workflow": "workflow"}


def _authentication_flags() -> list[click.Parameter]:
    """Return Restate's flags for Google authentication."""
    return [
        HeadedOption(
            "--gcp-id-token/--no-gcp-id-token",
            heading=_AUTHENTICATION,
            default=None,
            help="Add a Google ID token. [default: --gcp-id-token]",
        ),
        HeadedOption(
            "--gcp-impersonate-service-account",
            heading=_AUTHENTICATION,
            metavar="EMAIL",
            shell_complete=complete_accounts,
            help="Service account that the token is for, of the list accounts. [default: the ambient identity]",
        ),
        HeadedOption(
            "--gcp-audience",
            heading=_AUTHENTICATION,
            metavar="TEXT",
            shell_complete=complete_audiences,
            help="Audience of the token, of the list audiences. [default: the origin of the host]",
        ),
        HeadedOption(
            "--gcp-delegate",
            "--gcp-delegates",
            "gcp_delegates",
            heading=_AUTHENTICATION,
            multiple=True,
            metavar="EMAIL",
            shell_complete=complete_accounts,
            help="Account between the ambient identity and the impersonated one, nearest first; repeatable.",
        ),
    ]


def _how_flags() -> list[click.Parameter]:
    return [
        HeadedOption(
            "--force", heading=_HOW, is_flag=True, help="Overwrite a deployment that Restate has; implies --breaking."
        ),
        HeadedOption("--breaking", heading=_HOW, is_flag=True, help="Allow incompatible changes of services."),
        HeadedOption(
            "--use-http1.1",
            "http1",
            heading=_HOW,
            is_flag=True,
            help="Have Restate call it over HTTP/1.1, request and response one after the other; not by authority.",
        ),
        HeadedOption("--dry-run", heading=_HOW, is_flag=True, help="Show what would change, and change nothing."),
        HeadedOption(
            "--no-check",
            heading=_HOW,
            is_flag=True,
            help="Do not check first; for a machine that has other credentials than the sidecar.",
        ),
        HeadedOption(
            "--yes", "-y", heading=_HOW, is_flag=True, help="Do not ask. [default: ask, unless the variable CI is set]"
        ),
    ]


@click.command(
    cls=GroupedCommand,
    params=[
        *_how_flags(),
        *_authentication_flags(),
        *deployment_flags(),
        *restate_flags(f"Restate's admin API. [default: {ADMIN_VARIABLE}, {DEFAULT_ADMIN_URL}]", DEFAULT_ADMIN_URL),
        *settings_flags(shown=CHECKED, authentication=False),
    ],
    epilog=_EPILOG,
)
@click.argument("deployment", metavar="URL|ROUTE", shell_complete=complete_subjects)
@timeout_option("How long a service may take over an answer, cold start included; Restate as well.")
def register(
    deployment: str,
    config: Path | None,
    force: bool,
    breaking: bool,
    http1: bool,
    dry_run: bool,
    no_check: bool,
    yes: bool,
    extra_header: tuple[str, ...],
    sidecar: str | None,
    restate_admin: str,
    restate_token_file: Path | None,
    answer_timeout: float,
    **flags: Any,
) -> None:
    """Check a deployment as `check` does, and register it with Restate if that is well.

    ROUTE is a named route of the settings. URL is that of a Cloud Run service (https://….run.app, or its host alone)
    that the lists of [deployments] allow: the deployment is called by path, through the sidecar. With http://….run.app
    it is called by authority, for a Restate that has the sidecar as RESTATE_HTTP_PROXY.

    Before anything is changed, the services and handlers that would change are shown. The last line is the command of
    Restate's CLI that does the same.
    """
    authentication, mistakes, yes = take_authentication(flags), Gathered(), yes or bool(os.environ.get("CI"))
    place, headers = given_for(sidecar, extra_header, mistakes)
    with mistakes:
        settings = settings_from(config, flags).settings
        with mistakes:
            place = place if sidecar is not None else sidecar_of(settings)
        (target,) = find_targets((deployment,), settings, place, authentication, headers, flags)
        if http1 and target.authority:
            raise Unusable("--use-http1.1 needs the host in the path; write https:// or the host alone")
    with mistakes:
        access = restate_access(restate_admin, restate_token_file)
    with mistakes:
        _check_terminal(needed=not (yes or dry_run))
    mistakes.raise_found()
    configure_logging("critical", "auto")  # The report has everything that would be logged.
    screen = Screen([subject_of(target).name])
    registration = _Registration(access, target, place, answer_timeout, force=force, breaking=breaking, http1=http1)
    try:
        with asyncio.Runner() as runner:
            if not no_check:
                runner.run(_look(settings, target, answer_timeout, screen))
            planned = runner.run(registration.plan())
            if planned.known is not None and not force:
                _tell_known(planned.known, registration, screen)
            else:
                _show(planned, registration, screen)
                _confirm(yes=yes, dry_run=dry_run, screen=screen)
                if not dry_run:
                    _tell_registered(runner.run(registration.make(dry_run=False)), screen)
    except EngineUnavailable as exc:
        raise Unusable(str(exc)) from None
    except AdminFailure as failure:
        raise (CommandFailed if failure.exit_code is ExitCode.FAILED else Unusable)(str(failure)) from None
    same = "Restate's CLI has no --dry-run; this registers" if dry_run else "The same with Restate's CLI"
    screen.write(f"\n{same}:\n  {registration.plain_command(restate_token_file, yes=yes)}\n")


def _check_terminal(*, needed: bool) -> None:
    """Raise Unusable if a question cannot be asked."""
    if needed and not sys.stdin.isatty():
        raise Unusable("register asks before it changes anything, and there is no terminal; add --yes or --dry-run")


class _Plan(NamedTuple):
    """What a registration would do."""

    registered: Registered
    """What Restate answers to the dry run."""
    known: Deployment | None
    """The deployment with this URL that Restate has; None if there is none."""
    changes: Changes
    """What would change."""


class _Registration:
    """One registration with Restate.

    `sidecar` is the URL at which Restate reaches the sidecar, `timeout` the deadline of each call, in seconds.
    """

    def __init__(
        self, access: Access, target: Target, sidecar: str, timeout: float, *, force: bool, breaking: bool, http1: bool
    ) -> None:
        self._access = access
        self._target = target
        self._proxy = sidecar if target.authority else None
        self._force = force
        self._breaking = breaking
        self._http1 = http1
        self._timeout_seconds = timeout

    async def plan(self) -> _Plan:
        """Discover the deployment without registering it, and compare it with what Restate has."""
        async with self._admin() as admin:
            deployments = {one.id: one for one in await admin.deployments()}
            services = await admin.services()
        registered = await self.make(dry_run=True)
        known = None if registered.is_new else deployments.get(registered.id)
        urls = {one.id: one.url for one in deployments.values()}
        return _Plan(registered, known, compare(registered, services, known, urls))

    async def make(self, *, dry_run: bool) -> Registered:
        """Register the deployment, or with `dry_run` only discover it."""
        async with self._admin() as admin:
            return await admin.register(
                self._target.url,
                dict(self._target.headers),
                force=self._force,
                breaking=self._breaking,
                http1=self._http1,
                dry_run=dry_run,
                proxy=self._proxy,
            )

    def changed_calls(self, known: Deployment) -> list[str]:
        """Return a phrase for everything in which it changes how Restate calls the deployment."""
        return changed_calls(known, self._target.url, dict(self._target.headers), http1=self._http1)

    def plain_command(self, token_file: Path | None, *, yes: bool) -> str:
        """Return the command of Restate's CLI that does the same."""
        return plain_command(
            self._target.url,
            self._target.headers,
            admin_url=self._access.url,
            token_file=None if token_file is None else str(token_file),
            force=self._force,
            breaking=self._breaking,
            http1=self._http1,
            yes=yes,
        )

    def _admin(self) -> RestateAdmin:
        set_by = f"--restate-admin or the variable {ADMIN_VARIABLE}"
        return RestateAdmin(self._access.url, self._access.token, self._timeout_seconds, set_by=set_by)


async def _look(settings: Settings, target: Target, answer_timeout: float, screen: Screen) -> None:
    """Check the deployment and print the report; raises CommandFailed if a step fails."""
    async with Doctor(settings, answer_timeout_seconds=answer_timeout, progress=screen.begins) as doctor:
        try:
            report = await doctor.check(subject_of(target))
        finally:
            screen.clear()
    screen.show(report)
    if report.outcome is Outcome.FAILED:
        raise CommandFailed("the deployment does not work yet, so it was not registered")


def _tell_known(known: Deployment, registration: _Registration, screen: Screen) -> None:
    """Say that Restate has the deployment; raises Unusable if the registration would change how it is called."""
    if changed := registration.changed_calls(known):
        raise Unusable(
            f"Restate has this deployment already ({one_line(known.id)}), and calls it in another way. Nothing was "
            f"changed; with --force {', '.join(changed)}"
        )
    screen.write(
        f"\nRestate has this deployment already ({one_line(known.id)}), and calls it in the same way. Nothing was "
        "changed; --force discovers its services again.\n"
    )


def _confirm(*, yes: bool, dry_run: bool, screen: Screen) -> None:
    """Ask whether to go on, unless there is nothing to ask; raises CommandFailed for a no, or if it cannot be asked."""
    if dry_run:
        screen.write("Nothing was changed (--dry-run).\n")
    elif output_problem() is not None:
        raise CommandFailed("nothing was changed: what would change cannot be shown")
    elif not yes and not click.confirm("Register this deployment?", err=True):
        raise CommandFailed("nothing was changed")


def _tell_registered(done: Registered, screen: Screen) -> None:
    services = ", ".join(f"{one_line(one.name)} (revision {one.revision})" for one in done.services)
    screen.write(f"Registered as {one_line(done.id)}: {services}.\n")


def _show(planned: _Plan, registration: _Registration, screen: Screen) -> None:
    """Print what the registration changes."""
    style, changes = screen.style, planned.changes
    lines = [""]
    if planned.known is not None:
        lines.append(
            f"Restate has this deployment ({one_line(planned.known.id)}), and it is overwritten. Invocations in flight "
            "go on with its new services, and fail if their handlers have changed."
        )
        lines += [f"  {phrase}" for phrase in registration.changed_calls(planned.known)]
    for word, colour, listed in (("added", _GREEN, changes.added), ("updated", _YELLOW, changes.updated)):
        if listed:
            lines.append(f"Services that will be {styled(word, colour, style)}:")
        for change in listed:
            lines += _service_lines(change, style)
    if changes.removed:
        lines.append(f"Services that will be {styled('removed', _RED, style)}:")
        lines += [f"  {styled(one_line(name), _BOLD, style)}" for name in changes.removed]
    screen.write("\n".join(lines) + "\n")


def _service_lines(change: ServiceChange, style: TerminalStyle) -> list[str]:
    service = change.service
    revision = "" if change.before is None else f", revision {change.before.revision} → {service.revision}"
    kind = _KINDS.get(service.kind, one_line(service.kind))
    before = kind if change.before is None else _KINDS.get(change.before.kind, one_line(change.before.kind))
    kind = kind if before == kind else f"{before} → {kind}"
    moved = f", until now at {one_line(change.moved_from)}" if change.moved_from else ""
    lines = [f"  {styled(one_line(service.name), _BOLD, style)}  {kind}{revision}{moved}"]
    columns = max((len(one.handler.name) for one in change.handlers), default=0)
    for handler, what, was in change.handlers:
        mark, colour = _MARKS[what]
        takes = _type("takes", handler.takes, None if was is None else was.takes)
        returns = _type("returns", handler.returns, None if was is None else was.returns)
        text = f"{mark} {one_line(handler.name):{columns}}  {takes}, {returns}"
        lines.append(f"    {styled(text, colour, style) if colour else text}")
    return lines


def _type(verb: str, described: str, before: str | None) -> str:
    """Return in words what a handler takes or returns, and what it did before if that is something else."""
    changed = "" if before is None or before == described else f" (until now {one_line(before) or 'unknown'})"
    return f"{verb} {one_line(described) or 'unknown'}{changed}"
