"""The report and the book in a real browser: every link leads somewhere, nothing is cut off, everybody can read it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from labkit.ops.report import write_book
from tests.browser.conftest import SIZE, keep
from tests.conftest import LabsRun
from tests.ops.probes import labkit, write_lab

WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
LINKS = "() => [...document.querySelectorAll('a[href]')].map(link => link.href)"
SERIOUS = ("serious", "critical")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which it is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield tmp_path, f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def faults(page: Page) -> list[str]:
    """Serious accessibility faults of a page, each with the places where axe found it."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {[node['html'][:120] for node in rule['nodes']][:3]}"
        for rule in found
        if rule["impact"] in SERIOUS
    ]


def visit(page: Page, start: str) -> list[str]:
    """Opens a page and every page that it leads to, on and on; each must be whole. Returns their addresses."""
    waiting, seen = [start], []
    problems: list[str] = []
    page.on("requestfailed", lambda request: problems.append(f"not loaded: {request.url}"))
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    while waiting:
        address = waiting.pop(0)
        seen.append(address)
        answer = page.goto(address)
        assert answer is not None
        assert answer.ok, f"{address}: {answer.status}"
        assert page.evaluate(WIDER) <= 0, f"{address} scrolls sideways"
        assert faults(page) == [], address
        for link in page.evaluate(LINKS):
            file, _, anchor = link.partition("#")
            if urlparse(file).netloc != urlparse(start).netloc:
                continue  # the world outside, which a test does not need
            if anchor and file == address:
                assert page.evaluate("id => !!document.getElementById(id)", unquote(anchor)), f"{address}#{anchor}"
            if file.endswith(".html"):
                waiting += [file] if file not in [*waiting, *seen] else []
            else:
                assert page.request.get(file).ok, f"{address} leads to {file}"
    assert problems == []
    return seen


def test_the_report_of_a_run_that_failed(page: Page, site: tuple[Path, str]) -> None:
    folder, address = site
    write_lab(folder / "notebooks", "00_start_here", "print('ran')")
    write_lab(folder / "notebooks", "01_fails", "print('x' * 3000); raise ValueError('boom ' * 200)")
    write_lab(folder / "notebooks", "02_blocked", needs=["01_fails"])
    assert labkit("run", "--output", "out", cwd=folder).returncode == 1
    seen = visit(page, urljoin(address, "out/report.html"))
    assert [Path(url).name for url in seen] == ["report.html", "00_start_here.html", "01_fails.html"]
    page.goto(seen[0])
    assert page.locator("h1").inner_text() == "2 of 3 labs did not pass"
    first = page.locator("main h2").first.inner_text()
    assert first == "01_fails: failed", "what failed stands before everything else"


@pytest.mark.labs
def test_the_report_of_all_labs(page: Page, labs_run: LabsRun, site: tuple[Path, str]) -> None:
    folder, address = site
    (folder / "run").symlink_to(labs_run.output)
    seen = visit(page, urljoin(address, "run/report.html"))
    assert len(seen) == 1 + len(labs_run.report["labs"])
    page.goto(seen[0])
    keep(page, "report", whole=True)


@pytest.mark.labs
def test_the_book_is_read_from_its_first_page_to_its_last(
    page: Page, browser: Browser, labs_run: LabsRun, site: tuple[Path, str]
) -> None:
    folder, address = site
    labs = labs_run.labs
    write_book(labs, labs_run.output, folder / "book")
    assert len(visit(page, urljoin(address, "book/index.html"))) == 1 + len(labs)
    page.goto(urljoin(address, "book/index.html"))
    keep(page, "book", whole=True)
    page.get_by_role("link", name=labs[0].title, exact=True).last.click()
    for following in labs[1:]:
        page.get_by_role("navigation", name="Next and previous").get_by_role("link").last.click()
        assert page.locator("h1").first.inner_text().strip() == following.title
    keep(page, "book-last")
    page.get_by_text("The worked answer").first.click()
    assert page.locator("details[open] pre").first.is_visible()
    assert page.viewport_size == SIZE
