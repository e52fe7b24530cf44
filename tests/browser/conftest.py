"""A real Chromium, and a real JupyterLab server on a copy of the labs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import ROOT, clean_environment

SCREENSHOTS = ROOT / "build" / "screenshots"
SIZE = {"width": 1280, "height": 900}
START_SECONDS = 120
# Chromium would ask the network for updates and field trials; here it has the loopback only.
QUIET = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"
SETTINGS = {  # every cell is in the page at once, and nothing is asked of the network
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, of which `make test-browser` sees that it is there."""
    path = shutil.which("chromium")
    if not path:
        pytest.fail("there is no `chromium` on the PATH; `make test-browser` installs it")
    with sync_playwright() as playwright:
        arguments = [*QUIET.split(), *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # root has no sandbox
        running = playwright.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """An empty page; a picture of how it stood at the end is kept."""
    context = browser.new_context(viewport=SIZE)
    opened = context.new_page()
    yield opened
    keep(opened, request.node.name)
    context.close()


def keep(page: Page, name: str, whole: bool = False) -> Path:
    """Keeps a picture of a page among the build products."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in name).strip('-')}.png"
    page.screenshot(path=path, full_page=whole)
    return path


@dataclass(frozen=True)
class Server:
    """A running JupyterLab. `labs` is the copied folder of notebooks that it serves."""

    url: str
    token: str
    labs: Path

    def address(self, lab: str) -> str:
        return f"{self.url}lab/tree/{self.labs.name}/{quote(lab)}.ipynb?token={self.token}&reset"


Serve = Callable[[Path, Path], Server]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Starts JupyterLab in a folder that holds `notebooks`, with a workspace; all are ended with the tests."""
    running: list[subprocess.Popen[bytes]] = []

    def start(root: Path, workspace: Path) -> Server:
        process, server = _start(root, workspace)
        running.append(process)
        return server

    yield start
    for process in running:
        process.terminate()  # JupyterLab ends its kernels on SIGTERM
    for process in running:
        process.wait(timeout=60)


def _start(root: Path, workspace: Path) -> tuple[subprocess.Popen[bytes], Server]:
    own = root / "jupyter"
    settings = own / "settings" / "@jupyterlab"
    for name, values in SETTINGS.items():
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    environment = clean_environment(
        LABKIT_WORKSPACE=str(workspace),
        JUPYTER_RUNTIME_DIR=str(own / "runtime"),
        JUPYTER_CONFIG_DIR=str(own / "config"),
        JUPYTER_DATA_DIR=str(own / "data"),
        JUPYTERLAB_SETTINGS_DIR=str(own / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(own / "workspaces"),
        IPYTHONDIR=str(own / "ipython"),
    )
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    command += ["--ServerApp.port=0", f"--ServerApp.root_dir={root}"]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    with open(root / "jupyter.log", "wb") as log:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
    told = own / "runtime" / f"jpserver-{process.pid}.json"
    until = time.monotonic() + START_SECONDS
    while not told.is_file() or not told.read_text():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise RuntimeError(f"JupyterLab did not start:\n{(root / 'jupyter.log').read_text()[-2000:]}")
        time.sleep(0.2)
    found = json.loads(told.read_text())
    return process, Server(found["url"], found["token"], root / "notebooks")
