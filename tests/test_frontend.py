"""Widgets in a real kernel, told as a front end tells it which cell it runs; and the plain figure without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

VIEW = "application/vnd.jupyter.widget-view+json"
OPEN = """
import threading, time
import torch
from ipywidgets import FloatLogSlider, FloatText, HTML, widgets
from labkit import explorers, notebook, open_lab
lab = open_lab("probe", workspace={root!r})
row = torch.randn(64, generator=torch.Generator().manual_seed(0))
of = lambda kind: [w for w in widgets.widget._instances.values() if type(w) is kind]
"""

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a cell in one kernel; its outputs. front_end: whether the sender names the cell, as JupyterLab does."""
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)

    def execute(code: str, front_end: bool = True) -> list[dict[str, Any]]:
        client.session.metadata = {"cellId": "abc"} if front_end else {}
        heard: list[dict[str, Any]] = []
        reply = client.execute_interactive(code, allow_stdin=False, timeout=120, output_hook=heard.append)
        assert reply["content"]["status"] == "ok", reply["content"]
        return [message["content"] for message in heard if message["msg_type"] in ("stream", "display_data")]

    try:
        execute(OPEN.format(root=str(tmp_path_factory.mktemp("workspace"))))
        yield execute
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def printed(outputs: list[dict[str, Any]]) -> str:
    return "".join(output.get("text", "") for output in outputs)


def test_without_a_front_end_an_explorer_is_the_figure_of_its_first_state(run: Run) -> None:
    picture, sentence = run("lab.show(explorers.number_line(row))", front_end=False)
    assert VIEW not in picture["data"]
    assert "image/png" in picture["data"]
    assert "E4M3 with a scale of 1 times" in sentence["data"]["text/markdown"]


def test_with_a_front_end_it_has_controls_and_a_picture_for_pages_that_show_none(run: Run) -> None:
    *_, shown = run("lab.show(explorers.number_line(row))")
    assert {VIEW, "image/png", "text/plain"} <= shown["data"].keys()
    assert shown["data"]["text/plain"].startswith("E4M3 with a scale of 1 times")


def test_moving_a_slider_draws_another_picture_and_says_another_sentence(run: Run) -> None:
    first, *_ = run("lab.show(explorers.number_line(row))")
    (moved,) = run("of(FloatLogSlider)[-1].value = 2.0**-4")
    before, after = first["data"]["text/html"], moved["data"]["text/html"]
    assert "a scale of 1 times" in before
    assert "a scale of 0.0625 times" in after
    assert before.split("base64,")[1] != after.split("base64,")[1]
    assert 'alt="E4M3' in after


def test_a_guess_that_is_typed_stands_beside_the_measurement_and_without_a_front_end_the_default(run: Run) -> None:
    asked = run("lab.predict('points', 0.5, 'How many <b> points?')")
    assert VIEW in asked[-1]["data"]
    run("of(FloatText)[-1].value = 0.2")
    assert "you guessed 0.2" in printed(run("lab.outcome('points', 0.25)"))
    assert "How many &lt;b&gt; points?" in printed(run("print(of(HTML)[-1].value)"))
    assert "The guess: 0.5" in printed(run("lab.predict('more', 0.5, 'How many?')", front_end=False))
    assert "you guessed 0.5" in printed(run("lab.outcome('more', 1.0)", front_end=False))


BARS = """
with notebook.bar(10, "evaluating", "task") as show:
    show(9, "the last")
with notebook.bar(2_000_000, "moving", "B", adds=True) as moved:
    moved(500_000)
try:
    with notebook.bar(4, "broken", "part") as show:
        show(1)
        raise KeyError
except KeyError:
    pass"""


def test_a_bar_is_full_at_the_end_and_stays_where_it_was_at_an_error(run: Run) -> None:
    ends = {line.split(":")[0]: line for line in printed(run(BARS)).replace("\r", "\n").splitlines() if ":" in line}
    assert "100%" in ends["evaluating"]
    assert "10/10" in ends["evaluating"]
    assert "100%" in ends["moving"]
    assert " 25%" in ends["broken"]


CLOCK = """
try:
    with notebook.waiting("an engine"):
        time.sleep(2.5 * notebook.CLOCK_SECONDS)
        raise KeyError
except KeyError:
    print("clocks left:", sum(thread.name == "clock" for thread in threading.enumerate()))"""


def test_a_clock_runs_for_those_who_watch_and_ends_with_what_it_waits_for(run: Run) -> None:
    watched, unwatched = printed(run(CLOCK)), printed(run(CLOCK, front_end=False))
    assert "an engine: 00:01" in watched
    assert "an engine: 00:01" not in unwatched, "a saved notebook needs no line for each second"
    for said in (watched, unwatched):
        assert "an engine: 00:02" in said
        assert "clocks left: 0" in said
