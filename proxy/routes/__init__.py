"""Which upstream a request goes to. Pure.

* `origin`   scheme, host and port of an upstream
* `locality` which hosts are this machine or a private network
* `route`    one route: its origin, and whose token it gets
* `table`    all routes, looked up by path and authority
* `allow_lists`     what deployments may choose themselves
* `open_routes`     routes to hosts that deployments name themselves, with the authentication that they choose
* `authentication`  rules for accounts and audiences
* `names`    names that are like another one
* `paths`    paths that are refused, since they could mean another path
"""

from __future__ import annotations

from proxy.routes.allow_lists import AllowLists
from proxy.routes.open_routes import OpenMatch, OpenRoutes
from proxy.routes.origin import Origin, parse_upstream
from proxy.routes.route import OTHER, UNMATCHED, Route, check_name
from proxy.routes.table import Match, RouteTable

__all__ = [
    "OTHER",
    "UNMATCHED",
    "AllowLists",
    "Match",
    "OpenMatch",
    "OpenRoutes",
    "Origin",
    "Route",
    "RouteTable",
    "check_name",
    "parse_upstream",
]
