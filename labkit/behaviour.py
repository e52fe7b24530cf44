"""What a model in memory computes: losses on held-out text, next-token distributions, and what its layers are given.

    perplexity = exp( - Σ log p(token | the tokens before it) / number of tokens )

A perplexity depends on the tokenizer, the length of the rows and what stands at their beginning, so it compares models
on one set of rows, never across sets. The divergence of next-token distributions is a sharper instrument than accuracy:
every token counts, and it moves long before an answer flips. It says that something changed, not that it got worse.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit import checkpoint
from labkit.data import find_data_file, hub_rows, read_rows, tokens_of, turns
from labkit.errors import DataError, UsageError
from labkit.memory import release
from labkit.profiles import HeldOut
from labkit.tiny import corpus

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 4096
SAMPLE_TOKENS = 256  # of what a layer was given
Z_95 = 1.96  # standard errors to each side of a 95% interval


# --- held-out text ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Token ids of held-out text. given: how many at the beginning are not predicted, at least the first."""

    ids: tuple[int, ...]
    given: int = 1

    @property
    def predicted(self) -> int:
        return len(self.ids) - self.given


def held_out_rows(text: HeldOut, tokenizer: Any, *, data: str = "", seed: int = 0) -> list[Row]:
    """The first `text.rows` rows of at most `text.length` tokens, fewer if there is less text.

    Running text (WikiText-2, C4, PTB) is joined, tokenized once and cut into windows of equal length, as papers do it.
    Of the embedded corpus' stories all is predicted, of its problems the worked answer: nothing in a question says
    which names and numbers come next. data: a local folder in place of the hub. Raises DataError if the text is not
    there, has no such column, or does not fill one window.
    """
    if text.source == "tiny":
        return [Row(tuple(ids[: text.length]), given) for ids, given in _generated(text, tokenizer, seed)]
    if data:
        path = find_data_file(data, text.data_files, f"text {text.name}")
        name, found = str(path), read_rows(path)
    elif text.source:
        name = text.source
        found = hub_rows(text.source, text.split, text.data_files[0], config=text.config, file=text.file)
    else:
        fix = f"give a local folder: data = FOLDER with {text.data_files[0]}.jsonl, .parquet or .txt in it"
        raise DataError(f"the text {text.name} comes from no hub", "the profile names no place for it", fix)
    count = min(text.documents or len(found), len(found))
    documents: list[Any] = [found[index].get(text.column) for index in range(count)]
    if missing := [number for number, each in enumerate(documents, 1) if not isinstance(each, str)]:
        what = f"{name}, row {missing[0]} has no text in the column {text.column!r}"
        raise DataError(what, fix=f"give running text as .txt, or rows with a column {text.column!r}")
    ids = tokens_of("\n\n".join(documents), tokenizer, name)
    if len(ids) < text.length:
        raise DataError(f"{name} has {len(ids)} tokens, and one window takes {text.length}", fix="give a longer text")
    starts = range(0, len(ids) - text.length + 1, text.length)
    return [Row(tuple(ids[start : start + text.length])) for start in itertools.islice(starts, text.rows)]


def _generated(text: HeldOut, tokenizer: Any, seed: int) -> Iterator[tuple[list[int], int]]:
    """Token ids of the embedded corpus' test rows, and how many of them are given."""
    if text.name == "stories":
        for story in corpus.stories("test", text.rows, seed):
            yield tokens_of(story.text, tokenizer, "a story"), 1
        return
    for problem in corpus.problems("test", text.rows, seed):
        chat = turns(corpus.prompt(problem.question), f" {problem.answer}")
        asked = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
        given = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        yield tokens_of(chat, tokenizer, "a problem"), given


# --- losses -----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """ids: [rows, tokens], int64. real: [rows, tokens], False on padding."""

    ids: torch.Tensor
    real: torch.Tensor


def batches(rows: Sequence[Sequence[int]], device: Any) -> Iterator[Batch]:
    """The rows in their order, as many at a time as BATCH_TOKENS with their padding allow, at least one.

    Rows are padded on the right. Under causal attention no token sees what comes after it, so padding changes no real
    token and needs no mask; whoever reads a result leaves the padded places out. Raises DataError if a row is empty.
    """
    import torch

    if not all(rows):
        raise DataError("a row has no tokens", why="there is nothing to compute", fix="drop empty rows")
    lengths = [len(row) for row in rows]
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and max(lengths[start : stop + 1]) * (stop + 1 - start) <= BATCH_TOKENS:
            stop += 1
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(row)) for row in rows[start:stop]], batch_first=True)
        real = torch.arange(ids.shape[1]) < torch.tensor(lengths[start:stop])[:, None]
        yield Batch(ids.to(device), real.to(device))
        start = stop


@dataclass(frozen=True)
class Losses:
    """Of some rows. scores: each one's log-likelihood per predicted token in nats; tokens: how many each predicts."""

    scores: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """Over all predicted tokens of all rows."""
        return math.exp(-np.average(self.scores, weights=self.tokens))

    @property
    def stderr(self) -> float:
        """The perplexity's standard error, from how rows differ."""
        return self.perplexity * ratio_stderr(self.scores, self.tokens)


def losses(model: Any, rows: Sequence[Row]) -> Losses:
    """Of a causal language model. Raises DataError for rows that predict nothing, and if the model answers NaN."""
    import torch

    if not rows or any(not 1 <= row.given < len(row.ids) for row in rows):
        what = f"there are {len(rows)} rows, and each must predict at least one token after the first"
        raise DataError(what, "a perplexity is a mean over predicted tokens", "use longer text")
    scores: list[float] = []
    given = iter(row.given for row in rows)
    with torch.no_grad():
        for batch in batches([row.ids for row in rows], model.device):
            logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]  # [rows, tokens - 1, vocabulary]
            classes = logits.float().transpose(1, 2)  # [rows, vocabulary, tokens - 1]
            nats = torch.nn.functional.cross_entropy(classes, batch.ids[:, 1:], reduction="none")  # of token t + 1 at t
            first = torch.tensor([[next(given)] for _ in batch.ids], device=nats.device)  # [rows, 1]
            counts = batch.real[:, 1:] & (torch.arange(1, nats.shape[1] + 1, device=nats.device) >= first)
            scores += (-(nats * counts).sum(1) / counts.sum(1)).tolist()
    if bad := sum(not math.isfinite(score) for score in scores):
        what = f"the model gave NaN or infinity on {bad} of {len(rows)} rows"
        raise DataError(what, fix="look for an overflow: load the model in bfloat16, and look at its weights")
    return Losses(tuple(scores), tuple(row.predicted for row in rows))


def ratio_stderr(scores: Sequence[float], weights: Sequence[float]) -> float:
    """The standard error of Σ s·w / Σ w over rows (Cochran, Sampling Techniques, 6.3); of a mean if weights are equal.

    scores, weights: [n]. 0 for fewer than two rows.
    """
    s, w = np.asarray(scores, dtype=float), np.asarray(weights, dtype=float)
    if len(s) < 2 or not w.sum():
        return 0.0
    spread = ((w * (s - np.average(s, weights=w))) ** 2).sum()
    return math.sqrt(spread * len(s) / (len(s) - 1)) / float(w.sum())


# --- next-token distributions -----------------------------------------------------------------------------------------


def divergences_by_row(
    baseline: Path, candidates: Sequence[Path], rows: Sequence[Sequence[int]], device: str = "cpu"
) -> list[list[float]]:
    """For each candidate checkpoint the mean KL(baseline ‖ candidate) over the tokens of each row, in nats.

    One model is in memory at a time, and of the baseline its log-probabilities: 4 bytes for each of a row's tokens and
    each entry of the vocabulary.
    """
    import torch

    def log_probabilities(folder: Path) -> Iterator[torch.Tensor]:
        """Of every next token, [tokens, vocabulary] for each row, float32, on the CPU."""
        model = checkpoint.load(folder).to(device)
        try:
            for row in rows:
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([list(row)], device=model.device)).logits[0]
                yield logits.float().log_softmax(-1).cpu()
        finally:
            release(model)

    kl = partial(torch.nn.functional.kl_div, log_target=True, reduction="batchmean")
    reference = list(log_probabilities(baseline))
    return [[float(kl(q, p)) for p, q in zip(reference, log_probabilities(each), strict=True)] for each in candidates]


def divergences(
    baseline: Path, candidates: Sequence[Path], rows: Sequence[Sequence[int]], device: str = "cpu"
) -> list[float]:
    """Mean KL of each candidate checkpoint from the baseline over all tokens of the rows; see `divergences_by_row`."""
    by_row = divergences_by_row(baseline, candidates, rows, device)
    return [float(np.average(each, weights=[len(row) for row in rows])) for each in by_row]


def last_block_logits(model: Any) -> torch.Tensor:
    """Logits of sixteen fixed tokens through the last block alone: [16, vocabulary], float32, on the CPU.

    At next to no cost this shows whether a saved checkpoint is what was in memory. A forward decompresses what it
    meets, for good: all blocks would cost a second model, and one block of the model itself would leave a model that
    can't run. So it is a copy's, which shares the model's tensors: decompressing replaces tensors, and writes into
    none.
    """
    import torch
    from compressed_tensors.offload import disable_onloading

    decoder = model.get_decoder()
    blocks = getattr(decoder, "layers", None)
    with ExitStack() as stack:
        # Where all tensors wait on the CPU for their turn on a GPU, the block is computed on the CPU: each look at a
        # waiting tensor would send it, 6 s on an H100 for a 7B model's embeddings and output layer.
        stack.enter_context(disable_onloading())
        if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
            stack.close()  # they wait on disk, or need not wait
        try:
            if blocks is not None:
                decoder.layers = torch.nn.ModuleList(list(blocks)[-1:])
            shallow = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
        finally:
            if blocks is not None:
                decoder.layers = blocks
        ids = torch.arange(16).remainder(model.config.get_text_config().vocab_size)[None]  # [1, 16]
        with torch.no_grad():
            return shallow(input_ids=ids.to(model.device), use_cache=False).logits[0].float().cpu()


# --- what flows into linear layers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Captured:
    """The inputs X of one linear layer, in float32 on the CPU.

    absmax: [channels], the largest |X| over all tokens. sample: [tokens, channels], the first tokens seen.
    tokens: how many tokens `absmax` covers.
    """

    layer: str
    absmax: torch.Tensor
    sample: torch.Tensor
    tokens: int

    @property
    def outliers(self) -> list[int]:
        """Channels whose largest magnitude is 20 times the median channel's or more, largest first.

        The criterion is ours, for a picture; LLM.int8() (arXiv 2208.07339) calls a magnitude of 6 and more an outlier.
        """
        ratio = self.absmax / self.absmax.median().clamp(min=1e-12)
        return [channel for channel in ratio.argsort(descending=True).tolist() if ratio[channel] >= 20]


def linear_layers(model: Any, containing: str = "") -> dict[str, Any]:
    """The model's linear layers by name, without the output head; `containing` keeps those whose name has that text."""
    import torch

    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and containing in name and not name.endswith("lm_head")
    }
    if not found:
        raise UsageError(f"no linear layer has {containing!r} in its name", fix="print(model) shows the names")
    return found


def capture(model: Any, rows: Sequence[Sequence[int]]) -> dict[str, Captured]:
    """Runs token rows (lists of ids) through `model` and returns what each linear layer was given.

    Outliers live in channels, not in tokens: the same few channels are large for every token. The model is used where
    it is (CPU or GPU) and left as it was. Memory: one [channels] vector and one [SAMPLE_TOKENS, channels] sample a
    layer.
    """
    import torch

    layers, tokens = linear_layers(model), sum(map(len, rows))
    absmax: dict[str, torch.Tensor] = {}
    samples: dict[str, torch.Tensor] = {}

    def collect(name: str, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float().cpu()  # [tokens, channels]
        largest, seen = x.abs().amax(dim=0), samples.get(name, x[:0])  # [channels], [tokens, channels]
        absmax[name] = torch.maximum(absmax.get(name, largest), largest)
        if len(seen) < SAMPLE_TOKENS:
            samples[name] = torch.cat([seen, x[: SAMPLE_TOKENS - len(seen)]])

    with ExitStack() as hooks, torch.no_grad():
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(collect, name)))
        for row in rows:
            model(input_ids=torch.tensor([list(row)], device=model.device))
    return {name: Captured(name, absmax[name], samples[name], tokens) for name in layers}
