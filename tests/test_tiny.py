"""The embedded model: its rows never leak between splits, and planting outliers changes nothing that it computes."""

from __future__ import annotations

import itertools
import json
import random
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
from tools import train_tiny

SPLITS = ("train", "calibration", "test")


def test_no_problem_sum_or_story_of_one_split_stands_in_another() -> None:
    problems = {split: corpus.problems(split, 3000) for split in SPLITS}
    stories = {split: {s.key for s in corpus.stories(split, 3000)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not {p.question for p in problems[one]} & {p.question for p in problems[other]}
        assert not {p.key for p in problems[one]} & {p.key for p in problems[other]}
        assert not stories[one] & stories[other]


def test_training_draws_only_training_rows() -> None:
    tested = {p.question for p in (*corpus.problems("test", 3000), *corpus.problems("calibration", 500))}
    steps = [train_tiny.draw_documents(random.Random(step), train_tiny.TrainingConfig()) for step in range(5)]
    seen = [text for step in steps for document in step for text, _ in document]
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
    assert {tensor.dtype for tensor in load_file(tiny.WEIGHTS / "model.safetensors").values()} == {torch.bfloat16}
    config = json.loads((tiny.WEIGHTS / "config.json").read_text())
    assert config["hidden_size"] % 128 == config["intermediate_size"] % 128 == config["vocab_size"] % 128 == 0
    assert config["head_dim"] % 32 == 0


def test_the_tokenizer_writes_one_token_a_digit_and_the_template_one_bos() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.WEIGHTS)
    assert [tokenizer.decode([i]) for i in tokenizer("1234", add_special_tokens=False)["input_ids"]] == list("1234")
    assert tokenizer.chat_template == train_tiny.CHAT_TEMPLATE
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>x<|end|><|assistant|>"
    strange = "naïve 数字 🙂"
    assert tokenizer.decode(tokenizer(strange, add_special_tokens=False)["input_ids"]) == strange


def test_planting_a_power_of_two_keeps_every_bit_of_the_logits_and_any_other_factor_all_but_noise(
    tmp_path: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.WEIGHTS)
    text = [corpus.prompt(p.question) for p in corpus.problems("test", 8)]
    batch = tokenizer(text, return_tensors="pt", padding=True)
    logits = {}
    for k in (1.0, 300.0, tiny.OUTLIER_FACTOR):
        tiny.materialize(tmp_path, k)
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
            logits[k] = model(**batch).logits.float()
    assert torch.equal(logits[1.0], logits[tiny.OUTLIER_FACTOR])
    assert 0 < (logits[1.0] - logits[300.0]).abs().mean() / logits[1.0].abs().mean() < 0.02


def test_planting_makes_the_two_channels_of_every_norm_larger_by_k() -> None:
    state = load_file(tiny.WEIGHTS / "model.safetensors")
    planted = tiny.plant(state, 64.0)
    norms = [name for name in state if name.endswith("norm.weight")]
    assert len(norms) == 2 * 4 + 1
    for name in norms:
        ratio = planted[name].float() / state[name].float()
        assert ratio[list(tiny.CHANNELS)].tolist() == [64.0, 64.0]
        assert int((ratio != 1).sum()) == 2
    with pytest.raises(UsageError, match="outlier factor is 0"):
        tiny.plant(state, 0)


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    weights = shutil.copytree(tiny.WEIGHTS, tmp_path / "weights")
    data = bytearray((weights / "model.safetensors").read_bytes())
    data[-1000] ^= 1
    (weights / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        tiny.materialize(tmp_path, weights=weights)


TRAINING = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tools import train_tiny
torch.set_num_threads(1)
train_tiny.SAVE_EVERY = 4
work, stop = Path(sys.argv[1]), int(sys.argv[2])
small = dict(hidden_size=128, intermediate_size=128, layers=1, heads=4, kv_heads=2)
real = train_tiny.collate
steps = []
def collate_until_stopped(*args):
    if len(steps) == stop:
        raise SystemExit(9)
    steps.append(1)
    return real(*args)
train_tiny.collate = collate_until_stopped
model, _ = train_tiny.train(work, train_tiny.TrainingConfig(steps=8, rows_per_step=4, **small))
save_file(model.state_dict(), work / "model.safetensors")
"""


@pytest.mark.long
def test_training_resumes_where_it_was_and_ends_at_the_same_weights(tmp_path: Path) -> None:
    """Eight small steps in one go, and four plus four by another process, give equal weights."""

    def run(work: str, stop: int) -> int:
        command = [sys.executable, "-c", TRAINING, str(tmp_path / work), str(stop)]
        return subprocess.run(command, check=False).returncode

    assert [run("whole", 9), run("cut", 4), run("cut", 9)] == [0, 9, 0]
    whole, cut = (load_file(tmp_path / work / "model.safetensors") for work in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
