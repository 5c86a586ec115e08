from __future__ import annotations

import shlex
import subprocess

import pytest

from proxy.cloud_run import gcloud
from proxy.cloud_run.gcloud import Service, service_of

CALLER = "caller@p.iam.gserviceaccount.com"
MIDDLE = "middle@q.iam.gserviceaccount.com"
TARGET = "target@r.iam.gserviceaccount.com"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("greeter-123456789012.europe-west1.run.app", Service("greeter", "europe-west1", "123456789012")),
        ("my-greeter-2-123456789012.us-east4.run.app", Service("my-greeter-2", "us-east4", "123456789012")),
        ("canary---greeter-123456789012.us-east4.run.app", Service("greeter", "us-east4", "123456789012")),
        ("my-greeter-x7zq2ab3cd-ew.a.run.app", Service("my-greeter", "REGION", None)),
        ("canary---greeter-x7zq2ab3cd-uc.a.run.app", Service("greeter", "REGION", None)),
        ("greeter.example.com", Service("SERVICE", "REGION", None)),
        ("run.app", Service()),
        ("127.0.0.1", Service()),
    ],
)
def test_a_host_name_of_cloud_run_contains_the_service(host: str, expected: Service) -> None:
    assert service_of(host) == expected


def test_commands_about_a_service_name_it_with_region_and_project() -> None:
    service = service_of("greeter-123456789012.europe-west1.run.app")
    greeter = ["greeter", "--region=europe-west1"]
    assert run_in_a_shell(gcloud.grant_invoker(service, CALLER)) == [
        *("run", "services", "add-iam-policy-binding", *greeter),
        *(f"--member=serviceAccount:{CALLER}", "--role=roles/run.invoker", "--project=my-project"),
    ]
    assert run_in_a_shell(gcloud.revoke_public(service)) == [
        *("run", "services", "remove-iam-policy-binding", *greeter),
        *("--member=allUsers", "--role=roles/run.invoker", "--project=my-project"),
    ]
    assert run_in_a_shell(gcloud.use_http2(service)) == [
        *("run", "services", "update", *greeter, "--use-http2", "--project=my-project")
    ]
    audience = "x; rm -rf $HOME"
    assert run_in_a_shell(gcloud.add_audience(service, audience)) == [
        *("run", "services", "update", *greeter, f"--add-custom-audiences={audience}", "--project=my-project")
    ]
    assert run_in_a_shell(gcloud.logs(service)) == [
        *("run", "services", "logs", "read", *greeter, "--limit=50", "--project=my-project")
    ]


def test_without_a_project_in_the_host_name_gcloud_uses_its_own() -> None:
    assert "--project" not in gcloud.logs(service_of("greeter-x7zq2ab3cd-ew.a.run.app"))


def run_in_a_shell(command: str) -> list[str]:
    """Return the arguments that a command gives gcloud, which knows the project 123456789012 as my-project."""
    gcloud = """
        gcloud() {
            case $* in
            "projects describe 123456789012 --format=value(projectId)") echo my-project ;;
            *) printf '%s\\n' "$@" ;;
            esac
        }
    """
    told = subprocess.run(["sh", "-euc", f"{gcloud}\n{command}"], capture_output=True, text=True, check=True)
    return told.stdout.splitlines()


@pytest.mark.parametrize(
    ("principal", "member"),
    [
        (CALLER, f"serviceAccount:{CALLER}"),
        ("123-compute@developer.gserviceaccount.com", "serviceAccount:123-compute@developer.gserviceaccount.com"),
        ("ada@example.com", "user:ada@example.com"),
        ("102030405060708090100", "PRINCIPAL"),
        ("workload identity federation (/a@b)", "PRINCIPAL"),
        ("principal://iam.googleapis.com/a/subject/b", "principal://iam.googleapis.com/a/subject/b"),
        (None, "PRINCIPAL"),
    ],
)
def test_a_member_has_the_form_of_iam_or_is_a_placeholder(principal: str | None, member: str) -> None:
    assert f" --member={member} " in gcloud.grant_invoker(Service(), principal)


def test_each_link_of_a_chain_gets_token_creator_and_the_last_the_role() -> None:
    commands = gcloud.grant_chain(CALLER, [MIDDLE], TARGET, gcloud.ID_TOKEN_CREATOR)
    base = "gcloud iam service-accounts add-iam-policy-binding"
    assert commands == (
        f"{base} {MIDDLE} --project=q --member=serviceAccount:{CALLER} --role=roles/iam.serviceAccountTokenCreator",
        f"{base} {TARGET} --project=r --member=serviceAccount:{MIDDLE} "
        "--role=roles/iam.serviceAccountOpenIdTokenCreator",
    )


def test_without_a_project_in_the_e_mail_gcloud_uses_its_own() -> None:
    command = gcloud.grant_impersonation(CALLER, "123-compute@developer.gserviceaccount.com", gcloud.TOKEN_CREATOR)
    assert "--project" not in command


def test_special_characters_of_the_shell_are_quoted() -> None:
    audience = "x; rm -rf $HOME"
    command = gcloud.add_audience(Service(), audience)
    assert shlex.split(command)[-1] == f"--add-custom-audiences={audience}"
