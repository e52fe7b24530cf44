"""Rows: a local file is matched to its use by name alone; rows are chosen by seed and tokenized as a model expects."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from labkit.data import CalibrationSet, calibration_set, find_data_file, random_text_set, read_rows
from labkit.errors import DataError, UsageError
from labkit.profiles import TINY, WORKBENCH
from labkit.tiny import corpus

from .models import small_tokenizer

NAMES = ("calibration", "gsm8k_train")
TOKENIZER = small_tokenizer()
BOS = TOKENIZER.bos_token
SPEC = replace(WORKBENCH.calibration, rows=3, max_length=64)


def write(path: Path, text: str = '{"text": "a"}\n') -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def find(place: Path, *names: str, **more: Any) -> Path:
    return find_data_file(str(place), names or NAMES, "calibration rows", **more)


# --- local files ------------------------------------------------------------------------------------------------------


def test_the_first_name_that_is_there_is_taken(tmp_path: Path) -> None:
    second = write(tmp_path / "gsm8k_train.jsonl")
    assert find(tmp_path) == second
    first = write(tmp_path / "calibration.txt")
    assert find(tmp_path) == first
    write(tmp_path / "calibration.jsonl")
    with pytest.raises(DataError, match=r"more than one file .*calibration\.jsonl, calibration\.txt"):
        find(tmp_path)


def test_a_missing_file_says_what_was_looked_for_and_what_was_found(tmp_path: Path) -> None:
    for name in ("calibration/calibration.jsonl", "other.jsonl", "notes.md"):  # below the folder is not looked at
        write(tmp_path / name)
    with pytest.raises(DataError, match=r"calibration or gsm8k_train \(.jsonl, .parquet, .txt\), found other.jsonl"):
        find(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        find(tmp_path / "nowhere")


def test_a_single_file_serves_only_the_use_that_its_name_says(tmp_path: Path) -> None:
    one = write(tmp_path / "gsm8k_train.jsonl")
    assert find(one) == find(one, "gsm8k_test", any_name=True) == one
    with pytest.raises(DataError, match="is not the calibration rows"):
        find(one, "gsm8k_test")
    with pytest.raises(DataError, match=r"ending is '\.csv'"):
        find(write(tmp_path / "calibration.csv"), any_name=True)


def test_jsonl_rows_keep_every_column_and_unusual_line_separators(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028still one", "n": 1}, {"text": "zwei\nü", "n": [1, {"a": None}]}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read_rows(write(tmp_path / "r.jsonl", f"\ufeff{lines}\n")) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("\n \nfirst line\nsecond line\n \n\nnext paragraph\n", ["first line\nsecond line", "next paragraph"]),
        ("one\ntwo\n", ["one", "two"]),
    ],
)
def test_text_rows_are_paragraphs_or_lines_where_no_line_is_blank(tmp_path: Path, text: str, rows: list[str]) -> None:
    assert read_rows(write(tmp_path / "r.txt", text)) == [{"text": row} for row in rows]


def test_parquet_rows_come_back_with_their_nested_columns_and_a_cut_file_is_an_error(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}], "n": 1}, {"messages": [], "n": None}]
    path = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read_rows(path) == rows
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"r\.parquet can't be read: "):
        read_rows(path)


def test_real_files_have_their_known_rows(shared_data: Path) -> None:
    train = read_rows(find_data_file(str(shared_data), ("gsm8k_train", "gsm8k_train_1000"), "GSM8K's train split"))
    assert (len(train), train[0]["answer"].endswith("#### 72")) == (1000, True)
    wiki = read_rows(find_data_file(str(shared_data), ("wikitext2_test",), "WikiText's test split"))
    assert wiki[0] == {"text": "= Robert <unk> ="}
    chosen = calibration_set(WORKBENCH.calibration, TOKENIZER, data=str(shared_data))
    assert (chosen.source, chosen.columns) == ("gsm8k_train_1000.jsonl", ("question", "answer"))
    assert len(chosen.input_ids) == 512
    assert all(text.startswith(f"{BOS}<|user|>") and "#### " in text for text in texts(chosen))


# --- calibration rows -------------------------------------------------------------------------------------------------


Chosen = Callable[..., CalibrationSet]


@pytest.fixture
def choose(tmp_path: Path) -> Chosen:
    """Writes rows to the calibration file of a data folder, and chooses three of them, or `rows`."""

    def chosen(found: list[Any], rows: int = 3, tokenizer: Any = TOKENIZER, **more: Any) -> CalibrationSet:
        write(tmp_path / "calibration.jsonl", "\n".join(map(json.dumps, found)))
        spec = replace(SPEC, max_length=more.pop("max_length", SPEC.max_length))
        return calibration_set(spec, tokenizer, data=str(tmp_path), rows=rows, **more)

    return chosen


def texts(chosen: CalibrationSet) -> list[str]:
    return [TOKENIZER.decode(ids) for ids in chosen.input_ids]


def plain(*rows: str | None) -> list[dict[str, Any]]:
    return [{"text": row} for row in rows]


NUMBERED = plain(*(f"row number {i}" for i in range(100)))


def test_the_embedded_corpus_gives_chats_and_some_stories_of_its_calibration_split_as_a_tokenized_dataset() -> None:
    chosen = calibration_set(TINY.calibration, TOKENIZER, rows=32)
    chats = [text for text in texts(chosen) if "<|user|>" in text]
    assert (len(chosen.input_ids), len(chats)) == (32, 28)
    allowed = {corpus.prompt(p.question) for p in corpus.problems("calibration", 28)}
    assert {text.split("<|user|>")[1].split("<|end|>")[0] for text in chats} == allowed
    assert [text.count(BOS) for text in texts(chosen)] == [1] * 32
    dataset = chosen.dataset()
    assert dataset["input_ids"][:] == chosen.input_ids
    assert dataset["attention_mask"][:] == [[1] * len(ids) for ids in chosen.input_ids]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completion": "b"}, "<|user|>a<|end|><|assistant|>b<|end|>"),
        ({"question": "a", "answer": "b", "id": 7}, "<|user|>a<|end|><|assistant|>b<|end|>"),
        ({"instruction": "a", "input": "c", "output": "b"}, "<|user|>a\n\nc<|end|><|assistant|>b<|end|>"),
        ({"instruction": "a", "input": "", "output": "b"}, "<|user|>a<|end|><|assistant|>b<|end|>"),
        ({"messages": [{"role": "user", "content": "m"}], "text": "t"}, "<|user|>m<|end|>"),
        ({"text": "t", "label": 1}, "t"),
    ],
)
def test_each_layout_of_columns_becomes_the_text_that_the_model_was_taught(
    choose: Chosen, row: dict[str, Any], expected: str
) -> None:
    assert texts(choose([row], 1)) == [BOS + expected]


def test_a_seed_chooses_the_rows_and_fewer_are_the_beginning_of_more(choose: Chosen) -> None:
    first, again, many = (choose(NUMBERED, rows) for rows in (20, 20, 40))
    assert first == again != choose(NUMBERED, 20, seed=1)
    assert len(set(texts(many))) == 40, "rows are drawn without replacement"
    assert many.input_ids[:20] == first.input_ids
    few, more = (calibration_set(TINY.calibration, TOKENIZER, rows=rows) for rows in (17, 64))
    assert more.input_ids[:17] == few.input_ids
    assert len({tuple(ids) for ids in more.input_ids}) == 64


def test_the_fingerprint_changes_with_rows_seed_length_and_tokens(choose: Chosen) -> None:
    five = NUMBERED[:5]
    base, again = choose(five), choose(five)
    others = [choose(five, 2), choose(five, seed=1), choose(five, max_length=63), choose(plain(*"abcde"))]
    assert len({chosen.fingerprint for chosen in (base, again, *others)}) == 5
    assert base.facts()["tokens"] == sum(len(ids) for ids in base.input_ids)


def test_empty_rows_are_dropped_and_counted_and_long_ones_truncated(choose: Chosen) -> None:
    some = plain("a", "  ", None, "b", "")
    chosen = choose(some, 2)
    assert sorted(texts(chosen)) == [f"{BOS}a", f"{BOS}b"]
    assert chosen.dropped_empty <= 3
    with pytest.raises(DataError, match=r"has 2 rows with text, and 3 were asked for \(3 were empty\)"):
        choose(some)
    assert [len(ids) for ids in choose(plain("word " * 500), 1).input_ids] == [SPEC.max_length]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"title": "a", "body": "b"}], "has the columns body, title"),
        ([{"question": "a", "answer": "b"}, {"question": "c"}], r"row 2 of calibration\.jsonl has no column 'answer'"),
        ([{"question": "a", "answer": "b"}, {"question": "c", "answer": 7}], r"row 2 .*column 'answer' holds a int"),
        ([["hi"]] * 2, "line 1 is a list, not an object"),
    ],
)
def test_a_bad_row_is_named_with_its_column(choose: Chosen, rows: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        choose(rows, 2)


def test_what_can_not_be_made_is_refused(choose: Chosen) -> None:
    base = copy.deepcopy(TOKENIZER)
    base.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        choose([{"question": "a", "answer": "b"}], 1, base)
    with pytest.raises(UsageError, match="0 rows"):
        choose(NUMBERED, 0)


def test_a_hub_that_can_not_be_reached_points_at_local_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError) as caught:
        calibration_set(SPEC, TOKENIZER)
    assert "HuggingFaceH4/ultrachat_200k (split train_sft)" in caught.value.what
    assert "data = FOLDER with calibration.jsonl, .parquet or .txt in it" in caught.value.fix


def test_random_text_uses_the_whole_vocabulary_but_no_special_token() -> None:
    chosen = random_text_set(TOKENIZER, rows=64, max_length=100, seed=3)
    seen = {token for ids in chosen.input_ids for token in ids}
    assert {len(ids) for ids in chosen.input_ids} == {100}
    assert not seen & set(TOKENIZER.all_special_ids)
    assert len(seen) > 0.95 * len(TOKENIZER)
    assert chosen == random_text_set(TOKENIZER, rows=64, max_length=100, seed=3)
