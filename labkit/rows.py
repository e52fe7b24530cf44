"""From a row of a data set to token ids, as a model expects them.

The columns of a data set decide how a row becomes text, in this order:

    messages                                          the model's chat template
    prompt + completion, question + answer,
    instruction (+ input) + output                    one user and one assistant turn through the chat template
    text                                              as it is, with the special tokens that the tokenizer adds

A chat template writes its own BOS, so templated text is tokenized with `add_special_tokens=False`: a doubled BOS moves
activations more than quantization does (lab 03).
"""

from __future__ import annotations

from typing import Any

from labkit.errors import DataError, first_line

Text = str | list[dict[str, Any]]  # plain text, or the messages of a chat
PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))


def columns_of(names: list[str], source: str) -> tuple[str, ...]:
    """The columns that a row's text is made of."""
    choices: list[tuple[str, ...]] = [("messages",), *PAIRS, ("text",)]
    for columns in choices:
        if set(columns) <= set(names):
            return ("instruction", "output", "input") if "instruction" in columns and "input" in names else columns
    raise DataError(
        f"{source} has the columns {', '.join(sorted(names)) or '(none)'}, and none of them is text that labkit knows",
        why="nothing says what the model would read",
        fix=f"rename columns to one of: {'; '.join(' + '.join(columns) for columns in choices)}",
    )


def turns(user: str, assistant: str) -> list[dict[str, Any]]:
    """One question and its answer as messages."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def text_of(row: dict[str, Any], columns: tuple[str, ...], where: str) -> Text:
    """A row's text or messages; "" if it has no text at all."""
    if missing := [column for column in columns if column not in row and column != "input"]:
        raise DataError(f"{where} has no column {missing[0]!r}", why="other rows have it", fix="mend or remove the row")
    if columns == ("messages",):
        return _messages(row["messages"], where)
    texts = [_string(row.get(column), column, where) for column in columns]
    if columns == ("text",) or not any(text.strip() for text in texts):
        return texts[0] if texts[0].strip() else ""
    user, assistant, *more = texts
    return turns("\n\n".join([user, *filter(str.strip, more)]), assistant)


def _string(value: Any, column: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds a {type(value).__name__}, not text", fix="mend the row")
    return value


def _messages(value: Any, where: str) -> Text:
    messages = [] if value is None else value
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages
    ):
        raise DataError(
            f"{where}: column 'messages' is not a list of objects with role and content",
            why="the chat template reads those",
            fix='write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    return messages if any(str(message["content"] or "").strip() for message in messages) else ""


def levelled(text: Text) -> str:
    """All words of a row with case and spaces levelled, so that the same sentence is found again elsewhere."""
    said = text if isinstance(text, str) else " ".join(str(message["content"] or "") for message in text)
    return " ".join(said.casefold().split())


def tokens_of(text: Text, tokenizer: Any, where: str) -> list[int]:
    """Token ids of plain text, with special tokens, or of a chat, whose template writes its own."""
    if isinstance(text, str):
        return list(tokenizer(text, verbose=False)["input_ids"]) if text else []
    if not tokenizer.chat_template:
        raise DataError(
            f"{where} is a chat, and this model's tokenizer has no chat template",
            why="nothing says how the turns are written for this model",
            fix="use the instruct version of the model, or data with a plain `text` column",
        )
    try:
        chat = tokenizer.apply_chat_template(text, tokenize=False)
    except Exception as error:  # a template is a program of the model's author; it raises what it likes
        raise DataError(
            f"the chat template failed on {where}: {type(error).__name__}: {first_line(error)}",
            why="the template accepts only some sequences of roles",
            fix="mend or remove the row",
        ) from error
    return list(tokenizer(chat, add_special_tokens=False, verbose=False)["input_ids"])
