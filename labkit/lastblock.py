"""What a model computes, at next to no cost: whether a saved checkpoint is what was in memory shows in one block."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def last_block_logits(model: Any) -> torch.Tensor:
    """Logits of sixteen fixed tokens through the last block alone: [16, vocabulary], float32, on the CPU.

    A forward decompresses all that it meets, keeps it so, and takes with it the hook that does so: all blocks would
    cost a second model, and one block of the model itself would leave a model that can't run. So it is a copy's, which
    shares the model's tensors: decompressing replaces tensors, and writes into none.
    """
    import torch

    decoder = model.get_decoder()
    blocks = getattr(decoder, "layers", None)
    with _where_it_lies(model):
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


@contextmanager
def _where_it_lies(model: Any) -> Iterator[None]:
    """In the block a model whose tensors wait on the CPU for their turn on a GPU is one of the CPU.

    Sixteen tokens are little work, and each look at a waiting tensor sends it: 6 s on an H100 for a 7B model's
    embeddings and output layer.
    """
    from compressed_tensors.offload import disable_onloading

    with ExitStack() as stack:
        stack.enter_context(disable_onloading())
        if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
            stack.close()  # they wait on disk, or need not wait
        yield
