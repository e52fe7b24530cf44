"""Local data: a file is matched to its use by name alone, and what can't be read says where and why."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from labkit.errors import DataError
from labkit.localdata import find_data_file, read_rows

REAL = Path(__file__).parents[2] / "shared" / "data"
NAMES = ("calibration", "gsm8k_train")


def write(path: Path, text: str = '{"text": "a"}\n') -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_first_name_that_is_there_is_taken(tmp_path: Path) -> None:
    second = write(tmp_path / "gsm8k_train.jsonl")
    assert find_data_file(str(tmp_path), NAMES, "calibration rows") == second
    first = write(tmp_path / "calibration.txt")
    assert find_data_file(str(tmp_path), NAMES, "calibration rows") == first


def test_one_name_with_two_endings_is_refused_and_both_are_named(tmp_path: Path) -> None:
    write(tmp_path / "calibration.jsonl")
    write(tmp_path / "calibration.txt")
    with pytest.raises(DataError, match=r"calibration\.jsonl, calibration\.txt"):
        find_data_file(str(tmp_path), NAMES, "calibration rows")


def test_a_missing_file_says_what_was_looked_for_and_what_was_found(tmp_path: Path) -> None:
    write(tmp_path / "other.jsonl")
    write(tmp_path / "notes.md")
    with pytest.raises(DataError) as caught:
        find_data_file(str(tmp_path), NAMES, "calibration rows")
    assert "calibration or gsm8k_train (.jsonl, .parquet, .txt)" in caught.value.what
    assert "found other.jsonl" in caught.value.what
    assert "notes.md" not in caught.value.what


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_data_file(str(tmp_path / "nowhere"), NAMES, "calibration rows")


def test_a_file_below_the_folder_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "calibration.jsonl")
    with pytest.raises(DataError, match="no data file"):
        find_data_file(str(tmp_path), NAMES, "calibration rows")


def test_a_single_file_serves_only_the_use_that_its_name_says(tmp_path: Path) -> None:
    one = write(tmp_path / "gsm8k_train.jsonl")
    assert find_data_file(str(one), NAMES, "calibration rows") == one
    with pytest.raises(DataError, match="is not the test rows"):
        find_data_file(str(one), ("gsm8k_test",), "test rows")
    assert find_data_file(str(one), ("gsm8k_test",), "test rows", any_name=True) == one


def test_a_single_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ending is '\.csv'"):
        find_data_file(str(write(tmp_path / "calibration.csv")), NAMES, "calibration rows", any_name=True)


def test_jsonl_rows_keep_every_column_and_unusual_line_separators(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028still one", "n": 1}, {"text": "zwei\nü", "n": [1, {"a": None}]}]
    path = write(
        tmp_path / "r.jsonl", "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    )
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    ("line", "complaint"), [('{"text": ', "line 3 is not JSON"), ('["a"]', "line 3 is a list, not an object")]
)
def test_a_bad_jsonl_line_is_named_by_its_number(tmp_path: Path, line: str, complaint: str) -> None:
    path = write(tmp_path / "r.jsonl", f'{{"text": "a"}}\n\n{line}\n{{"text": "b"}}\n')
    with pytest.raises(DataError, match=complaint):
        read_rows(path)


def test_text_rows_are_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path / "r.txt", "\n \nfirst line\nsecond line\n \n\nnext paragraph\n")
    assert read_rows(path) == [{"text": "first line\nsecond line"}, {"text": "next paragraph"}]


def test_text_rows_are_lines_where_no_line_is_blank(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path / "r.txt", "one\ntwo\n")) == [{"text": "one"}, {"text": "two"}]


def test_parquet_rows_come_back_with_their_nested_columns(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}], "n": 1}, {"messages": [], "n": None}]
    path = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read_rows(path) == rows


def test_a_cut_parquet_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "a" * 1000}]), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="can't be read as Parquet"):
        read_rows(path)


@pytest.mark.parametrize("name", ["r.jsonl", "r.txt"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="has no rows"):
        read_rows(write(tmp_path / name, "\n \n"))


def test_text_that_is_not_utf8_names_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match="byte 3 is 0xe9"):
        read_rows(path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not on this machine (../shared/data)")
def test_real_files_have_their_known_numbers_of_rows() -> None:
    train = read_rows(find_data_file(str(REAL), ("gsm8k_train", "gsm8k_train_1000"), "GSM8K's train split"))
    assert len(train) == 1000
    assert train[0]["answer"].endswith("#### 72")
    assert len(read_rows(find_data_file(str(REAL), ("gsm8k_test",), "GSM8K's test split"))) == 1319
    wiki = read_rows(find_data_file(str(REAL), ("wikitext2_test",), "WikiText's test split"))
    assert wiki[0] == {"text": "= Robert <unk> ="}
