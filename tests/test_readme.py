"""Every command of the README is run by a test, or marked with what it needs; its tables and links are current."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from labkit.errors import LabError
from labkit.hardware import judge
from tests.conftest import ROOT
from tests.processes_left import wait_until
from tools import links, notebooks, tables

README = ROOT / "README.md"
INSTRUCTORS = ROOT / "INSTRUCTORS.md"
MARKS = ("gpu", "hub", "s3", "conda", "cluster", "container")

# The list: every command of a fenced `sh` block, and the test that runs it, or the marks it carries instead.
HERE = "tests/test_readme.py::test_the_command_runs_as_the_readme_says"
STEPS = "tests/pipeline/test_steps.py::test_three_machines_share_nothing_but_a_bucket"
PUBLISH = "tests/transfer/test_labs.py::test_a_labs_checkpoint_goes_out_and_comes_back_identical"
COMMANDS = {
    "make labs": "tests/test_setup.py::test_make_labs_on_a_fresh_clone_sets_up_and_passes_every_lab",
    "make lab": "tests/test_readme.py::test_make_lab_opens_jupyterlab_at_the_first_lab",
    "make test": "tests/test_setup.py::test_ci_runs_the_readmes_test_command",
    ". .venv/bin/activate": HERE,
    "labkit doctor": HERE,
    "labkit run 00": HERE,
    "labkit run --jobs 2 --only-changed": "tests/ops/test_history.py::"
    "test_what_has_not_changed_is_left_alone_and_still_counts",
    "labkit results": HERE,
    "labkit book": "tests/ops/test_pages.py::test_a_run_leaves_pages_whose_links_all_lead_somewhere",
    "labkit serve fp8-dynamic": "tests/ops/test_serve.py::test_the_printed_line_works_and_a_signal_ends_all_of_it",
    "labkit publish fp8-dynamic published/fp8-dynamic": PUBLISH,
    "labkit fetch published/fp8-dynamic copy": PUBLISH,
    "labkit publish fp8-dynamic s3://BUCKET/PREFIX": "[s3]",
    "labkit publish fp8-dynamic hub:OWNER/NAME": "[hub]",
    "labkit fetch --profile workbench everything": "[hub]",
    "labkit run --profile workbench -p model everything/model -p data everything/data": "[gpu]",
    "labkit quantize fp8-dynamic --store store": STEPS,
    "labkit evaluate fp8-dynamic --store store": STEPS,
    "labkit evaluate bf16 --store store": STEPS,
    "labkit compare fp8-dynamic --store store": STEPS,
    "make kfp": "tests/pipeline/test_definition.py::test_kfp_itself_reads_it_back",
    "labkit pipeline compile build/pipeline.yaml --memory 64Gi --secret my-data-connection": HERE,
    "labkit pipeline run --local": "tests/pipeline/test_steps.py::test_the_command_runs_the_pipeline_here",
    "labkit pipeline submit --endpoint URL --image IMAGE --secret my-data-connection "
    "--profile workbench --store s3://BUCKET/PREFIX": "[cluster]",
    "papermill notebooks/00_start_here.ipynb executed.ipynb -p profile tiny": HERE,
    "make labs PROFILE=workbench": "[gpu] [hub]",
    "PIP_NO_DEPS=1 conda env create -f environment.yml": "[conda] [gpu]",
    "conda run -n labkit pip install --no-deps --no-build-isolation -e .": "[conda] [gpu]",
}
TEACHING = {  # of INSTRUCTORS.md
    "podman build --build-arg LOCK=gpu --build-arg PROFILE=workbench -t labs .": "[container]",
    "podman run --rm --device nvidia.com/gpu=all labs labkit doctor": "[container] [gpu]",
    "podman run --rm --device nvidia.com/gpu=all -p 127.0.0.1:8888:8888 -e LABS_IP=0.0.0.0 "
    "-v labs:/opt/app-root/src labs": "[container] [gpu]",
    "labkit fetch --profile workbench s3://BUCKET/labs": "[hub] [s3]",
    "labkit doctor": HERE,
    "labkit run": "tests/test_labs.py::test_every_lab_passes",
    "labkit book": COMMANDS["labkit book"],
}
PAGES = {README: COMMANDS, INSTRUCTORS: TEACHING}


def commands(text: str) -> dict[str, str]:
    """Command to its marks (`[gpu] [hub]`), of all fenced `sh` blocks."""
    found = {}
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            command, _, comment = line.partition("#")
            if command.strip():
                found[command.strip()] = " ".join(re.findall(rf"\[(?:{'|'.join(MARKS)})\]", comment))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_run_by_a_test_that_exists_or_carries_its_marks(page: Path) -> None:
    found, listed = commands(page.read_text()), PAGES[page]
    assert found.keys() == listed.keys()
    for command, test in listed.items():
        assert found[command] == (test if test.startswith("[") else ""), command
        if not test.startswith("["):
            file, name = test.split("::")
            body = ast.parse((ROOT / file).read_text()).body
            assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}, command


def test_a_command_that_is_not_in_the_list_would_be_noticed() -> None:
    text = "```sh\nmake coffee   # [gpu]\n# a comment\n```\n```python\nmake tea\n```\n"
    assert commands(text) == {"make coffee": "[gpu]"}


@pytest.mark.parametrize("command", [command for command, test in COMMANDS.items() if test == HERE])
def test_the_command_runs_as_the_readme_says(command: str, tmp_path: Path) -> None:
    """As it stands there, in the checkout, with the environment on the PATH."""
    if command.startswith(". ") and not (ROOT / ".venv").exists():
        pytest.skip("the tests run in another environment than .venv")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "LABKIT_WORKSPACE": str(tmp_path / "workspace")}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    executed = ROOT / "executed.ipynb"
    said = done.stdout + (executed.read_text() if executed.exists() else "")
    executed.unlink(missing_ok=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lab = "00_start_here"
    for start, words in {"labkit doctor": lab, "labkit run": f"{lab}  passed", "papermill": f"End of {lab}"}.items():
        assert words in said or not command.startswith(start)


def test_make_lab_opens_jupyterlab_at_the_first_lab(tmp_path: Path) -> None:
    """The real server, and in place of a browser a script that keeps the page it is given."""
    planned = subprocess.run(["make", "--dry-run", "setup"], cwd=ROOT, capture_output=True, text=True)
    if "venv" in planned.stdout:
        pytest.skip("this environment was not made by make, and make would make a new one")
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\ncp "${{1#file://}}" "{opened}-"\nmv "{opened}-" "{opened}"\n')
    browser.chmod(0o755)
    environment = {**os.environ, "JUPYTER_RUNTIME_DIR": str(tmp_path), "BROWSER": str(browser)}
    options = "--allow-root --ServerApp.port=0 --ServerApp.ip=127.0.0.1"  # tests may run as root
    with open(tmp_path / "log", "wb") as log:
        command = ["make", "lab", f"ARGS={options}"]
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        assert wait_until(lambda: opened.exists() or running.poll() is not None, seconds=120)
        assert opened.exists(), (tmp_path / "log").read_text()[-2000:]
        (address,) = set(re.findall(r'href="(http://[^"]+)"', opened.read_text()))
        assert "/lab/tree/" in address
        assert "00_start_here.ipynb" in address
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert "JupyterLab" in answer.read().decode()
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait()


# --- tables and links -------------------------------------------------------------------------------------------------


def test_the_tables_are_generated_and_current_and_every_link_of_the_pages_resolves() -> None:
    assert tables.problems() == []
    for name in ("README.md", "INSTRUCTORS.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert links.broken((ROOT / name).read_text(), ROOT / name) == []


def test_a_link_that_leads_nowhere_is_noticed() -> None:
    text = "## The labs\n[a](nowhere.md) [b](#the-labs) [c](#not-here) [d](https://example.com/x)"
    assert links.broken(text, README) == ["there is no nowhere.md", "README.md has no heading #not-here"]


def test_the_command_fills_every_table_from_runs_that_passed_and_check_then_finds_nothing(tmp_path: Path) -> None:
    for page, names in ((README, ("labs", "hardware", "figures")), (INSTRUCTORS, ("timing", "disk"))):
        text = page.read_text()
        for name in names:
            text = tables.with_block(text, name, "")
        (tmp_path / page.name).write_text(text)
    assert len(tables.problems(tmp_path)) == 5, "all tables are empty"
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "checkpoint").write_bytes(b"0" * 2_000_000)
    about = {"verdict": "passed", "reason": "", "seconds": 5.0, "peak_bytes": 1_200_000_000}
    labs = [{"name": path.stem, **about} for path in notebooks.lab_paths()]
    run = {"profile": "tiny", "machine": "A, 2 cores, 8 GiB", "complete": True, "started": "2026-11-29T08:00:00"}
    run |= {"headline": {"bf16": {"value": 0.94, "stderr": 0.011, "n": 500, "task": "tiny_problems"}}}
    run |= {"workspace": str(tmp_path / "workspace"), "labs": labs}

    def write(*runs: dict[str, Any]) -> int:
        options = ["--folder", str(tmp_path)]
        for number, facts in enumerate(runs):
            (tmp_path / f"{number}.json").write_text(json.dumps(facts))
            options += ["--report", str(tmp_path / f"{number}.json")]
        return tables.main(options)

    slow, fast = run | {"level": "avx2", "seconds": 800.0}, run | {"level": "bf16", "seconds": 200.0}
    assert write(slow | {"labs": [labs[0] | {"verdict": "failed", "reason": "x"}]}) == 1
    assert tables.block((tmp_path / "README.md").read_text(), "figures") == ""
    assert write(slow, fast) == 0
    written = (tmp_path / "README.md").read_text() + (tmp_path / "INSTRUCTORS.md").read_text()
    for said in (
        "| variant | score ± standard error (avx2) | score ± standard error (bf16) | samples |",
        "| `bf16` | 0.940 ± 0.011 | 0.940 ± 0.011 | 500 |",
        "Task `tiny_problems`; all labs took 14 min and at most 1.2 GB of memory (avx2), 4 min and at most 1.2 GB of "
        "memory (bf16); `tiny` profile, 2 cores, 2026-11-29.\n",
        "| lab | time (avx2) | peak memory (avx2) | time (bf16) | peak memory (bf16) |",
        "| `00_start_here` | 10 s | 1.2 GB | 10 s | 1.2 GB |",
        "| all, one after another | 14 min | 1.2 GB | 4 min | 1.2 GB |",
        "Measured with: `tiny` profile, 2 cores, 2026-11-29.",
        "The workspace then held 2.0 MB.",
        "15.2 GB of BF16 weights",
    ):
        assert said in written
    assert tables.problems(tmp_path) == []
    with pytest.raises(LabError, match=re.escape("there is no <!-- labs -->")):
        tables.block("# labkit\n", "labs")


# --- what the pages say -----------------------------------------------------------------------------------------------


def test_the_image_is_built_by_make_from_files_that_are_here() -> None:
    """No engine that builds images is at hand: what can be held is that its words mean something in this checkout."""
    said = (ROOT / "Containerfile").read_text()
    (made,) = re.findall(r"make ([a-z ]+) LOCK=", said)
    planned = subprocess.run(["make", "-n", *made.split(), "LOCK=cpu"], cwd=ROOT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    (first,) = re.findall(r"notebooks/\S+\.ipynb", said)
    assert (ROOT / first).is_file()
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in kept if name.split("/")[0] in ignored], "the image lacks what git holds"


def test_the_commands_of_make_that_the_pages_name_exist_and_the_three_sentences_come_first() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make\s([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text() + README.read_text()))
    assert named
    assert named <= targets
    assert len(re.findall(r"[.!?](?:\s|$)", README.read_text().split("\n\n")[1])) == 3


def test_no_file_names_the_host_of_a_package_index() -> None:
    """A site's mirror is the site's business: pip's configuration decides. PyTorch's CPU index is the Makefile's."""
    files = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "environment.yml", "pyproject.toml")]
    for path in [*files, *(ROOT / "requirements").iterdir(), *(ROOT / "tools").glob("*.py")]:
        assert re.findall(r"\w+://[\w.]+", path.read_text().replace("s3://BUCKET", "")) == [], path
    assert (ROOT / "Makefile").read_text().count("://") == 1


def test_every_lab_runs_from_ampere_on_as_the_page_says() -> None:
    assert "Ampere and later for all labs" in INSTRUCTORS.read_text()
    for path in notebooks.lab_paths():
        for scheme in notebooks.read(path)["metadata"]["labkit"].get("schemes", []):
            for kind in ("ampere", "ada", "hopper", "blackwell-10.0", "blackwell-12.0"):
                assert judge(scheme, kind, "cuda").verdict != "no", f"{path.stem} on {kind}"
