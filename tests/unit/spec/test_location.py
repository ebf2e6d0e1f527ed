from __future__ import annotations

from pathlib import Path

import pytest

from steadyolo.errors import UserError
from steadyolo.spec.location import Location, parse_location
from steadyolo.spec.size import parse_bytes


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("s3://bucket", Location(scheme="s3", bucket="bucket", path="")),
        ("s3://bucket/a/b/", Location(scheme="s3", bucket="bucket", path="a/b")),
        ("gs://bucket/a%20b", Location(scheme="gs", bucket="bucket", path="a b")),
        ("azure://container/a", Location(scheme="az", bucket="container", path="a")),
        ("file:///mnt/x/", Location(scheme="file", bucket="", path="/mnt/x")),
        ("/mnt/x", Location(scheme="file", bucket="", path="/mnt/x")),
        (
            "s3://b/p?endpoint=https://oss.example.com&region=cn",
            Location(
                scheme="s3", bucket="b", path="p", options={"endpoint": "https://oss.example.com", "region": "cn"}
            ),
        ),
        (
            "s3://b/p?endpoint=http://127.0.0.1:8333",
            Location(scheme="s3", bucket="b", path="p", options={"endpoint": "http://127.0.0.1:8333"}),
        ),
        ("s3://b?sse=kms:alias/x", Location(scheme="s3", bucket="b", path="", options={"sse": "kms:alias/x"})),
    ],
)
def test_a_text_names_a_place_and_the_place_gives_it_back(text: str, location: Location) -> None:
    assert parse_location(text) == location
    assert parse_location(str(location)) == location


def test_a_path_from_here_is_made_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_location("copies").path == str(tmp_path / "copies")


def test_inside_and_out() -> None:
    place = parse_location("s3://b/p?region=x")
    assert str(place.inside("train")) == "s3://b/p/train?region=x"
    assert place.inside("train").parent == place
    assert place.inside("train").name == "train"
    assert parse_location("s3://b/train").parent == parse_location("s3://b")
    assert parse_location("file:///train").parent.path == "/"


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("s4://bucket", "s4://", "did you mean s3://?"),
        ("ftp://host/x", "ftp://", "s3://"),
        ("s3:///x", "no bucket", "s3://BUCKET"),
        ("file://host/x", "no folder of this machine", "file:///"),
        ("s3://b?regoin=x", "'regoin'", "did you mean region?"),
        ("gs://b?sse=s3", "'sse'", "key"),
        ("s3://b?region=", "empty", "value"),
        ("s3://b?sse=aes", "sse=aes", "kms"),
        ("s3://b?key=/a&key_command=b", "key and key_command", "one of them"),
        ("s3://b?endpoint=oss.example.com", "not an address", "https://"),
        ("s3://b?endpoint=http://minio.example.com:9000", "without TLS", "plain_http=true"),
    ],
)
def test_what_names_no_place(text: str, message: str, remedy: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_location(text)
    assert message in refused.value.message
    assert remedy in refused.value.remedy


@pytest.mark.parametrize("text", ["s3://KEYID:SECRET@bucket/x", "s3://b?endpoint=https://KEYID:SECRET@host"])
def test_credentials_in_a_url_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_location(text)
    assert "SECRET" not in str(refused.value)
    assert "KEYID" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("4GiB", 4 * 2**30), ("4G", 4 * 2**30), ("20 MB", 20_000_000), ("1.5k", 1536), ("7", 7)]
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "4 apples", "-1GiB", "0", "GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="not a size"):
        parse_bytes(text)


def test_no_place_is_not_the_working_folder() -> None:
    with pytest.raises(UserError, match="no place"):
        parse_location(" ")
