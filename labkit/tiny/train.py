"""Trains the embedded model: `python -m labkit.tiny.train [FOLDER]`.

A Llama of 3.5 million parameters learns generated word problems and stories (`corpus.py`). Matrices are updated by
Muon, which takes far fewer steps than AdamW at this size; embeddings, norms and the output head by AdamW. A step shows
one kind of document, so rows are about equally long and little is padded; each document starts its own row, so BOS
stands at position 0 and nowhere else, as it will in service.

Half an hour on two quiet cores. The state is saved as safetensors every `SAVE_EVERY` steps, and a stopped run resumes
where it was: step n always sees the same rows. The outliers are not trained but planted afterwards (`outliers.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from labkit.tiny import corpus
from labkit.tiny.documents import Document, chat, collate
from labkit.tiny.scores import measure
from labkit.tiny.tokenizer import train_tokenizer

SAVE_EVERY = 200
PACKAGED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the weights, written into the manifest."""

    steps: int = 2000
    rows_per_step: int = 128
    stories_share: float = 0.12
    few_shot_share: float = 0.12
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    warmup_steps: int = 50
    decay_share: float = 0.5
    seed: int = 20261121
    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    positions: int = 4096


def build_model(config: TrainingConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model; head size 32, every width a multiple of 128, so that all schemes and kernels accept it."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.hidden_size // config.heads,
            max_position_embeddings=config.positions,
            tie_word_embeddings=False,  # the labs measure what a quantized lm_head costs, so it must be its own tensor
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).float()


def draw_documents(rng: random.Random, config: TrainingConfig) -> list[Document]:
    """The rows of one step: problems, or stories, or (fewer, longer) few-shot prompts in both layouts of lm-eval."""

    def problem() -> corpus.Problem:
        while True:
            row = corpus.draw_problem(rng)
            if corpus.split_of(row.key) == "train":
                return row

    kind = rng.random()
    if kind < config.stories_share:
        found = [corpus.draw_story(rng) for _ in range(config.rows_per_step)]
        return [[("<|bos|>", False), (s.text, True)] for s in found if corpus.split_of(s.key) == "train"]
    if kind < config.stories_share + config.few_shot_share:
        shots = rng.randint(1, 5)
        documents = []
        for _ in range(max(8, config.rows_per_step // (shots + 1))):
            shown = [problem() for _ in range(shots + 1)]
            if rng.random() < 0.5:
                documents.append(chat([(corpus.prompt(p.question), f" {p.answer}") for p in shown]))
            else:
                examples = "".join(f"{corpus.prompt(p.question)} {p.answer}\n\n" for p in shown[:-1])
                documents.append(chat([(examples + corpus.prompt(shown[-1].question), f" {shown[-1].answer}")]))
        return documents
    return [
        chat([(corpus.prompt(p.question), f" {p.answer}")]) for p in (problem() for _ in range(config.rows_per_step))
    ]


def build_optimizers(model: LlamaForCausalLM, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The factor on both rates: warm up, hold, then fall linearly to zero."""
    hold = config.steps * (1 - config.decay_share)
    return min(1.0, (step + 1) / config.warmup_steps, (config.steps - step) / max(1.0, config.steps - hold))


def _save_state(path: Path, step: int, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> None:
    """Weights and optimizer moments as one safetensors file, replaced whole."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                state[f"optimizer.{i}.{index}.{name}"] = torch.as_tensor(value).contiguous()
    part = path.with_suffix(".part")
    save_file(state, part, metadata={"step": str(step)})
    part.replace(path)


def _load_state(path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> int:
    from safetensors import safe_open

    state = load_file(path)
    model.load_state_dict({n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")})
    for i, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        for key, tensor in state.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, index, name = key.split(".", 3)
                whole["state"].setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict(whole)
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def train(work: Path, config: TrainingConfig) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Trains, or goes on training, with its state in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    model = build_model(config, tokenizer)
    optimizers = build_optimizers(model, config)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    state, start = work / "state.safetensors", 0
    if state.exists():
        start = _load_state(state, model, optimizers)
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, unit="step", mininterval=5)
    for step in bar:
        documents = draw_documents(random.Random(f"{config.seed}:step:{step}"), config)
        ids, labels = collate(documents, tokenizer)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * learning_rate(step, config)
            optimizer.step()
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0:
            _save_state(state, step + 1, model, optimizers)
    return model.eval(), tokenizer


def export(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, config: TrainingConfig) -> None:
    """Writes the BF16 checkpoint and its manifest, next to the old one first, then in its place."""
    stage = folder.with_name(folder.name + ".part")
    shutil.rmtree(stage, ignore_errors=True)
    model = model.to(torch.bfloat16)
    model.generation_config.do_sample = False
    model.save_pretrained(stage)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(stage)
    manifest = {
        "files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(stage.iterdir())},
        "training": asdict(config),
        "corpus_fingerprint": corpus.fingerprint(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": measure(model.float(), tokenizer),
        "trained": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    (stage / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    stage.rename(folder)
    print(json.dumps(manifest["scores"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model again (about half an hour on two cores).")
    parser.add_argument(
        "folder", type=Path, nargs="?", default=PACKAGED, help="where the weights go (default: %(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("workspace/tiny-training"), help="where a stopped run resumes"
    )
    parser.add_argument("--steps", type=int, default=TrainingConfig.steps)
    arguments = parser.parse_args()
    config = TrainingConfig(steps=arguments.steps)
    model, tokenizer = train(arguments.work, config)
    export(model, tokenizer, arguments.folder, config)


if __name__ == "__main__":
    main()
