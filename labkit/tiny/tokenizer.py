"""The embedded model's tokenizer: byte-level BPE, one token a digit, and a chat template.

Byte-level, so that any text can be encoded (the labs also run on real English); single digits, so that the model can
learn to add as people do, digit by digit, instead of memorising numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.tiny import corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, END, PAD, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
VOCABULARY = 768

# The template writes BOS itself, as most chat templates do: whoever adds special tokens once more doubles it (lab 03).
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(rows: int = 20_000) -> PreTrainedTokenizerFast:
    """Learns the merges from `rows` training problems and as many stories; deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for p in corpus.problems("train", rows) for text in (corpus.prompt(p.question), " " + p.answer)]
    tokenizer.train_from_iterator(texts + [s.text for s in corpus.stories("train", rows)], trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
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
