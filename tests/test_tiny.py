"""The embedded model: its rows never leak between splits, and planting outliers changes nothing that it computes."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from labkit import tiny
from labkit.errors import CheckpointError, UsageError
from labkit.tiny import corpus
from labkit.tiny.tokenizer import CHAT_TEMPLATE


def test_no_problem_or_sum_of_one_split_stands_in_another() -> None:
    rows = {split: corpus.problems(split, 3000) for split in ("train", "calibration", "test")}
    for one, other in itertools.combinations(rows, 2):
        assert not {p.question for p in rows[one]} & {p.question for p in rows[other]}
        assert not {p.key for p in rows[one]} & {p.key for p in rows[other]}


def test_no_story_of_one_split_stands_in_another() -> None:
    rows = {split: {s.key for s in corpus.stories(split, 3000)} for split in ("train", "calibration", "test")}
    for one, other in itertools.combinations(rows, 2):
        assert not rows[one] & rows[other]


def test_training_draws_only_training_rows() -> None:
    import random

    from labkit.tiny.train import TrainingConfig, draw_documents

    tested = {p.question for p in corpus.problems("test", 3000)} | {
        p.question for p in corpus.problems("calibration", 500)
    }
    seen = [text for step in range(5) for d in draw_documents(random.Random(step), TrainingConfig()) for text, _ in d]
    assert not [question for question in tested if any(question in text for text in seen)]


def test_every_worked_answer_is_right_line_by_line() -> None:
    for problem in corpus.problems("test", 500):
        *lines, last = problem.answer.splitlines()
        for line in lines:
            sum_, result = line.split(" = ")
            assert eval(sum_.replace("/", "//"), {}) == int(result)  # our own text: digits and signs only
        assert last == f"#### {lines[-1].split(' = ')[1]}"
        assert problem.result >= 1


def test_the_corpus_still_is_the_one_that_the_weights_learned() -> None:
    assert corpus.fingerprint() == tiny.embedded_manifest()["corpus_fingerprint"]


def test_the_weights_are_small_bf16_and_of_kernel_friendly_widths() -> None:
    assert (tiny.WEIGHTS / "model.safetensors").stat().st_size <= 12_000_000
    state = load_file(tiny.WEIGHTS / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    config = json.loads((tiny.WEIGHTS / "config.json").read_text())
    assert config["hidden_size"] % 128 == config["intermediate_size"] % 128 == config["vocab_size"] % 128 == 0
    assert config["head_dim"] % 32 == 0


def test_the_tokenizer_writes_one_token_a_digit_and_the_template_one_bos() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.WEIGHTS)
    assert [tokenizer.decode([i]) for i in tokenizer("1234", add_special_tokens=False)["input_ids"]] == list("1234")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>x<|end|><|assistant|>"
    strange = "naïve 数字 🙂"
    assert tokenizer.decode(tokenizer(strange, add_special_tokens=False)["input_ids"]) == strange


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> dict[float, torch.Tensor]:
    """Logits of the same rows at three outlier factors."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.WEIGHTS)
    text = [corpus.prompt(p.question) for p in corpus.problems("test", 8)]
    batch = tokenizer(text, return_tensors="pt", padding=True)
    found = {}
    for k in (1.0, 300.0, tiny.OUTLIER_FACTOR):
        folder = tmp_path_factory.mktemp("planted")
        tiny.materialize(folder, k)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        with torch.no_grad():
            found[k] = model(**batch).logits.float()
    return found


def test_planting_a_power_of_two_keeps_every_bit_of_the_logits(logits: dict[float, torch.Tensor]) -> None:
    assert torch.equal(logits[1.0], logits[tiny.OUTLIER_FACTOR])


def test_planting_any_other_factor_keeps_the_logits_within_bf16_noise(logits: dict[float, torch.Tensor]) -> None:
    difference = (logits[1.0] - logits[300.0]).abs().mean() / logits[1.0].abs().mean()
    assert 0 < difference < 0.02


def test_planting_makes_the_two_channels_of_every_norm_larger_by_k() -> None:
    state = load_file(tiny.WEIGHTS / "model.safetensors")
    planted = tiny.plant(state, 64.0)
    norms = [name for name in state if name.endswith("norm.weight")]
    assert len(norms) == 2 * 4 + 1
    for name in norms:
        ratio = planted[name].float() / state[name].float()
        assert ratio[list(tiny.CHANNELS)].tolist() == [64.0, 64.0]
        assert int((ratio != 1).sum()) == 2


def test_a_factor_that_is_not_positive_is_refused() -> None:
    with pytest.raises(UsageError, match="outlier factor is 0"):
        tiny.plant({}, 0)


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    weights = shutil.copytree(tiny.WEIGHTS, tmp_path / "weights")
    data = bytearray((weights / "model.safetensors").read_bytes())
    data[-1000] ^= 1
    (weights / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        tiny.materialize(tmp_path, weights=weights)


@pytest.mark.long
def test_training_resumes_where_it_was_and_ends_at_the_same_weights(tmp_path: Path) -> None:
    """Eight small steps in one go, and four plus four by another process, give equal weights."""
    script = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from labkit.tiny import train
torch.set_num_threads(1)
train.SAVE_EVERY = 4
work, stop, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
small = dict(hidden_size=128, intermediate_size=128, layers=1, heads=4, kv_heads=2)
config = train.TrainingConfig(steps=8, rows_per_step=4, **small)
if stop < 8:
    real = train._save_state
    def save_then_die(path, step, *rest):
        real(path, step, *rest)
        raise SystemExit(9)
    train._save_state = save_then_die
model, _ = train.train(work, config)
save_file(model.state_dict(), out)
"""

    def run(work: str, stop: int) -> subprocess.CompletedProcess[bytes]:
        arguments = [
            sys.executable,
            "-c",
            script,
            str(tmp_path / work),
            str(stop),
            str(tmp_path / f"{work}.safetensors"),
        ]
        return subprocess.run(arguments, capture_output=True, check=False)

    assert run("whole", 8).returncode == 0
    assert run("cut", 4).returncode == 9
    resumed = run("cut", 8)
    assert resumed.returncode == 0, resumed.stderr.decode()
    whole, cut = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "cut.safetensors")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
