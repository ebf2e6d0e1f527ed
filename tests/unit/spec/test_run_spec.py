from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.errors import UserError
from steadyolo.spec.budget import ByteBudget, ShareBudget
from steadyolo.spec.cadence import Auto, EverySeconds, EverySteps
from steadyolo.spec.location import Location
from steadyolo.spec.run_spec import ALL_LAYERS, OURS, RunSpec, literal, make_spec, parse_pairs

KNOWN = ("epochs", "batch", "data", "model", "imgsz", "close_mosaic", "amp", "hsv_h", "device", "name")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("True", True),
        ("false", False),
        ("none", None),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("(1,2)", (1, 2)),
        ("cpu", "cpu"),
        ("0,1", (0, 1)),
        ("a/b.yaml", "a/b.yaml"),
        ("", ""),
        ("'3'", "3"),
        (" 3 ", 3),
        ("3 boards", "3 boards"),
    ],
)
def test_a_word_is_read_as_the_value_it_looks_like(text: str, value: object) -> None:
    found = literal(text)
    assert found == value
    assert type(found) is type(value)


def test_words_are_sorted_into_ultralytics_and_ours() -> None:
    arguments, ours = parse_pairs(["epochs=3", "--data=a=b.yaml", "save.every=30s", "name = x"], KNOWN)
    assert arguments == {"epochs": 3, "data": "a=b.yaml", "name": "x"}
    assert ours == {"save.every": "30s"}


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        (["epoch=3"], "unknown argument 'epoch'", "did you mean epochs"),
        (["closemosaic=3"], "unknown argument 'closemosaic'", "close_mosaic"),
        (["save.evry=3s"], "unknown argument 'save.evry'", "save.every"),
        (["imgsize=3"], "unknown argument 'imgsize'", "imgsz"),
        (["qqq=3"], "unknown argument 'qqq'", "steadyolo train --help"),
        (["epochs"], "'epochs' is not key=value", "epochs=VALUE"),
        (["--epochs"], "'--epochs' is not key=value", "epochs=VALUE"),
        (["=3"], "is not key=value", "VALUE"),
        (["epochs=3", "epochs=4"], "epochs is given twice: 3 and 4", "once"),
        (["save.every=3s", "save.every=4s"], "save.every is given twice: '3s' and '4s'", "once"),
    ],
)
def test_words_that_are_wrong(words: list[str], message: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pairs(words, KNOWN)
    assert message in caught.value.message
    assert remedy in caught.value.remedy


def test_the_same_word_twice_is_no_contradiction() -> None:
    assert parse_pairs(["epochs=3", "epochs=3"], KNOWN) == ({"epochs": 3}, {})


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("save.every", "auto", "save_every", Auto()),
        ("save.every", "30s", "save_every", EverySeconds(30.0)),
        ("save.every", "200steps", "save_every", EverySteps(200)),
        ("save.keep_last", "5", "num_keep_last", 5),
        ("save.mtbf", "2h", "mtbf_s", 7200.0),
        ("save.budget_share", "0.05", "save_budget_share", 0.05),
        ("precision.compute", "BF16", "compute", "bf16"),
        ("memory.micro_batch", "4", "num_micro_batch_images", 4),
        ("memory.micro_batch", "auto", "num_micro_batch_images", None),
        ("memory.budget", "24GiB", "memory_budget", ByteBudget(24 * 2**30)),
        ("memory.budget", "80%", "memory_budget", ShareBudget(0.8)),
        ("memory.recompute", "auto", "num_recomputed_layers", None),
        ("memory.recompute", "off", "num_recomputed_layers", 0),
        ("memory.recompute", "ALL", "num_recomputed_layers", ALL_LAYERS),
        ("memory.recompute", "7", "num_recomputed_layers", 7),
        ("memory.boxes", "300", "num_boxes", 300),
        ("cpu.threads", "2", "num_threads", 2),
        ("launch.ranks", "2", "num_ranks", 2),
        ("data.bad_labels", "skip", "bad_labels", "skip"),
        ("data.cache", "/mnt/cache", "dataset_cache", Path("/mnt/cache")),
        ("data.cache_budget", "50GiB", "dataset_cache_bytes", 50 * 2**30),
        ("store.url", "s3://b/p", "store", Location(scheme="s3", bucket="b", path="p")),
        ("store.replica", "gs://b", "replica", Location(scheme="gs", bucket="b", path="")),
        ("store.disk", "/mnt/disk", "disk", Location(scheme="file", bucket="", path="/mnt/disk")),
        ("store.keep_last", "3", "num_copies_kept", {"disk": 3, "store": 3, "replica": 3}),
        ("store.keep_last", "disk:20, replica:2", "num_copies_kept", {"disk": 20, "store": 5, "replica": 2}),
        ("store.replica", "none", "replica", None),
        ("store.spool", "1GiB", "spool_bytes", 2**30),
        ("store.bandwidth", "20MB/s", "bandwidth_bytes_s", 20e6),
        ("store.drain", "1min", "store_drain_s", 60.0),
        ("recovery.tries", "1", "num_tries", 1),
    ],
)
def test_ours_are_typed(name: str, text: str, field: str, value: object) -> None:
    assert getattr(make_spec({}, {name: text}), field) == value


def test_every_one_of_ours_is_tested_above() -> None:
    tested = {mark.args[1][row][0] for mark in test_ours_are_typed.pytestmark for row in range(len(mark.args[1]))}  # type: ignore[attr-defined]
    assert tested == set(OURS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("save.every", "sometimes"),
        ("save.every", "0s"),
        ("save.every", "0steps"),
        ("save.keep_last", "0"),
        ("save.keep_last", "two"),
        ("store.keep_last", "cloud:3"),
        ("store.keep_last", "disk:0"),
        ("save.mtbf", "-1h"),
        ("save.budget_share", "1"),
        ("save.budget_share", "0"),
        ("save.budget_share", "nan"),
        ("precision.compute", "int8"),
        ("memory.micro_batch", "0"),
        ("memory.micro_batch", "1.5"),
        ("cpu.threads", "0"),
        ("data.bad_labels", "ignore"),
        ("recovery.tries", "0"),
        ("save.nothing", "1"),
    ],
)
def test_ours_that_are_wrong(name: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        make_spec({}, {name: text})
    assert name in caught.value.message
    assert caught.value.remedy


ARGUMENTS = st.dictionaries(
    st.sampled_from(KNOWN), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=5
)
OURS_GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "save.every": st.sampled_from(["auto", "30s", "5min", "200steps"]),
        "save.keep_last": st.integers(1, 9).map(str),
        "precision.compute": st.sampled_from(["auto", "fp32", "bf16"]),
        "save.mtbf": st.sampled_from(["1h", "90s"]),
    },
)


@given(ARGUMENTS, OURS_GIVEN)
def test_a_spec_comes_back_from_json_as_it_was(arguments: dict[str, Any], ours: dict[str, str]) -> None:
    spec = make_spec(arguments, ours)
    assert RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "raw", [{}, {"version": 2, "arguments": {}, "ours": {}}, {"version": 1, "arguments": {}, "ours": {}, "more": 1}]
)
def test_a_spec_of_another_shape_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not a version 1 run spec"):
        RunSpec.from_dict(raw)


def test_a_changed_spec_is_validated_again() -> None:
    spec = make_spec({"epochs": 3}, {"save.every": "30s"})
    changed = spec.changed({"epochs": 5}, {"save.every": "60s"})
    assert changed.arguments == {"epochs": 5}
    assert changed.save_every == EverySeconds(60.0)
    assert spec.arguments == {"epochs": 3}, "the first one was changed"
    with pytest.raises(UserError):
        spec.changed({}, {"save.every": "never"})


def test_what_auto_rests_on_is_part_of_the_cadence() -> None:
    spec = make_spec({}, {"save.mtbf": "2h", "save.budget_share": "0.02"})
    assert spec.cadence == Auto(mtbf_s=7200.0, budget_share=0.02)
    assert make_spec({}, {"save.mtbf": "2h", "save.every": "5s"}).cadence == EverySeconds(5.0)
