"""All that the workbench profile needs, from the hub to a folder or a bucket, for a cluster without a network."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from labkit.behaviour import held_out_rows
from labkit.checkpoint import load_tokenizer
from labkit.data import calibration_set
from labkit.files import verify_manifest
from labkit.ops.provision import data_lacks, uses
from labkit.profiles import TINY, WORKBENCH
from tests.conftest import clean_environment
from tests.models import make_model
from tests.transfer.conftest import BUCKET, Store, hub_stand_in, labkit, use_hub
from tests.transfer.hub_stand_in import TOKEN

ROWS = 1200
SETS = {  # repository: (configuration, split to file, what a row is)
    "HuggingFaceH4/ultrachat_200k": (
        "default",
        {"train_sft": "data/train.jsonl"},
        lambda n: {"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"}]},
    ),
    "openai/gsm8k": (
        "main",
        {"train": "main/train.jsonl", "test": "main/test.jsonl"},
        lambda n: {"question": f"How many is {n} and {n}?", "answer": f"It is {2 * n}. #### {2 * n}"},
    ),
    "google/IFEval": (
        "default",
        {"train": "ifeval.jsonl"},
        lambda n: {"key": n, "prompt": f"Write {n} words.", "instruction_id_list": [], "kwargs": []},
    ),
    "EleutherAI/wikitext_document_level": (
        "wikitext-2-raw-v1",
        {"test": "wikitext-2-raw-v1/test.jsonl"},
        lambda n: {"page": f" = Page {n} = \n" + "Some words of an article . " * 20},
    ),
    "allenai/c4": (
        "en",
        {"validation": "en/c4-validation.00000-of-00008.json.gz"},
        lambda n: {"text": f"Page {n}. " + "Words of the web. " * 10},
    ),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A hub with the model and the data sets of the workbench profile, in small."""
    with hub_stand_in(tmp_path_factory.mktemp("hub")) as found:
        folder = make_model(tmp_path_factory.mktemp("made") / "model", "qwen2")
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
        with pytest.MonkeyPatch.context() as patch:
            use_hub(patch, found)
            fill(HfApi(endpoint=found.url, token=TOKEN), folder)
        yield found


def in_the_hub(hub: Store, home: Path) -> dict[str, str]:
    keys = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf")}
    return clean_environment(**keys, HF_HUB_OFFLINE="0", HF_DATASETS_OFFLINE="0", HF_HUB_DISABLE_PROGRESS_BARS="1")


def fill(api: HfApi, model: Path) -> None:
    """Uploads all of it with the hub's own client."""
    api.create_repo(WORKBENCH.model)
    api.upload_folder(repo_id=WORKBENCH.model, folder_path=model)
    for name, (config, splits, row) in SETS.items():
        api.create_repo(name, repo_type="dataset")
        listed = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits.items())
        files = {"README.md": f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{listed}---\n".encode()}
        for path in splits.values():
            rows = "".join(json.dumps(row(n)) + "\n" for n in range(ROWS)).encode()
            files[path] = gzip.compress(rows) if path.endswith(".gz") else rows
        for path, data in files.items():
            api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id=name, repo_type="dataset")


@pytest.fixture(scope="module")
def provided(hub: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `labkit fetch --profile workbench FOLDER` makes."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "everything"
    done = labkit(
        "fetch", "--profile", "workbench", str(folder), "--workspace", str(home / "w"), env=in_the_hub(hub, home)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verified" in done.stdout
    assert "ptb_test" in done.stdout, "what no hub has is said"
    return folder


def test_it_holds_the_model_and_every_file_that_the_profile_looks_for(provided: Path) -> None:
    model = verify_manifest(provided / "model")
    assert "pytorch_model.bin" not in model["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= model["files"].keys()
    data = verify_manifest(provided / "data")
    wanted = {f"{use.names[0]}.jsonl" for use in uses(WORKBENCH) if use.source}
    assert wanted <= data["files"].keys()
    assert any(name.startswith("nltk/tokenizers/punkt_tab/english/") for name in data["files"])
    assert data_lacks(WORKBENCH, str(provided / "data")) == []


def test_labs_read_it_without_a_hub(provided: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(provided / "model")
    spec = replace(WORKBENCH.calibration, rows=20)
    rows = calibration_set(spec, tokenizer, data=str(provided / "data"))
    assert (len(rows.input_ids), rows.columns) == (20, ("messages",))
    for text in WORKBENCH.simulation.texts:
        if text.source:
            found = held_out_rows(replace(text, rows=2, length=64), tokenizer, data=str(provided / "data"))
            assert [len(row.ids) for row in found] == [64, 64]


def test_fetching_again_leaves_it_alone_and_a_damaged_file_is_fetched_again(
    provided: Path, hub: Store, tmp_path: Path
) -> None:
    words = ("fetch", "--profile", "workbench", str(provided), "--workspace", str(tmp_path / "w"))
    assert "data: is there, and whole" in labkit(*words, env=in_the_hub(hub, provided.parent)).stdout
    gsm8k = provided / "data" / "gsm8k_test.jsonl"
    whole = gsm8k.read_bytes()
    gsm8k.write_bytes(b"x" + whole[1:])
    assert "fetching it again" in labkit(*words, env=in_the_hub(hub, provided.parent)).stdout
    assert gsm8k.read_bytes() == whole


@pytest.mark.long
def test_it_goes_to_a_bucket_too_and_the_doctor_finds_it_there(
    bare: Any, hub: Store, provided: Path, tmp_path: Path
) -> None:
    environment = in_the_hub(hub, provided.parent)
    environment |= {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    place = f"s3://{BUCKET}/cluster"
    done = labkit("fetch", "--profile", "workbench", place, "--workspace", str(tmp_path / "w"), env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    offline = environment | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    words = ("doctor", "--json", "--profile", "workbench", "--workspace", str(tmp_path / "w"))
    words += ("-p", "model", f"{place}/model", "-p", "data")
    found, lost = (json.loads(labkit(*words, f"{place}/{data}", env=offline).stdout) for data in ("data", "nothing"))
    assert found["model"]["weight_bytes"] > 0
    assert not [lack for lack in found["in_the_way"] if "data" in lack or "model" in lack]
    assert any("can't be read" in lack for lack in lost["in_the_way"])


def test_the_doctor_says_what_a_data_folder_lacks(provided: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gsm8k_test.jsonl").write_text("{}\n")
    found = "\n".join(data_lacks(WORKBENCH, str(tmp_path / "data")))
    assert all(what in found for what in ("calibration rows", "ifeval", "lab 06's texts"))
    assert "gsm8k_test" not in found
    assert "can't be read" in data_lacks(WORKBENCH, str(tmp_path / "none"))[0]


@pytest.mark.parametrize(
    ("profile", "place", "code", "said"),
    [
        ("workbench", "{here}/x", 1, "can't be reached"),
        (TINY.name, "{here}/x", 2, "needs no hub"),
        ("workbench", "hub:a/b", 2, "is one repository"),  # before the model is asked for
    ],
)
def test_what_can_not_be_had_is_an_error(tmp_path: Path, profile: str, place: str, code: int, said: str) -> None:
    lost = clean_environment(HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"))
    words = ("fetch", "--profile", profile, place.format(here=tmp_path), "--workspace", str(tmp_path / "w"))
    done = labkit(*words, env=lost)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "x" / "model").exists()
