"""A real Chromium, and a real JupyterLab server on a copy of the labs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import ROOT, clean_environment
from tests.processes_left import wait_until

SCREENSHOTS = ROOT / "build" / "screenshots"
SIZE = {"width": 1280, "height": 900}
# Chromium would ask the network for updates and field trials; here it has the loopback only.
QUIET = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"
SETTINGS = {  # every cell is in the page at once, and nothing is asked of the network
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
FOLDERS = {  # of what JupyterLab would keep for this user
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "IPYTHONDIR": "ipython",
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


def keep(page: Page, name: str, whole: bool = False) -> None:
    """Keeps a picture of a page among the build products."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    file = "".join(c if c.isalnum() or c in "-_" else "-" for c in name).strip("-")
    page.screenshot(path=SCREENSHOTS / f"{file}.png", full_page=whole)


@dataclass(frozen=True)
class Server:
    """A running JupyterLab. `labs` is the copied folder of notebooks that it serves."""

    url: str
    token: str
    labs: Path

    def address(self, lab: str) -> str:
        return f"{self.url}lab/tree/{self.labs.name}/{quote(lab)}.ipynb?token={self.token}&reset"


@contextmanager
def serving(root: Path, workspace: Path) -> Iterator[Server]:
    """JupyterLab in a folder that holds `notebooks`, with a workspace."""
    own = root / "jupyter"
    for name, values in SETTINGS.items():
        file = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    environment = {name: str(own / folder) for name, folder in FOLDERS.items()} | {"LABKIT_WORKSPACE": str(workspace)}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    command += ["--ServerApp.port=0", f"--ServerApp.root_dir={root}"]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    log = root / "jupyter.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=root, env=clean_environment(**environment), stdout=output, stderr=output
        )
    try:
        told = own / "runtime" / f"jpserver-{process.pid}.json"
        ready = wait_until(lambda: process.poll() is not None or bool(told.is_file() and told.read_text()), seconds=120)
        if not ready or process.poll() is not None:
            raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
        found = json.loads(told.read_text())
        yield Server(found["url"], found["token"], root / "notebooks")
    finally:
        process.terminate()  # JupyterLab ends its kernels on SIGTERM
        process.wait(timeout=60)
