"""The status page, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from proxy.admin.page import CONTENT_SECURITY_POLICY, PAGE
from tests.support.browser import Page, page
from tests.support.supervised import supervised
from tests.unit.admin.stage import EVIL, HOSTS, LISTS, ROUTES, stage

VOID = {"meta", "input", "br"}


class Document(HTMLParser):
    """The tags of a page and its scripts and styles; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.content: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.content[self.open[-1]] = self.content.get(self.open[-1], "") + data


def test_the_page_loads_nothing_but_its_own_port() -> None:
    document = Document(PAGE)
    assert {tag for tag, _ in document.tags} & {"link", "img", "iframe", "object"} == set()
    assert all(not re.match(r"https?:|//", value or "") for _, fields in document.tags for value in fields.values())
    assert not re.search(r"url\(|@import|\son\w+=", PAGE)
    namespace = "http://www.w3.org/2000/svg"
    assert set(re.findall(r"https?://[^\"]*", PAGE)) == {namespace}


def test_the_policy_allows_the_script_and_the_style_of_the_page_by_their_hashes_and_no_others() -> None:
    for tag, content in Document(PAGE).content.items():
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in CONTENT_SECURITY_POLICY


def test_the_script_never_inserts_data_as_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", PAGE)


async def loaded(browser: Page, address: str, *, width: int, dark: bool) -> None:
    await browser.show(f"http://{address}/", width=width, dark=dark)
    await browser.until("document.querySelectorAll('.route').length > 0")


async def texts(browser: Page, selector: str) -> list[str]:
    found = await browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(each => each.innerText)"
    )
    assert isinstance(found, list)
    return found


needs_chromium = pytest.mark.usefixtures("chromium")


@pytest.fixture(scope="session")
def chromium() -> None:
    assert shutil.which("chromium"), "there is no Chromium: .ci/apt chromium"


@needs_chromium
@pytest.mark.asyncio
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 640, 390])
async def test_a_browser_shows_every_route_within_its_width(tmp_path: Path, width: int, dark: bool) -> None:
    async with stage() as plane, page(tmp_path) as browser:
        await loaded(browser, plane.address, width=width, dark=dark)
        assert await texts(browser, ".route .name") == [f"/{route.name}" for route in ROUTES]
        assert await browser.evaluate("document.getElementById('open-section').hidden"), "there are no open routes"
        overflow = """[...document.querySelectorAll("main *")].filter(
            each => each.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""
        assert await browser.evaluate(overflow) == 0
        wide = """[...document.querySelectorAll("figcaption")].filter(each => {
            each.lastChild.textContent = "175 ms · 249 ms";
            return each.scrollWidth > each.clientWidth;
        }).length"""
        assert await browser.evaluate(wide) == 0, "a caption sticks out of its column"
        long = """[...document.querySelectorAll(".trouble p, .failure p")].filter(each => {
            each.textContent = "there is no /home/nonroot/.config/gcloud/application_default_credentials.json";
            return each.scrollWidth > each.clientWidth;
        }).length"""
        assert await browser.evaluate(long) == 0, "a path in a sentence sticks out of its card"
        assert await browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ground = await browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(16, 20, 28)") == dark
        assert browser.errors == []
        picture = await browser.picture()
        assert picture.startswith(b"\x89PNG")


@needs_chromium
@pytest.mark.asyncio
async def test_a_route_without_a_token_says_why(tmp_path: Path) -> None:
    async with stage(tokens=2) as plane, page(tmp_path) as browser:
        await loaded(browser, plane.address, width=1280, dark=False)
        found = await texts(browser, ".route > :nth-child(2)")
    by_route = dict(zip([route.name for route in ROUTES], found, strict=True))
    assert re.fullmatch(r"no token now\n+the last mint failed \d+ s ago", by_route["broken"])
    assert re.fullmatch(
        r"no token now\n+one was minted \d+ \w+ ago; a discovery's is not kept", by_route["payments"]
    ), by_route


@needs_chromium
@pytest.mark.asyncio
async def test_failing_routes_come_first_with_code_time_reason_remedy_and_commands(tmp_path: Path) -> None:
    async with stage() as plane, page(tmp_path) as browser:
        await loaded(browser, plane.address, width=1280, dark=False)
        payments, broken = await texts(browser, ".trouble")
        assert payments.startswith("/payments")
        for words in ("invoker-missing", "since", "3 times", "may not call the service (403)", "gcloud run services"):
            assert words in payments
        assert broken.startswith("/broken")
        assert "token-timeout" in broken
        assert "Check the network to Google" in broken
        above = "document.querySelector('.trouble').getBoundingClientRect().top"
        assert await browser.evaluate(f"{above} < document.querySelector('.route').getBoundingClientRect().top")
        assert await browser.evaluate("document.title") == "2 not well – cloudrun-sidecar"
        assert len(await texts(browser, ".failure")) == 4


@needs_chromium
@pytest.mark.asyncio
async def test_a_command_that_is_being_copied_stays_selected_while_the_page_asks_again(tmp_path: Path) -> None:
    about = "document.getElementById('about').textContent"
    async with stage() as plane, page(tmp_path) as browser:
        await loaded(browser, plane.address, width=1280, dark=False)
        await browser.evaluate("getSelection().selectAllChildren(document.querySelector('.trouble pre'))")
        command = await browser.evaluate("document.querySelector('.trouble pre').textContent")
        # When the page asks for the second time, it has shown what it was told the first time.
        asked = "performance.getEntriesByName(new URL('status', location).href).length"
        before = await browser.evaluate(asked)
        await browser.until(f"{asked} > {before} + 1")
        assert await browser.evaluate("String(getSelection())") == command
        assert "while text is selected" in await browser.evaluate(about)
        await browser.evaluate("document.querySelector('.trouble').setAttribute('data-old', '')")
        await browser.evaluate("getSelection().removeAllRanges()")
        await browser.until("!document.querySelector('[data-old]')")
        assert "while text is selected" not in await browser.evaluate(about)
        assert browser.errors == []


@needs_chromium
@pytest.mark.asyncio
@pytest.mark.parametrize("width", [1280, 390])
async def test_several_workers_have_a_row_each_and_everything_is_of_all_of_them(tmp_path: Path, width: int) -> None:
    async with stage() as plane, stage() as other, supervised(plane, other), page(tmp_path) as browser:
        await loaded(browser, plane.address, width=width, dark=False)
        await browser.until("document.querySelectorAll('#workers .row').length === 2")
        high = """new Set([...document.querySelectorAll("#workers .row > span")].map(each => {
            if (each.textContent.startsWith("connections")) each.lastChild.textContent = "1,000";
            return each.offsetHeight;
        })).size"""
        assert await browser.evaluate(high) == 1, "a part of a row breaks into two lines"
        lines = """new Set([...document.querySelectorAll("#workers .row:first-child > span")].map(each =>
            Math.round(each.getBoundingClientRect().top))).size"""
        assert width < 600 or await browser.evaluate(lines) == 1, "a row breaks into two lines where there is room"
        for row in await texts(browser, "#workers .row"):
            assert row.startswith("process ")
            assert "ready" in row
        assert "2 workers" in (await texts(browser, "#about"))[0]
        assert await texts(browser, ".route .name") == [f"/{route.name}" for route in ROUTES]
        assert len(await texts(browser, ".failure")) == 8
        assert await browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.errors == []


@needs_chromium
@pytest.mark.asyncio
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_hosts_that_deployments_have_named_are_shown_with_their_health_and_what_is_allowed(
    tmp_path: Path, width: int, dark: bool
) -> None:
    async with stage(with_open=True) as plane, page(tmp_path) as browser:
        await loaded(browser, plane.address, width=width, dark=dark)
        assert await texts(browser, "#routes .route .name") == [f"/{route.name}" for route in ROUTES]
        assert await texts(browser, "#open .route .name") == [*HOSTS, "(other)"]
        well, denied, others = await texts(browser, "#open .route")
        for words in ("well", "restate-invoker@my-project.iam.gserviceaccount.com", "50 min left"):
            assert words in well
        assert "invoker-missing" in denied
        assert "1 of 2 tokens" in others
        assert "search.example.com" in others
        for listed in (*LISTS.hosts, *LISTS.accounts, *LISTS.audiences):
            assert listed in (await texts(browser, "#allowed"))[0]
        troubles = await texts(browser, ".trouble .name")
        assert troubles == ["/payments", "/broken", HOSTS[1]]
        assert await browser.evaluate("document.title") == "3 not well – cloudrun-sidecar"
        failed = await texts(browser, ".failure .name")
        assert HOSTS[1] in failed
        overflow = """[...document.querySelectorAll("main *")].filter(
            each => each.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""
        assert await browser.evaluate(overflow) == 0
        assert await browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.errors == []


@needs_chromium
@pytest.mark.asyncio
@pytest.mark.parametrize("width", [1280, 390])
async def test_refused_settings_are_at_the_top_with_what_is_wrong_and_so_are_those_that_need_a_restart(
    tmp_path: Path, width: int
) -> None:
    problems = (f"routes.toml: routes.greeter.url: {EVIL} is not a URL", "routes.toml: wrokers: is not a setting")
    async with stage(problems=problems, need_restart=("listen", "workers")) as plane, page(tmp_path) as browser:
        await loaded(browser, plane.address, width=width, dark=False)
        refused, restart = await texts(browser, ".notice")
        for words in (*problems, "New settings are refused", "since"):
            assert words in refused
        assert "listen, workers" in restart
        assert "need a restart" in restart
        above = "document.querySelector('.notice').getBoundingClientRect().top"
        assert await browser.evaluate(f"{above} < document.querySelector('.trouble').getBoundingClientRect().top")
        assert await texts(browser, "#reason") == ["2 of 5 routes not well, new settings refused"]
        assert await browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.errors == []


@needs_chromium
@pytest.mark.asyncio
async def test_settings_that_were_accepted_are_a_time_alone(tmp_path: Path) -> None:
    async with stage() as plane, page(tmp_path) as browser:
        await loaded(browser, plane.address, width=1280, dark=False)
        assert await texts(browser, ".notice") == []
        assert re.search(r"settings read \d+ s ago", (await texts(browser, "#about"))[0])


@needs_chromium
@pytest.mark.asyncio
async def test_the_page_updates_without_a_reload(tmp_path: Path) -> None:
    async with stage() as plane, page(tmp_path) as browser:
        await loaded(browser, plane.address, width=1280, dark=False)
        await browser.evaluate("window.here = true")
        await plane.close()
        await browser.until("document.getElementById('state').textContent === 'not answering'")
        assert await browser.evaluate("window.here")
        assert len(await texts(browser, ".route")) == len(ROUTES)
