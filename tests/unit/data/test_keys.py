from __future__ import annotations

import pytest

from steadyolo.data.keys import files_of
from steadyolo.errors import UserError
from steadyolo.vault.objects import Listed


def listing(*keys: str, num_bytes: int = 1) -> list[Listed]:
    return [Listed(key=key, num_bytes=num_bytes, tag=key) for key in keys]


@pytest.mark.parametrize(
    "key",
    [
        "../evil",
        "images/../../evil",
        "..",
        ".",
        "",
        "/etc/passwd",
        "images//1.jpg",
        "images/./1.jpg",
        "images/",
        "images\\1.jpg",
        "..\\evil",
        "C:\\evil",
        "images/1\n.jpg",
        "images/1\0.jpg",
        "images/\x1b[2J.jpg",
        "images/" + "x" * 256,
        "images/" + "é" * 128,
    ],
)
def test_keys_that_are_no_files_are_refused(key: str) -> None:
    with pytest.raises(UserError, match="cannot be a file of a data set") as caught:
        files_of(listing("data.yaml", key), "s3://b/pcb")
    assert "\n  remedy" in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [("images/A.jpg", "images/a.jpg"), ("Images/a.jpg", "images/a.jpg"), ("caf\u00e9.jpg", "cafe\u0301.jpg")],
)
def test_keys_that_are_one_name_on_some_disks_are_refused(one: str, other: str) -> None:
    with pytest.raises(UserError, match="are one name on some disks"):
        files_of(listing(one, other), "s3://b/pcb")


def test_a_file_where_a_folder_has_to_be_is_refused() -> None:
    with pytest.raises(UserError, match="other objects need a folder of that name"):
        files_of(listing("images", "images/a.jpg"), "s3://b/pcb")


def test_empty_objects_that_stand_for_folders_are_left_out() -> None:
    markers = listing("images", "images/train/", "labels/", num_bytes=0)
    empty = listing("labels/train/1.txt", num_bytes=0)
    assert sorted(files_of([*markers, *empty, *listing("images/train/1.jpg")], "s3://b/pcb")) == [
        "images/train/1.jpg",
        "labels/train/1.txt",
    ]


@pytest.mark.parametrize("key", ["a b/c (1).jpg", "图片/一.jpg", "..a/b..", "%2e%2e/x", "-rf", "C:/x"])
def test_other_names_are_taken(key: str) -> None:
    assert list(files_of(listing(key), "s3://b/pcb")) == [key]


def test_what_ultralytics_wrote_is_left_out() -> None:
    keys = ["images/1.jpg", "images/1.npy", "labels/train.cache", "depth/1.npy", "depth/1.npy.txt"]
    assert list(files_of(listing(*keys), "s3://b/pcb")) == ["images/1.jpg", "depth/1.npy", "depth/1.npy.txt"]
