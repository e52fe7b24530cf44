"""Two children share the models of an evaluation: each model's requests stay together, and no failure is lost."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from labkit.engine import run_script
from labkit.errors import ProcessFailed
from labkit.evaluation.lanes import answers, lanes
from labkit.hardware import this_machine
from labkit.profiles import TINY
from tests.models import make_model
from tests.processes_left import engines

ANSWER = """
import json, pathlib, time
done = job["requests"][: job["most"]]
for number, request in enumerate(done):
    pathlib.Path(job["progress"]).write_text(json.dumps([number, request["variant"]]))
    if request["variant"] == "broken":
        time.sleep(1)
        raise ValueError("no such model")
    time.sleep(job["seconds"])
answer = {"results": [{"value": request["number"]} for request in done], "versions": {"torch": "2"}}
"""


def jobs(folder: Path, *models: str) -> list[dict[str, Any]]:
    return [
        {"number": number, "engine_key": model, "variant": model, "checkpoint": str(folder)}
        for number, model in enumerate(models)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "base")


def asked(tmp_path: Path, **more: Any) -> Any:
    """How `answers` runs a child: by the real thing, with a script in place of lm-eval."""
    return partial(
        run_script, ANSWER, log=tmp_path / "log", engine=TINY.engine, offline=True, deadline_seconds=60, **more
    )


@pytest.mark.skipif(bool(this_machine().gpus) or this_machine().cores < 2, reason="only for a CPU of two cores or more")
def test_each_models_requests_stay_together_in_one_child(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_JOBS", "1")
    found = lanes(jobs(folder, "a", "a", "b", "c", "c", "d"), TINY.engine, None)
    assert [[job["variant"] for job in lane] for lane in found] == [["a", "a", "c", "c"], ["b", "d"]]


@pytest.mark.parametrize("why", ["one model", "isolated", "no memory", "beside labs"])
def test_one_child_does_where_two_would_not_fit_or_have_nothing_to_share(
    why: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_JOBS", "2" if why == "beside labs" else "1")
    given = jobs(folder, "a", "a") if why == "one model" else jobs(folder, "a", "b")
    engine = replace(TINY.engine, kv_cache_gib=1e6) if why == "no memory" else TINY.engine
    assert lanes(given, engine, True if why == "isolated" else None) == [given]


@pytest.mark.parametrize("most", [1, 9])
def test_every_request_gets_its_own_answer_and_progress_is_told(most: int, folder: Path, tmp_path: Path) -> None:
    given = jobs(folder, "a", "b", "c", "d", "e")
    ticks: list[tuple[int, int, str]] = []
    found, versions = answers(
        [given[::2], given[1::2]], {"seconds": 0.5, "most": most}, asked(tmp_path), lambda *tick: ticks.append(tick)
    )
    assert {number: answer["value"] for number, answer in found.items()} == {n: n for n in range(5)}
    assert versions == {"torch": "2"}
    assert ticks[-1] == (5, 5, "done")
    assert [done for done, _, _ in ticks] == sorted(done for done, _, _ in ticks)
    assert any(" and " in doing for _, _, doing in ticks)


def test_a_child_that_fails_ends_the_others_and_is_the_error(folder: Path, tmp_path: Path) -> None:
    given = jobs(folder, "a", "broken")
    began = time.monotonic()
    with pytest.raises(ProcessFailed, match="ValueError: no such model"):
        answers([given[:1], given[1:]], {"seconds": 50, "most": 9}, asked(tmp_path), None)
    assert time.monotonic() - began < 30
    assert engines() == []


def test_an_interrupt_ends_all_children(folder: Path, tmp_path: Path) -> None:
    given = jobs(folder, "a", "b")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        answers([given[:1], given[1:]], {"seconds": 50, "most": 9}, asked(tmp_path), interrupt)
    assert time.monotonic() - began < 30
    assert engines() == []
