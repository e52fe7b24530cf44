"""A compiled pipeline, read back: its graph, and what each task asks a cluster for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Node:
    """A task of a compiled pipeline. after: the tasks it waits for; loop: the fan-out it is in, "" for none."""

    name: str
    after: tuple[str, ...]
    loop: str


def graph(path: Path) -> list[Node]:
    """The tasks of a compiled pipeline, each after those it waits for."""
    import yaml

    spec = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    found = list(_tasks(spec, spec["root"]["dag"], "", ()))
    order: list[Node] = []
    while rest := [node for node in found if node not in order]:
        done = {node.name for node in order}
        order += [node for node in rest if set(node.after) <= done]
    return order


def requests(path: Path) -> list[dict[str, str]]:
    """What each task of a compiled pipeline asks a cluster for, and which secrets it reads."""
    import yaml

    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if documents[1:] else {}
    found = []
    for name, executor in documents[0]["deploymentSpec"]["executors"].items():
        asked = executor["container"].get("resources", {})
        gpu = asked.get("accelerator", {})
        secrets = dict.fromkeys(each["secretName"] for each in platform.get(name, {}).get("secretAsEnv", ()))
        found.append(
            {
                "task": name.removeprefix("exec-"),
                "image": executor["container"]["image"],
                "GPUs": gpu.get("resourceCount", "0"),
                "memory": asked.get("resourceMemoryRequest", "the cluster's default"),
                "secret": ", ".join(secrets) or "none",
            }
        )
    return found


def _tasks(spec: Mapping[str, Any], dag: Mapping[str, Any], loop: str, outside: tuple[str, ...]) -> Iterator[Node]:
    """The tasks of a graph, those of its fan-outs among them; whoever waits for a fan-out waits for its last tasks."""
    inner = {
        name: list(_tasks(spec, below["dag"], name, tuple(task.get("dependentTasks", ()))))
        for name, task in dag["tasks"].items()
        if "dag" in (below := spec["components"][task["componentRef"]["name"]])
    }
    for name, task in dag["tasks"].items():
        if name in inner:
            yield from inner[name]
            continue
        after: list[str] = []
        for other in task.get("dependentTasks", ()):
            waited_for = {each for node in inner.get(other, ()) for each in node.after}
            after += [node.name for node in inner[other] if node.name not in waited_for] if other in inner else [other]
        yield Node(name, tuple(after) or outside, loop)
