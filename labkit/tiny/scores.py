"""What the embedded model can do, measured with plain transformers for its manifest (the labs use lm-eval on vLLM)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from labkit.tiny import corpus
from labkit.tiny.documents import Document, collate


@torch.no_grad()
def solve(model: Any, tokenizer: PreTrainedTokenizerFast, problems: list[corpus.Problem]) -> list[str]:
    """Greedy answers, in batches, through the chat template."""
    answers = []
    tokenizer.padding_side = "left"
    for start in range(0, len(problems), 100):
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": corpus.prompt(p.question)}], tokenize=False, add_generation_prompt=True
            )
            for p in problems[start : start + 100]
        ]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        out = model.generate(**batch, max_new_tokens=40, do_sample=False)
        answers += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def measure(model: Any, tokenizer: PreTrainedTokenizerFast, rows: int = 500) -> dict[str, Any]:
    """Exact match and story loss on rows that training never saw, with plain transformers (the labs use vLLM)."""
    test = corpus.problems("test", rows)
    right = sum(answer.strip() == p.answer for answer, p in zip(solve(model, tokenizer, test), test, strict=True))
    documents: list[Document] = [[("<|bos|>", False), (s.text, True)] for s in corpus.stories("test", rows)]
    ids, labels = collate(documents, tokenizer)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels).loss.item()
    return {
        "problems": rows,
        "whole_answer_match": right / rows,
        "stories": rows,
        "story_loss_per_token": round(loss, 4),
    }
