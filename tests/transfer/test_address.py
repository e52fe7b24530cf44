"""Addresses, endpoints, and the names that would leave a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.errors import DataError, UsageError
from labkit.transfer import Address, is_address, parse, refuse_plain_http, refuse_unsafe_name


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://workshop/models/tiny", Address("s3", "workshop", "models/tiny")),
        ("s3://workshop/models/tiny/", Address("s3", "workshop", "models/tiny")),
        ("hub:owner/name", Address("hub", "owner/name")),
        ("hub:owner/name@v1.0", Address("hub", "owner/name", "v1.0")),
        ("/mnt/stick/tiny", Address("folder", "/mnt/stick/tiny")),
    ],
)
def test_an_address_names_a_place_and_is_written_as_it_was_read(text: str, address: Address) -> None:
    assert parse(text) == address
    assert str(address) == text.rstrip("/")
    assert is_address(text) == (address.kind != "folder")
    assert address.last in ("tiny", "name")


def test_a_folder_may_be_relative_or_the_users_and_a_bucket_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("out").name == str(tmp_path / "out")
    assert parse("~/out").name == str(Path.home() / "out")
    with pytest.raises(UsageError, match="AWS_S3_BUCKET"):
        parse("s3:///models/tiny")
    monkeypatch.setenv("AWS_S3_BUCKET", "workshop")
    assert parse("s3:///models/tiny") == Address("s3", "workshop", "models/tiny")


NO_PLACES = "s3://Work_Shop/x s3://ab/x s3://workshop s3://workshop/ hub:name hub:a/b/c hub:../b hub:a/.. hub:a/b@"


@pytest.mark.parametrize("text", [*NO_PLACES.split(), "hub:a/b@../c", "gs://bucket/x", "https://host/x", "", "  "])
def test_what_names_no_place_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


CLIMBING = ". .. ../x a/../../x /etc/passwd a//b a/./b C:/x C:x a\\b ..\\x a/".split()


@pytest.mark.parametrize("name", [*CLIMBING, "", "a\nb", "a\0b", "x" * 256, "/".join(["y" * 200] * 6)])
def test_a_name_that_would_leave_the_folder_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="outside of its folder"):
        refuse_unsafe_name(name, "s3://workshop/x")
    with pytest.raises(DataError, match="outside of its folder"):
        parse(f"s3://workshop/models/../{name}")


IN_THE_CLEAR = "http://store:9000 http://10.0.0.1 http://0.0.0.0 http://127.0.0.1.evil.org http://localhost.evil.org"


@pytest.mark.parametrize("url", [*IN_THE_CLEAR.split(), "ftp://x", "store", "http://", "http://[::1"])
def test_plain_http_is_for_loopback_only(url: str) -> None:
    with pytest.raises(UsageError):
        refuse_plain_http(url, "AWS_S3_ENDPOINT", "AWS_CA_BUNDLE")


@pytest.mark.parametrize("url", "https://store:9000 http://127.0.0.1:9000 http://localhost:1 http://[::1]:9000".split())
def test_tls_anywhere_and_plain_http_on_loopback_are_fine(url: str) -> None:
    refuse_plain_http(url, "AWS_S3_ENDPOINT", "AWS_CA_BUNDLE")


def test_a_password_in_an_endpoint_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_plain_http("https://user:CANARY@store", "AWS_S3_ENDPOINT", "AWS_CA_BUNDLE")
    assert "CANARY" not in str(caught.value)
