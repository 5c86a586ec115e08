"""Envoy's filter `gcp_authn`, unmodified, against the emulator: what it does with tokens, names and failures."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Fault, Google, GoogleServer, Verdict, echo
from tests.support.processes import program

ENVOY = Path(sys.prefix) / "envoy" / "envoy" / "_bin" / "envoy"
HOST = "greeter-123456789012.europe-west1.run.app"
AUDIENCE = f"https://{HOST}"
EXTENSIONS = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    google: Google
    cloud_run: CloudRun
    url: str
    client: aiohttp.ClientSession

    async def get(self, **fields: str) -> tuple[int, dict[str, Any] | None]:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        async with self.client.get(f"{self.url}/hello", headers=headers) as answer:
            return answer.status, await answer.json() if answer.status == 200 else None


@asynccontextmanager
async def _stage(folder: Path, *, rewrite: bool = True) -> AsyncIterator[_Stage]:
    assert ENVOY.exists(), "Envoy is not installed: `make test` installs it"
    google, certificates = Google(), Certificates.create(folder / "google")
    cloud_run = CloudRun(echo, google, url=AUDIENCE, invokers=[google.metadata_account])
    async with GoogleServer(google, certificates) as endpoints, CloudRunServer(cloud_run, certificates) as service:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        bootstrap = _bootstrap(
            port, endpoints.metadata_address, service.url.removeprefix("https://"), certificates.ca_file, rewrite
        )
        config = folder / "envoy.json"
        config.write_text(json.dumps(bootstrap))
        argv: list[str | Path] = [ENVOY, "--config-path", config, "--concurrency", "1", "--disable-hot-restart"]
        async with program("envoy", argv) as child, aiohttp.ClientSession() as client:
            await child.line("starting main dispatch loop")
            yield _Stage(google=google, cloud_run=cloud_run, url=f"http://127.0.0.1:{port}", client=client)


def _bootstrap(port: int, metadata: str, service: str, authority: Path, rewrite: bool) -> dict[str, Any]:
    """Return Envoy's configuration: a listener, the filter, Cloud Run by HTTP/2 over TLS, the metadata server."""
    route: dict[str, Any] = {"cluster": "cloud_run"} | ({"host_rewrite_literal": HOST} if rewrite else {})
    authn = {
        "@type": f"{EXTENSIONS}.filters.http.gcp_authn.v3.GcpAuthnFilterConfig",
        "cluster": "metadata",
        "timeout": "5s",
        "token_header": {"name": "x-serverless-authorization", "value_prefix": "Bearer "},
        "cache_config": {"cache_size": 10},
    }
    manager = {
        "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        # Envoy would pass on the scheme of its plain listener, `http`, over TLS.
        "scheme_header_transformation": {"match_upstream": True},
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]
        },
        "http_filters": [
            {"name": "envoy.filters.http.gcp_authn", "typed_config": authn},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"},
            },
        ],
    }
    tls = {
        "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": HOST,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "validation_context": {
                "trusted_ca": {"filename": str(authority)},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": HOST}}],
            },
        },
    }
    audience = {"@type": f"{EXTENSIONS}.filters.http.gcp_authn.v3.Audience", "url": AUDIENCE}
    http2 = {
        "@type": f"{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    cloud_run = _cluster("cloud_run", service) | {
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        "metadata": {"typed_filter_metadata": {"envoy.filters.http.gcp_authn": audience}},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
    }
    listener = {
        "name": "in",
        "address": _address(f"127.0.0.1:{port}"),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cloud_run, _cluster("metadata", metadata)]}}


def _cluster(name: str, address: str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(address)}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


@pytest.mark.asyncio
async def test_envoy_gets_a_token_and_calls_the_service(tmp_path: Path) -> None:
    async with _stage(tmp_path) as here:
        status, seen = await here.get(authorization="Bearer of-the-application")
        assert status == 200
        assert seen is not None
        assert (seen["claims"]["aud"], ["authorization", "Bearer of-the-application"] in seen["fields"]) == (
            AUDIENCE,
            True,
        )
        assert (await here.get())[0] == 200
        assert len(here.google.mints) == 1
        assert here.cloud_run.verdicts == {Verdict.ACCEPTED: 2}


@pytest.mark.asyncio
async def test_envoy_sends_a_request_without_a_token_when_it_gets_none(tmp_path: Path) -> None:
    async with _stage(tmp_path) as here:
        here.google.fail("metadata", Fault.DENIED)
        # The caller's own field passes, which the sidecar never lets happen.
        assert (await here.get(x_serverless_authorization="Bearer spoofed"))[0] == 401
        assert here.cloud_run.verdicts == {Verdict.MALFORMED: 1}


@pytest.mark.asyncio
async def test_envoy_that_does_not_rewrite_the_authority_is_not_found(tmp_path: Path) -> None:
    async with _stage(tmp_path, rewrite=False) as here:
        assert (await here.get())[0] == 404
        assert here.cloud_run.verdicts == {Verdict.UNKNOWN_HOST: 1}
