from __future__ import annotations

from typing import Any

import pytest

from proxy.deployments.records import Handler, read_deployment, read_registered, read_service

SERVICE: dict[str, Any] = {
    "name": "Greeter",
    "ty": "Service",
    "revision": 2,
    "deployment_id": "dp_1",
    "public": True,
    "handlers": [
        {"name": "wave", "input_description": "JSON string", "output_description": None},
        {"name": "greet", "input_description": "none", "output_description": "JSON string"},
    ],
}


def test_a_service_has_its_handlers_by_name() -> None:
    service = read_service(SERVICE)
    assert (service.name, service.kind, service.revision, service.deployment) == ("Greeter", "Service", 2, "dp_1")
    assert service.handlers == (Handler("greet", "none", "JSON string"), Handler("wave", "JSON string", ""))


def test_a_registration_is_new_if_the_status_says_so() -> None:
    answer = {"id": "dp_1", "services": [SERVICE, {**SERVICE, "name": "Counter"}]}
    assert [service.name for service in read_registered(answer, 201).services] == ["Counter", "Greeter"]
    assert (read_registered(answer, 201).is_new, read_registered(answer, 200).is_new) == (True, False)


def test_a_deployment_has_its_headers_in_lower_case_and_does_not_show_them() -> None:
    listed = {"id": "dp_1", "uri": "http://x/", "services": [{"name": "Greeter", "revision": 3}]}
    deployment = read_deployment({**listed, "additional_headers": {"Authorization": "s3cret"}, "auth": {"x": {}}})
    assert deployment.headers == {"authorization": "s3cret"}
    assert "s3cret" not in repr(deployment)
    assert deployment.services == (("Greeter", 3),)
    assert deployment.has_own_authentication
    assert not read_deployment({**listed, "auth": None}).has_own_authentication
    assert [read_deployment({**listed, "http_version": f"HTTP/{one}"}).is_http1 for one in ("1.1", "2.0")] == [
        True,
        False,
    ]
    on_lambda = read_deployment({"id": "dp_1", "arn": "arn:aws:…", "services": []})
    assert (on_lambda.url, on_lambda.headers) == ("", {})


@pytest.mark.parametrize(
    "data",
    [[], {}, {"id": 1, "services": []}, {"id": "dp_1", "services": {}}, {"id": "dp_1", "services": [{"name": "a"}]}],
)
def test_an_answer_of_another_shape_is_an_error(data: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|must be"):
        read_deployment(data)
