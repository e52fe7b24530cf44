"""The compiled pipeline: valid for kfp, whole, and with nothing in it that must not be there; and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from labkit.errors import ProcessFailed, UsageError
from labkit.pipeline import Cluster, compile_to, kfp_python, submit
from labkit.pipeline.kubeflow import Task, read_back
from tests.transfer.conftest import CANARY

KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
OPTIONAL = {"AWS_S3_ENDPOINT", "AWS_S3_BUCKET", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "HF_TOKEN"}
ASKED = {"models": ["tiny"], "schemes": ["fp8-dynamic"], "store": "s3://bucket/prefix", "profile": "tiny", "data": ""}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
        cluster = Cluster("registry.example/labkit:1", gpus=2, memory="64Gi", secret="my-data-connection")
        compile_to(folder / "pipeline.yaml", cluster, folder / "log")
    return folder / "pipeline.yaml"


def test_kfp_itself_reads_it_back(compiled: Path) -> None:
    read = "import sys; from kfp import components; print(components.load_component_from_file(sys.argv[1]).name)"
    done = subprocess.run([kfp_python(), "-c", read, compiled], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "quantize-evaluate-compare"


def test_each_task_waits_for_the_one_before_and_asks_for_what_it_needs(compiled: Path) -> None:
    image, secret = "registry.example/labkit:1", "my-data-connection"
    assert read_back(compiled) == [
        Task("plan", (), True, image, 0, "", ""),
        Task("quantize", ("plan",), False, image, 1, "64Gi", secret),
        Task("evaluate", ("quantize",), False, image, 2, "64Gi", secret),
        Task("compare", ("evaluate",), True, image, 0, "", secret),
    ]


def test_several_gpus_have_room_to_talk_and_of_the_secret_only_the_keys_must_be_there(compiled: Path) -> None:
    platform = list(yaml.safe_load_all(compiled.read_text()))[1]["platforms"]["kubernetes"]
    evaluate = platform["deploymentSpec"]["executors"]["exec-evaluate"]
    assert [mount["mountPath"] for mount in evaluate["emptyDirMounts"]] == ["/dev/shm"], "a container has 64 MB there"
    needed, optional = evaluate["secretAsEnv"]
    assert {pair["envVar"] for pair in needed["keyToEnv"]} == KEYS
    assert {pair["envVar"] for pair in optional["keyToEnv"]} == OPTIONAL
    assert (needed.get("optional", False), optional["optional"]) == (False, True)


def test_no_key_of_this_machine_is_in_it_and_no_step_installs_anything(compiled: Path) -> None:
    assert [word for word in (CANARY, "pip install") if word in compiled.read_text()] == []


def test_a_missing_kfp_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABKIT_KFP_PYTHON", str(tmp_path / "python"))
    with pytest.raises(UsageError, match="make kfp"):
        compile_to(tmp_path / "pipeline.yaml", Cluster("x"), tmp_path / "log")


@pytest.mark.parametrize(
    ("endpoint", "more", "said"),
    [
        ("http://pipelines.example", {}, "without TLS"),
        ("https://pipelines.example", {"store": "/here"}, "asked to use /here"),
        ("https://pipelines.example", {"models": ["/"]}, "a folder of this one is not there"),
    ],
)
def test_what_a_cluster_must_not_get_is_refused(endpoint: str, more: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        submit(endpoint, ASKED | more, Cluster("x"), Path("unused"))


def test_a_server_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_TOKEN", CANARY)
    with pytest.raises(ProcessFailed, match="could not submit") as failed:
        submit("http://127.0.0.1:9", ASKED, Cluster("x"), tmp_path / "log")
    assert CANARY not in str(failed.value) + (tmp_path / "log").read_text()
