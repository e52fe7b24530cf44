"""The surroundings of a quantize: measured, quiet, saved whole, honest about GPTQ, and its memory given back."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.offload import offload_module
from safetensors.torch import load_file, save_file

from labkit import checkpoint
from labkit.behaviour import last_block_logits
from labkit.data import CalibrationSet, calibration_set
from labkit.errors import CheckpointError, UsageError
from labkit.files import MANIFEST, read_manifest, verify_manifest
from labkit.profiles import TINY
from labkit.quantize import Job, quantizing
from tests.models import compress, gptq, make_model, rtn, small_tokenizer

IDS = torch.tensor([list(range(5, 60))])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def rows() -> CalibrationSet:
    return calibration_set(TINY.calibration, small_tokenizer(), rows=16)


def smoothquant_gptq() -> list[Any]:
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    return [SmoothQuantModifier(smoothing_strength=0.8), gptq()]


def run(final: Path, base: Path, recipe: Any, rows: CalibrationSet | None = None, **more: Any) -> tuple[Job, Any]:
    """One quantize; also the logits of the model in memory, which the block's end takes away."""
    with quantizing(final, base, log=final.parent / "quantize.log", **more) as job, torch.no_grad():
        logits = compress(job, recipe, rows)(IDS).logits
    return job, logits


# --- what is saved


@pytest.mark.parametrize(
    ("architecture", "recipe", "scheme"),
    [
        ("llama", lambda: rtn("FP8_DYNAMIC"), "fp8-w8a8-dynamic"),
        ("llama", lambda: rtn("W8A8"), "int8-w8a8"),
        ("llama", smoothquant_gptq, "int8-w8a8"),
        *(
            pytest.param(other, smoothquant_gptq, "int8-w8a8", marks=pytest.mark.long)
            for other in ("qwen3", "granite", "mistral", "gemma")
        ),
    ],
)
def test_the_saved_checkpoint_computes_what_the_model_in_memory_computed(
    rows: CalibrationSet, tmp_path: Path, architecture: Any, recipe: Any, scheme: str
) -> None:
    base = make_model(tmp_path / "base", architecture, tied=architecture == "gemma", shard_size="300KB")
    calibrated = recipe is smoothquant_gptq
    job, logits = run(tmp_path / "out", base, recipe(), rows if calibrated else None)
    found = checkpoint.inspect(job.final, values=True)
    assert [each for each in found.schemes.values() if each != "bf16"] == [scheme] * 14
    assert (found.mismatches, found.not_finite) == ((), ())
    with torch.no_grad():
        assert torch.equal(checkpoint.load(job.final)(IDS).logits, logits)
    assert job.reload_difference() == 0.0
    assert job.fallbacks == ()
    assert len(job.gptq_layers) == (14 if calibrated else 0)


def test_a_checkpoint_that_is_not_what_was_in_memory_differs_on_reload(base: Path, tmp_path: Path) -> None:
    job, _ = run(tmp_path / "out", base, rtn("W8A8"))
    (job.final / MANIFEST).unlink()  # with it the changed file would not be loaded
    stored = load_file(job.final / "model.safetensors")
    for kind, at_least in (("self_attn.q_proj", 0.0), ("mlp.down_proj", 0.001)):
        stored[f"model.layers.1.{kind}.weight_scale"] *= 3
        save_file(stored, job.final / "model.safetensors", metadata={"format": "pt"})
        assert job.reload_difference() > at_least


def test_a_model_that_waits_on_the_cpu_for_another_device_is_looked_at_where_it_lies(base: Path) -> None:
    """The other device is one that can't compute, so that a tensor which is sent there shows."""
    model = checkpoint.load(base)
    before = last_block_logits(model)
    for module in model.modules():
        offload_module(module, "meta", "cpu")
    assert torch.equal(last_block_logits(model), before)
    assert next(model.parameters()).device.type == "meta", "and it waits as before"


def test_the_manifest_says_how_it_was_made_and_the_same_seed_gives_the_same_weights(
    base: Path, rows: CalibrationSet, tmp_path: Path
) -> None:
    sums = set()
    for name in ("a", "b"):
        job, _ = run(tmp_path / name, base, smoothquant_gptq(), rows, base_name="my-model", variant="int8")
        manifest = verify_manifest(job.final)
        sums.add(manifest["files"]["model.safetensors"]["sha256"])
    assert len(sums) == 1
    assert (manifest["base"], manifest["variant"]) == ("my-model", "int8")
    assert manifest["calibration"]["fingerprint"] == rows.fingerprint
    assert manifest["gptq_fallbacks"] == []
    assert manifest["versions"]["llmcompressor"].startswith("0.14")
    for words in ("SmoothQuantModifier", "smoothing_strength: 0.8", "GPTQModifier", "dampening_frac: 0.1"):
        assert words in manifest["recipe"]


def test_a_checkpoint_made_a_shard_at_a_time_holds_the_same_tensors(base: Path, tmp_path: Path) -> None:
    from llmcompressor import model_free_ptq

    whole, _ = run(tmp_path / "whole", base, rtn("FP8_DYNAMIC"))
    shards = make_model(tmp_path / "shards", shard_size="100KB")
    with quantizing(tmp_path / "out", shards, log=tmp_path / "q.log") as job, job.folder("by shards", n=1) as folder:
        before = torch.get_rng_state()
        model_free_ptq(shards, folder, scheme="FP8_DYNAMIC", ignore=["lm_head", "model.embed_tokens"], device="cpu")
        assert torch.equal(torch.get_rng_state(), before), "no layer was filled with random numbers first"
    assert len(list(job.final.glob("*.safetensors"))) > 2
    assert checkpoint.different_tensors(job.final, whole.final) == []
    manifest = verify_manifest(job.final)
    assert (manifest["recipe"], manifest["n"], manifest["base"]) == ("by shards", 1, "shards")
    assert job.wall_seconds > 0


def test_a_folder_that_is_not_what_its_config_says_is_refused_and_the_older_one_stays(
    base: Path, tmp_path: Path
) -> None:
    from llmcompressor import model_free_ptq

    older, _ = run(tmp_path / "out", base, rtn("FP8_DYNAMIC"))
    again = {"final": older.final, "base": base, "log": tmp_path / "q.log"}

    def embeddings_too(folder: Path) -> None:
        model_free_ptq(base, folder, scheme="FP8_DYNAMIC", ignore=["lm_head"], device="cpu")

    def another_config(folder: Path) -> None:
        shutil.copytree(base, folder, dirs_exist_ok=True)
        shutil.copy(older.final / "config.json", folder)

    for write, told in (
        (embeddings_too, r"model\.embed_tokens\.weight: embeddings are quantized"),
        (another_config, "the file holds BF16"),
    ):
        with pytest.raises(CheckpointError, match=told), quantizing(**again) as job, job.folder("by hand") as folder:
            write(folder)
        assert verify_manifest(older.final)["variant"] == "out"
        assert checkpoint.inspect(older.final).mismatches == ()
        assert list(tmp_path.glob(".part*")) == []


def test_a_block_that_saves_nothing_is_an_error(base: Path, tmp_path: Path) -> None:
    nothing_saved = pytest.raises(UsageError, match="nothing was saved")
    with nothing_saved, quantizing(tmp_path / "out", base, log=tmp_path / "q.log") as job:
        job.load()


# --- what GPTQ says


@pytest.mark.parametrize("layers", [1, 2])
def test_a_hessian_that_can_not_be_inverted_is_reported_and_not_called_gptq(
    rows: CalibrationSet, tmp_path: Path, layers: int
) -> None:
    base = make_model(tmp_path / "base", layers=layers)
    job, _ = run(tmp_path / "out", base, gptq(dampening_frac=-2.0), rows)  # a negative diagonal: no Cholesky factor
    assert set(job.fallbacks) == {layer.name for layer in checkpoint.inspect(job.final).layers if layer.weights}
    assert len(job.fallbacks) == 7 * layers, "llm-compressor's warning names only ten"
    assert read_manifest(job.final)["gptq_fallbacks"] == list(job.fallbacks)
    assert f"Hessian inversion failed for {7 * layers}/{7 * layers} modules" in job.log.read_text()
    if layers == 1:
        return
    plain, _ = run(tmp_path / "rtn", base, rtn("W8A8"))
    real, _ = run(tmp_path / "gptq", base, gptq(), rows)
    fallen, rounded, moved = (sum(checkpoint.weight_errors(j.final, base).values()) for j in (job, plain, real))
    assert fallen <= rounded < moved, "what was saved as GPTQ rounds to nearest; GPTQ itself moves weights further"


def test_a_fallback_in_words_that_labkit_does_not_know_is_an_error(tmp_path: Path) -> None:
    job = Job(tmp_path, tmp_path, ("", "", ""), tmp_path, ["Quantizing 2 module(s): ['a.b', 'a.c']", "else"])
    assert (job.gptq_layers, job.fallbacks) == (("a.b", "a.c"), ())
    job._messages.append("Hessian inversion failed somewhere, using RTN")
    with pytest.raises(CheckpointError, match="can't read where"):
        _ = job.fallbacks


# --- what is shown, measured and given back


def test_library_messages_go_to_the_log_and_the_cells_own_output_stays(
    base: Path, rows: CalibrationSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    import llmcompressor  # noqa: F401  # it prints when it is imported

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    console, library = logging.StreamHandler(), logging.getLogger("transformers")
    library.addHandler(console)
    stderr, own = sys.stderr, console.stream
    capsys.readouterr()
    with quantizing(tmp_path / "out", base, log=tmp_path / "logs" / "q.log") as job:
        print("my own words")
        library.error("words of a library")
        compress(job, smoothquant_gptq(), rows)
    captured = capsys.readouterr()
    shown = [line for line in captured.out.replace("\r", "\n").split("\n") if line.strip()]
    assert shown[0] == "my own words"
    assert len(shown) > 1, "one bar is left"
    assert all(line.startswith("Quantizing: ") for line in shown[1:])
    assert shown[-1].startswith("Quantizing: 100%"), "and it is full"
    assert captured.err == ""
    log = job.log.read_text()
    said = ("words of a library", "Compression lifecycle initialized", "Quantizing 1 module(s)", "Calibrating: 100%")
    assert [words for words in said if words not in log] == []
    with pytest.raises(RuntimeError, match="mine"), quantizing(tmp_path / "x", base, log=tmp_path / "x.log"):
        raise RuntimeError("mine")
    assert not (tmp_path / "x").exists()
    library.removeHandler(console)
    assert (sys.stderr, console.stream) == (stderr, own)
    assert list((tmp_path / "cwd").iterdir()) == [], "nothing lands in the working directory"


def test_time_and_memory_are_measured_until_the_save_and_memory_comes_back_although_a_variable_names_the_model(
    tmp_path: Path,
) -> None:
    base = make_model(tmp_path / "base", hidden=1024, layers=8)  # about 120 MB
    weights = checkpoint.inspect(base).total_bytes
    for name in ("warm", "measured"):  # the first quantize also pays for what libraries load once
        with quantizing(tmp_path / name, base, log=tmp_path / "q.log") as job:
            model = compress(job, rtn("FP8_DYNAMIC"))
            at_save = (job.wall_seconds, job.peak_bytes)
            afterwards = torch.ones(100_000_000)  # 400 MB that do not count
            del afterwards
    assert (job.wall_seconds, job.peak_bytes) == at_save
    assert job.wall_seconds > 0
    assert job.peak_bytes - job.before_bytes > 0.5 * weights
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert job.after_bytes - job.before_bytes < 0.3 * weights
