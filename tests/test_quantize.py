"""The surroundings of a quantize: measured, quiet, saved whole, honest about GPTQ, and its memory given back."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.offload import offload_module
from safetensors.torch import load_file, save_file

from labkit import checkpoint
from labkit.calibration import CalibrationSet, calibration_set
from labkit.errors import CheckpointError, UsageError
from labkit.gptqlog import fallbacks_in, gptq_layers_in
from labkit.lastblock import last_block_logits
from labkit.manifest import MANIFEST, read_manifest, verify_manifest
from labkit.profiles import TINY
from labkit.quantize import Job, quantizing

from .models import make_model, small_tokenizer

ROOT = Path(__file__).parents[1]
IDS = torch.tensor([list(range(5, 60))])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def rows() -> CalibrationSet:
    return calibration_set(TINY.calibration, small_tokenizer(), rows=16)


def rtn(scheme: str) -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])


def gptq(**more: Any) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], actorder=None, **more)


def smoothquant_gptq() -> list[Any]:
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    return [SmoothQuantModifier(smoothing_strength=0.8), gptq(dampening_frac=0.1)]


def run(
    final: Path, base: Path, recipe: Any, rows: CalibrationSet | None = None, **more: Any
) -> tuple[Job, torch.Tensor]:
    """One quantize with the real oneshot; also the logits of the model in memory, which the block's end takes away."""
    from llmcompressor import oneshot

    data = {"dataset": rows.dataset(), "max_seq_length": 256, "num_calibration_samples": 16} if rows else {}
    with quantizing(final, base, log=final.parent / "quantize.log", **more) as job:
        model = job.load()
        oneshot(model=model, recipe=recipe, **data)
        job.save(model, rows)
        with torch.no_grad():
            logits = model(IDS).logits
    return job, logits


@pytest.mark.parametrize(
    ("recipe", "needs_rows", "scheme"),
    [
        (lambda: rtn("FP8_DYNAMIC"), False, "fp8-w8a8-dynamic"),
        (lambda: rtn("W8A8"), False, "int8-w8a8"),
        (smoothquant_gptq, True, "int8-w8a8"),
    ],
)
def test_the_saved_checkpoint_computes_what_the_model_in_memory_computed(
    base: Path, rows: CalibrationSet, tmp_path: Path, recipe: Any, needs_rows: bool, scheme: str
) -> None:
    job, logits = run(tmp_path / "out", base, recipe(), rows if needs_rows else None)
    found = checkpoint.inspect(job.final, values=True)
    assert set(found.schemes.values()) == {scheme, "bf16"}
    assert (found.mismatches, found.not_finite) == ((), ())
    with torch.no_grad():
        again = checkpoint.load(job.final)(IDS).logits
    assert torch.equal(again, logits)
    assert job.reload_difference() == 0.0
    assert job.fallbacks == ()
    assert len(job.gptq_layers) == (14 if needs_rows else 0)


@pytest.mark.parametrize("architecture", ["qwen3", "granite", "mistral", "gemma"])
@pytest.mark.long
def test_smoothquant_and_gptq_work_on_other_architectures(
    rows: CalibrationSet, tmp_path: Path, architecture: str
) -> None:
    base = make_model(tmp_path / "base", architecture, tied=architecture == "gemma", shard_size="300KB")
    job, logits = run(tmp_path / "out", base, smoothquant_gptq(), rows)
    assert list(checkpoint.inspect(job.final).schemes.values()).count("int8-w8a8") == 14
    with torch.no_grad():
        assert torch.equal(checkpoint.load(job.final)(IDS).logits, logits)
    assert job.reload_difference() == 0.0


def test_a_checkpoint_that_is_not_what_was_in_memory_differs_on_reload(base: Path, tmp_path: Path) -> None:
    job, _ = run(tmp_path / "out", base, rtn("W8A8"))
    (job.final / MANIFEST).unlink()  # with it the changed file would not be loaded
    stored = load_file(job.final / "model.safetensors")
    for kind, at_least in (("self_attn.q_proj", 0.0), ("mlp.down_proj", 0.001)):
        stored[f"model.layers.1.{kind}.weight_scale"] *= 3
        save_file(stored, job.final / "model.safetensors", metadata={"format": "pt"})
        assert job.reload_difference() > at_least


def test_the_manifest_says_how_it_was_made(base: Path, rows: CalibrationSet, tmp_path: Path) -> None:
    job, _ = run(
        tmp_path / "out", base, smoothquant_gptq(), rows, base_name="my-model", variant="int8-smoothquant-gptq"
    )
    manifest = verify_manifest(job.final)
    assert (manifest["base"], manifest["variant"]) == ("my-model", "int8-smoothquant-gptq")
    assert manifest["calibration"]["fingerprint"] == rows.fingerprint
    assert manifest["gptq_fallbacks"] == []
    assert manifest["versions"]["llmcompressor"].startswith("0.14")
    for words in ("SmoothQuantModifier", "smoothing_strength: 0.8", "GPTQModifier", "dampening_frac: 0.1"):
        assert words in manifest["recipe"]


def test_two_quantizes_with_the_same_seed_write_the_same_weights(
    base: Path, rows: CalibrationSet, tmp_path: Path
) -> None:
    sums = set()
    for name in ("a", "b"):
        job, _ = run(tmp_path / name, base, gptq(dampening_frac=0.1), rows, seed=7)
        sums.add(read_manifest(job.final)["files"]["model.safetensors"]["sha256"])
    assert len(sums) == 1


def test_a_hessian_that_can_not_be_inverted_is_reported_and_not_called_gptq(
    base: Path, rows: CalibrationSet, tmp_path: Path
) -> None:
    job, _ = run(tmp_path / "out", base, gptq(dampening_frac=-2.0), rows)  # a negative diagonal: no Cholesky factor
    assert set(job.fallbacks) == {layer.name for layer in checkpoint.inspect(job.final).layers if layer.weights}
    assert len(job.fallbacks) == 14, "llm-compressor's warning names only ten"
    assert read_manifest(job.final)["gptq_fallbacks"] == list(job.fallbacks)
    assert "Hessian inversion failed for 14/14 modules" in job.log.read_text()
    plain, _ = run(tmp_path / "rtn", base, rtn("W8A8"))
    real, _ = run(tmp_path / "gptq", base, gptq(dampening_frac=0.1), rows)
    fallen, rounded, moved = (sum(checkpoint.weight_errors(j.final, base).values()) for j in (job, plain, real))
    assert fallen <= rounded < moved, "what was saved as GPTQ rounds to nearest; GPTQ itself moves weights further"


def test_a_few_fallbacks_are_named_too(rows: CalibrationSet, tmp_path: Path) -> None:
    job, _ = run(tmp_path / "out", make_model(tmp_path / "b", layers=1), gptq(dampening_frac=-2.0), rows)
    assert len(job.fallbacks) == 7
    assert all(name.startswith("model.layers.0.") for name in job.fallbacks)


def test_a_fallback_in_words_that_labkit_does_not_know_is_an_error() -> None:
    assert fallbacks_in(["Quantizing 1 module(s): ['a.b']"]) == ()
    with pytest.raises(CheckpointError, match="can't read where"):
        fallbacks_in(["Hessian inversion failed somewhere, using RTN"])
    assert gptq_layers_in(["Quantizing 2 module(s): ['a.b', 'a.c']", "else"]) == ("a.b", "a.c")


def test_chatter_goes_to_the_log_and_the_cells_own_output_stays(
    base: Path, rows: CalibrationSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import llmcompressor  # noqa: F401  # it prints when it is imported

    capsys.readouterr()
    from llmcompressor import oneshot

    with quantizing(tmp_path / "out", base, log=tmp_path / "logs" / "q.log") as job:
        print("my own words")
        model = job.load()
        oneshot(
            model=model,
            recipe=smoothquant_gptq(),
            dataset=rows.dataset(),
            max_seq_length=256,
            num_calibration_samples=16,
        )
        job.save(model, rows)
    captured = capsys.readouterr()
    shown = [line for line in captured.out.replace("\r", "\n").split("\n") if line.strip()]
    assert shown[0] == "my own words"
    assert len(shown) > 1, "one bar is left"
    assert all(line.startswith("Quantizing: ") for line in shown[1:])
    assert shown[-1].startswith("Quantizing: 100%"), "and it is full"
    assert captured.err == ""
    log = job.log.read_text()
    for words in ("Compression lifecycle initialized", "Quantizing 1 module(s)", "Calibrating: 100%"):
        assert words in log


def test_loggers_and_stderr_are_as_before_afterwards(base: Path, tmp_path: Path) -> None:
    stderr = sys.stderr
    handlers = {name: list(logging.getLogger(name).handlers) for name in ("", "transformers", "datasets")}
    run(tmp_path / "out", base, rtn("FP8_DYNAMIC"))
    assert sys.stderr is stderr
    assert {name: list(logging.getLogger(name).handlers) for name in handlers} == handlers
    with pytest.raises(RuntimeError, match="mine"), quantizing(tmp_path / "x", base, log=tmp_path / "x.log"):
        raise RuntimeError("mine")
    assert sys.stderr is stderr
    assert not (tmp_path / "x").exists()


def test_nothing_lands_in_the_working_directory(
    base: Path, rows: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    run(tmp_path / "out", base, smoothquant_gptq(), rows)
    assert list((tmp_path / "cwd").iterdir()) == []


def test_time_and_memory_are_measured_until_the_save(tmp_path: Path) -> None:
    from llmcompressor import oneshot

    base = make_model(tmp_path / "base", hidden=1024, layers=4)  # about 60 MB
    weights = checkpoint.inspect(base).total_bytes
    with quantizing(tmp_path / "out", base, log=tmp_path / "q.log") as job:
        model = job.load()
        oneshot(model=model, recipe=rtn("FP8_DYNAMIC"))
        job.save(model)
        measured = (job.wall_seconds, job.peak_bytes)
        afterwards = torch.ones(50_000_000)  # 200 MB that do not count
        del afterwards
    assert (job.wall_seconds, job.peak_bytes) == measured
    assert job.wall_seconds > 0
    assert job.peak_bytes - job.before_bytes > 0.5 * weights


def test_the_models_memory_comes_back_although_a_variable_names_it(tmp_path: Path) -> None:
    from llmcompressor import oneshot

    base = make_model(tmp_path / "base", hidden=1024, layers=8)
    weights = checkpoint.inspect(base).total_bytes
    for name in ("warm", "measured"):  # the first quantize also pays for what libraries load once
        with quantizing(tmp_path / name, base, log=tmp_path / "q.log") as job:
            model = job.load()
            oneshot(model=model, recipe=rtn("FP8_DYNAMIC"))
            job.save(model)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert job.after_bytes - job.before_bytes < 0.3 * weights


def test_a_model_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    from llmcompressor import oneshot

    base = make_model(tmp_path / "base", layers=4)  # more blocks than the reload check looks at
    with quantizing(tmp_path / "out", base, log=tmp_path / "q.log", release=False) as job:
        model = job.load()
        oneshot(model=model, recipe=rtn("FP8_DYNAMIC"))
        job.save(model)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, checkpoint.load(job.final)(IDS).logits)


def test_a_checkpoint_made_a_shard_at_a_time_holds_the_same_tensors(base: Path, tmp_path: Path) -> None:
    from llmcompressor import model_free_ptq

    whole, logits = run(tmp_path / "whole", base, rtn("FP8_DYNAMIC"))
    shards = tmp_path / "shards"
    checkpoint.load(base).save_pretrained(shards, max_shard_size="100KB")
    checkpoint.load_tokenizer(base).save_pretrained(shards)
    with (
        quantizing(tmp_path / "by-shards", shards, log=tmp_path / "q.log") as job,
        job.folder("model_free_ptq, FP8_DYNAMIC", sharded=True) as folder,
    ):
        before = torch.get_rng_state()
        model_free_ptq(shards, folder, scheme="FP8_DYNAMIC", ignore=["lm_head", "model.embed_tokens"], device="cpu")
        assert torch.equal(torch.get_rng_state(), before)  # no layer was filled with random numbers first
    assert len(list(job.final.glob("*.safetensors"))) > 2
    assert checkpoint.different_tensors(job.final, whole.final) == []
    manifest = verify_manifest(job.final)
    assert (manifest["recipe"], manifest["sharded"], manifest["base"]) == (
        "model_free_ptq, FP8_DYNAMIC",
        True,
        "shards",
    )
    assert job.wall_seconds > 0
    with torch.no_grad():
        assert torch.equal(checkpoint.load(job.final)(IDS).logits, logits)


def test_embeddings_that_were_quantized_by_oversight_are_refused(base: Path, tmp_path: Path) -> None:
    from llmcompressor import model_free_ptq

    def without_ignoring_them() -> None:
        with quantizing(tmp_path / "out", base, log=tmp_path / "q.log") as job, job.folder("model_free_ptq") as folder:
            model_free_ptq(base, folder, scheme="FP8_DYNAMIC", ignore=["lm_head"], device="cpu")

    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight: embeddings are quantized"):
        without_ignoring_them()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_what_its_config_says_is_refused_and_the_older_one_stays(
    base: Path, tmp_path: Path
) -> None:
    older, _ = run(tmp_path / "out", base, rtn("FP8_DYNAMIC"))

    def wrong() -> None:
        with (
            quantizing(older.final, base, log=tmp_path / "q.log") as job,
            job.folder("the base model with another scheme's config") as folder,
        ):
            shutil.copytree(base, folder, dirs_exist_ok=True)
            shutil.copy(older.final / "config.json", folder)

    with pytest.raises(CheckpointError, match="the file holds BF16"):
        wrong()
    assert verify_manifest(older.final)["variant"] == "out"
    assert checkpoint.inspect(older.final).mismatches == ()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".part")] == []


def test_a_block_that_saves_nothing_is_an_error(base: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="nothing was saved"),
        quantizing(tmp_path / "out", base, log=tmp_path / "q.log") as job,
    ):
        job.load()


QUANTIZE = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from labkit.quantize import quantizing
import labkit.workspace as workspace
base, final = map(Path, sys.argv[1:])
write = workspace.write_manifest

def die_between(folder, **facts):
    write(folder, **facts)
    os.kill(os.getpid(), signal.SIGKILL)

workspace.write_manifest = die_between
with quantizing(final, base, log=final.parent / "q.log") as job:
    model = job.load()
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]))
    job.save(model)
"""


def test_a_quantize_killed_before_it_publishes_leaves_nothing_that_looks_finished(base: Path, tmp_path: Path) -> None:
    final = tmp_path / "checkpoints" / "fp8-dynamic"
    final.parent.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", QUANTIZE, str(base), str(final)], cwd=ROOT, stdout=subprocess.DEVNULL, timeout=300
    )
    assert ended.returncode == -signal.SIGKILL
    assert not final.exists()
    left = [path for path in final.parent.iterdir() if path.is_dir()]
    assert [path.name.startswith(".part-fp8-dynamic-") for path in left] == [True], "it was killed while saving"
    run(final, base, rtn("FP8_DYNAMIC"))
    assert verify_manifest(final)["variant"] == "fp8-dynamic"
    assert sorted(os.listdir(final.parent)) == ["fp8-dynamic", "q.log", "quantize.log"]


def test_a_model_that_waits_on_the_cpu_for_another_device_is_looked_at_where_it_lies(base: Path) -> None:
    """The other device is one that can't compute, so that a tensor which is sent there shows."""
    model = checkpoint.load(base)
    before = last_block_logits(model)
    for module in model.modules():
        offload_module(module, "meta", "cpu")
    assert next(model.parameters()).device.type == "meta"
    assert torch.equal(last_block_logits(model), before)
    assert next(model.parameters()).device.type == "meta", "and it waits as before"
