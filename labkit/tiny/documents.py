"""What one training row is: pieces of text that are read or learned, and their token ids and labels."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

# A document is a list of (text, is learned) pieces: questions are read, answers and stories are learned.
Document = list[tuple[str, bool]]


def chat(turns: list[tuple[str, str]]) -> Document:
    """A conversation of (user, assistant) turns as the chat template writes it, with the answers learned."""
    pieces: Document = [("<|bos|>", False)]
    for user, assistant in turns:
        pieces += [(f"<|user|>{user}<|end|><|assistant|>", False), (f"{assistant}<|end|>", True)]
    return pieces


def collate(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both [rows, longest], padded on the right; -100 where nothing is learned."""
    rows = []
    for document in documents:
        ids: list[int] = []
        labels: list[int] = []
        for text, learned in document:
            piece = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += piece
            labels += piece if learned else [-100] * len(piece)
        rows.append((ids, labels))
    longest = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    return (
        torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),
        torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows]),
    )
