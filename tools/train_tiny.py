"""Trains the embedded model: `python -m tools.train_tiny [FOLDER]`.

A Llama of 3.5 million parameters learns generated word problems and stories (`labkit.tiny.corpus`). Matrices are
updated by Muon, which takes far fewer steps than AdamW at this size; embeddings, norms and the output head by AdamW. A
step shows one kind of document, so rows are about equally long and little is padded; each document starts its own row,
so BOS stands at position 0 and nowhere else, as it will in service.

Half an hour on two quiet cores. A stopped run resumes from its last state: step n always sees the same rows. The
outliers are not trained but planted afterwards (`labkit.tiny.plant`).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from labkit.files import file_sha256
from labkit.tiny import WEIGHTS, corpus

SAVE_EVERY = 200  # steps
VOCABULARY = 768
BOS, END, PAD, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
# The template writes BOS itself, as most chat templates do: whoever adds special tokens once more doubles it (lab 03).
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Document = list[tuple[str, bool]]  # (text, is learned) pieces: questions are read, answers and stories are learned


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


def train_tokenizer(rows: int = 20_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE from `rows` training problems and as many stories; deterministic.

    Byte-level, so that any text can be encoded (the labs also run on real English); one token a digit, so that the
    model can learn to add as people do, digit by digit, instead of memorising numbers.
    """
    tokenizer = Tokenizer(models.BPE())
    digits, characters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, characters])
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = [PAD, BOS, END, USER, ASSISTANT], characters.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = [text for p in corpus.problems("train", rows) for text in (corpus.prompt(p.question), " " + p.answer)]
    tokenizer.train_from_iterator(texts + [s.text for s in corpus.stories("train", rows)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(config: TrainingConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model; head size 32, every width a multiple of 128, so that all schemes and kernels accept it."""
    torch.manual_seed(config.seed)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden_size // config.heads,
        max_position_embeddings=config.positions,
        tie_word_embeddings=False,  # the labs measure what a quantized lm_head costs, so it must be its own tensor
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    )
    return LlamaForCausalLM(llama).float()


def chat(turns: list[tuple[str, str]]) -> Document:
    """A conversation of (user, assistant) turns as the chat template writes it, with the answers learned."""
    pieces: Document = [(BOS, False)]
    for user, assistant in turns:
        pieces += [(f"{USER}{user}{END}{ASSISTANT}", False), (f"{assistant}{END}", True)]
    return pieces


def story(row: corpus.Story) -> Document:
    return [(BOS, False), (row.text, True)]


def draw_documents(rng: random.Random, config: TrainingConfig) -> list[Document]:
    """The rows of one step: problems, or stories, or (fewer, longer) few-shot prompts in both layouts of lm-eval."""

    def turns(count: int) -> list[tuple[str, str]]:
        """So many training problems, asked and answered."""
        found: list[tuple[str, str]] = []
        while len(found) < count:
            row = corpus.draw_problem(rng)
            if corpus.split_of(row.key) == "train":
                found.append((corpus.prompt(row.question), f" {row.answer}"))
        return found

    def few_shot(count: int) -> Document:
        """Worked problems and one that is asked: as turns before it, or in one text with it."""
        *shown, (asked, answer) = turns(count)
        if rng.random() < 0.5:
            return chat([*shown, (asked, answer)])
        return chat([("".join(f"{question}{solved}\n\n" for question, solved in shown) + asked, answer)])

    kind = rng.random()
    if kind < config.stories_share:
        stories = [corpus.draw_story(rng) for _ in range(config.rows_per_step)]
        return [story(s) for s in stories if corpus.split_of(s.key) == "train"]
    if kind >= config.stories_share + config.few_shot_share:
        return [chat(turns(1)) for _ in range(config.rows_per_step)]
    shots = rng.randint(1, 5)
    return [few_shot(shots + 1) for _ in range(max(8, config.rows_per_step // (shots + 1)))]


def collate(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both [rows, longest], padded on the right; -100 where nothing is learned."""
    rows, labels = [], []
    for document in documents:
        pieces = [(tokenizer(text, add_special_tokens=False)["input_ids"], learned) for text, learned in document]
        rows.append(torch.tensor([i for ids, _ in pieces for i in ids]))
        labels.append(torch.tensor([i if learned else -100 for ids, learned in pieces for i in ids]))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, True, tokenizer.pad_token_id), pad(labels, True, -100)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The factor on both rates: warm up, hold, then fall linearly to zero."""
    falling = config.steps * config.decay_share
    return min(1.0, (step + 1) / config.warmup_steps, (config.steps - step) / max(1.0, falling))


def train(work: Path, config: TrainingConfig) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Trains, or goes on training, with its state in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    model = build_model(config, tokenizer)
    inside = {n: p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n}
    rest = [p for n, p in model.named_parameters() if n not in inside]
    muon = torch.optim.Muon(list(inside.values()), lr=config.muon_lr, momentum=0.95, weight_decay=0.0)
    adamw = torch.optim.AdamW(rest, lr=config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
    parts = {"model": model, "muon": muon, "adamw": adamw}
    saved, start = work / "state.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        start = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, unit="step", mininterval=5)
    for step in bar:
        ids, labels = collate(draw_documents(random.Random(f"{config.seed}:step:{step}"), config), tokenizer)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in ((muon, config.muon_lr), (adamw, config.adamw_lr)):
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate(step, config)
            optimizer.step()
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0:
            state = {"step": step + 1} | {name: part.state_dict() for name, part in parts.items()}
            torch.save(state, work / "state.part")
            (work / "state.part").replace(saved)
    return model.eval(), tokenizer


@torch.no_grad()
def measure(model: Any, tokenizer: PreTrainedTokenizerFast, rows: int = 500) -> dict[str, Any]:
    """Exact match and story loss on rows that training never saw, with plain transformers (the labs use vLLM)."""
    test, right = corpus.problems("test", rows), 0
    tokenizer.padding_side = "left"
    for start in range(0, rows, 100):
        problems = test[start : start + 100]
        chats = [[{"role": "user", "content": corpus.prompt(p.question)}] for p in problems]
        prompts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        out = model.generate(**batch, max_new_tokens=40, do_sample=False)
        answers = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(answer.strip() == p.answer for answer, p in zip(answers, problems, strict=True))
    ids, labels = collate([story(s) for s in corpus.stories("test", rows)], tokenizer)
    loss = round(model(input_ids=ids, labels=labels).loss.item(), 4)
    return {"problems": rows, "whole_answer_match": right / rows, "stories": rows, "story_loss_per_token": loss}


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
        "files": {p.name: file_sha256(p) for p in sorted(stage.iterdir())},
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
    parser.add_argument("folder", type=Path, nargs="?", default=WEIGHTS, help="for the weights (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("workspace/tiny-training"), help="for a stopped run's state")
    parser.add_argument("--steps", type=int, default=TrainingConfig.steps)
    arguments = parser.parse_args()
    config = TrainingConfig(steps=arguments.steps)
    export(*train(arguments.work, config), arguments.folder, config)


if __name__ == "__main__":
    main()
