"""Calibration rows: chosen by seed, tokenized as the model expects, fingerprinted, and wrong data is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labkit.calibration import CalibrationSet, calibration_set, random_text_set
from labkit.errors import DataError, UsageError
from labkit.profiles import TINY, WORKBENCH
from labkit.tiny import corpus
from labkit.tiny.tokenizer import BOS

from .models import small_tokenizer

REAL = Path(__file__).parents[2] / "shared" / "data"
TOKENIZER = small_tokenizer()
SPEC = replace(WORKBENCH.calibration, rows=3, max_length=64)


@pytest.fixture
def table(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    def write(rows: list[dict[str, Any]]) -> str:
        (tmp_path / "calibration.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return str(tmp_path)

    return write


def texts(chosen: CalibrationSet) -> list[str]:
    return [TOKENIZER.decode(ids) for ids in chosen.input_ids]


def test_the_embedded_corpus_gives_chats_and_some_stories_of_its_calibration_split() -> None:
    chosen = calibration_set(TINY.calibration, TOKENIZER, rows=32)
    chats = [text for text in texts(chosen) if "<|user|>" in text]
    assert len(chosen.input_ids) == 32
    assert len(chats) == 28
    allowed = {corpus.prompt(p.question) for p in corpus.problems("calibration", 28)}
    assert {text.split("<|user|>")[1].split("<|end|>")[0] for text in chats} == allowed


def test_no_row_has_bos_twice_or_not_at_all(table: Callable[..., str]) -> None:
    rows = [{"messages": [{"role": "user", "content": f"hi {i}"}]} for i in range(3)]
    for chosen in (
        calibration_set(TINY.calibration, TOKENIZER, rows=16),
        calibration_set(SPEC, TOKENIZER, data=table(rows)),
        calibration_set(SPEC, TOKENIZER, data=table([{"text": f"plain {i}"} for i in range(3)])),
    ):
        assert [text.count(BOS) for text in texts(chosen)] == [1] * len(chosen.input_ids)


def test_each_layout_of_columns_becomes_the_text_that_the_model_was_taught(table: Callable[..., str]) -> None:
    one = replace(SPEC, rows=1, max_length=1000)
    for row, expected in (
        ({"prompt": "a", "completion": "b"}, f"{BOS}<|user|>a<|end|><|assistant|>b<|end|>"),
        ({"question": "a", "answer": "b", "id": 7}, f"{BOS}<|user|>a<|end|><|assistant|>b<|end|>"),
        ({"instruction": "a", "input": "c", "output": "b"}, f"{BOS}<|user|>a\n\nc<|end|><|assistant|>b<|end|>"),
        ({"instruction": "a", "input": "", "output": "b"}, f"{BOS}<|user|>a<|end|><|assistant|>b<|end|>"),
        ({"messages": [{"role": "user", "content": "m"}], "text": "t"}, f"{BOS}<|user|>m<|end|>"),
        ({"text": "t", "label": 1}, f"{BOS}t"),
    ):
        assert texts(calibration_set(one, TOKENIZER, data=table([row]))) == [expected]


def test_the_same_seed_chooses_the_same_rows_and_another_seed_others(table: Callable[..., str]) -> None:
    data = table([{"text": f"row number {i}"} for i in range(100)])
    first, again = (calibration_set(SPEC, TOKENIZER, data=data, rows=20) for _ in range(2))
    other = calibration_set(SPEC, TOKENIZER, data=data, rows=20, seed=1)
    assert first == again
    assert texts(first) != texts(other)
    assert first.fingerprint != other.fingerprint
    assert len(set(texts(first))) == 20, "rows are drawn without replacement"


def test_fewer_rows_are_the_beginning_of_more(table: Callable[..., str]) -> None:
    data = table([{"text": f"row number {i}"} for i in range(50)])
    for few, many in (
        (calibration_set(SPEC, TOKENIZER, data=data, rows=n) for n in (7, 40)),
        (calibration_set(TINY.calibration, TOKENIZER, rows=n) for n in (17, 64)),
    ):
        assert many.input_ids[: len(few.input_ids)] == few.input_ids
        assert len({tuple(ids) for ids in many.input_ids}) == len(many.input_ids)


def test_the_fingerprint_changes_with_rows_length_and_tokens(table: Callable[..., str]) -> None:
    data = table([{"text": f"row number {i}"} for i in range(5)])
    base = calibration_set(SPEC, TOKENIZER, data=data)
    prints = {
        base.fingerprint,
        calibration_set(SPEC, TOKENIZER, data=data, rows=2).fingerprint,
        calibration_set(replace(SPEC, max_length=63), TOKENIZER, data=data).fingerprint,
        calibration_set(SPEC, TOKENIZER, data=table([{"text": f"row {i}"} for i in range(5)])).fingerprint,
    }
    assert len(prints) == 4
    assert base.facts()["fingerprint"] == base.fingerprint
    assert base.facts()["tokens"] == sum(len(ids) for ids in base.input_ids)


def test_long_rows_are_truncated_to_the_stated_length(table: Callable[..., str]) -> None:
    data = table([{"text": "word " * 500}, {"text": "short"}])
    chosen = calibration_set(SPEC, TOKENIZER, data=data, rows=2)
    assert sorted(len(ids) for ids in chosen.input_ids)[1] == 64
    assert min(len(ids) for ids in chosen.input_ids) < 10


def test_empty_rows_are_dropped_and_counted(table: Callable[..., str]) -> None:
    data = table([{"text": "a"}, {"text": "  "}, {"text": None}, {"text": "b"}, {"text": ""}])
    chosen = calibration_set(replace(SPEC, rows=2), TOKENIZER, data=data)
    assert sorted(texts(chosen)) == [f"{BOS}a", f"{BOS}b"]
    assert chosen.dropped_empty <= 3
    with pytest.raises(DataError, match=r"has 2 rows with text, and 3 were asked for \(3 were empty\)"):
        calibration_set(SPEC, TOKENIZER, data=data)


def test_unknown_columns_are_named(table: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="has the columns body, title"):
        calibration_set(SPEC, TOKENIZER, data=table([{"title": "a", "body": "b"}]))


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"question": "c"}, r"row 2 of calibration\.jsonl has no column 'answer'"),
        ({"question": "c", "answer": 7}, r"row 2 of calibration\.jsonl: column 'answer' holds a int"),
    ],
)
def test_a_bad_row_is_named_with_its_column(table: Callable[..., str], bad: dict[str, Any], complaint: str) -> None:
    data = table([{"question": "a", "answer": "b"}, bad])
    with pytest.raises(DataError, match=complaint):
        calibration_set(SPEC, TOKENIZER, data=data, rows=2)


def test_messages_that_are_no_messages_are_named(table: Callable[..., str]) -> None:
    with pytest.raises(DataError, match=r"row 1 .*'messages' is not a list of objects with role and content"):
        calibration_set(SPEC, TOKENIZER, data=table([{"messages": ["hi"]}]), rows=1)


def test_a_template_that_refuses_a_row_is_a_data_error(table: Callable[..., str]) -> None:
    strict = small_tokenizer.__wrapped__()
    strict.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}ok"
    )
    data = table([{"messages": [{"role": "system", "content": "x"}]}])
    with pytest.raises(DataError, match=r"failed on row 1 of calibration\.jsonl: TemplateError: no system role"):
        calibration_set(SPEC, strict, data=data, rows=1)


def test_a_chat_for_a_tokenizer_without_template_is_a_data_error(table: Callable[..., str]) -> None:
    base = small_tokenizer.__wrapped__()
    base.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        calibration_set(SPEC, base, data=table([{"question": "a", "answer": "b"}]), rows=1)


def test_no_rows_can_not_be_asked_for() -> None:
    with pytest.raises(UsageError, match="0 rows"):
        calibration_set(TINY.calibration, TOKENIZER, rows=0)


def test_a_hub_that_can_not_be_reached_points_at_local_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError) as caught:
        calibration_set(SPEC, TOKENIZER)
    assert "HuggingFaceH4/ultrachat_200k (split train_sft)" in caught.value.what
    assert "data = FOLDER with calibration.jsonl, .parquet or .txt in it" in caught.value.fix


def test_the_dataset_is_tokenized_and_holds_the_same_rows() -> None:
    chosen = calibration_set(TINY.calibration, TOKENIZER, rows=4)
    dataset = chosen.dataset()
    assert dataset.column_names == ["input_ids", "attention_mask"]
    assert dataset["input_ids"][:] == chosen.input_ids
    assert dataset["attention_mask"][:] == [[1] * len(ids) for ids in chosen.input_ids]


def test_random_text_uses_the_whole_vocabulary_but_no_special_token() -> None:
    chosen = random_text_set(TOKENIZER, rows=64, max_length=100, seed=3)
    seen = {token for ids in chosen.input_ids for token in ids}
    assert {len(ids) for ids in chosen.input_ids} == {100}
    assert not seen & set(TOKENIZER.all_special_ids)
    assert len(seen) > 0.95 * len(TOKENIZER)
    assert chosen == random_text_set(TOKENIZER, rows=64, max_length=100, seed=3)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not on this machine (../shared/data)")
def test_real_gsm8k_rows_calibrate_through_the_workbench_profile() -> None:
    chosen = calibration_set(WORKBENCH.calibration, TOKENIZER, data=str(REAL))
    assert chosen.source == "gsm8k_train_1000.jsonl"
    assert chosen.columns == ("question", "answer")
    assert len(chosen.input_ids) == 512
    assert all(text.startswith(f"{BOS}<|user|>") and "#### " in text for text in texts(chosen))
