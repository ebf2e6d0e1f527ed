"""What bodies mean, in tables; and that no body means anything by accident."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.adapters.notices.answers import (
    Garbled,
    alibaba_termination,
    aws_action,
    aws_rebalance,
    azure_events,
    azure_name,
    google_maintenance,
    google_preempted,
)
from steadyolo.adapters.notices.notice import Notice

SEEN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
MEANINGS: dict[str, Callable[[str | None], tuple[Notice, ...]]] = {
    "aws action": partial(aws_action, seen_at=SEEN),
    "aws rebalance": aws_rebalance,
    "google preempted": partial(google_preempted, seen_at=SEEN),
    "google maintenance": partial(google_maintenance, seen_at=SEEN),
    "azure": partial(azure_events, machine="vm-7", seen_at=SEEN),
    "alibaba": alibaba_termination,
}
KEYS = ["action", "time", "noticeTime", "Events", "EventType", "Resources", "NotBefore", "EventId"]
JSON = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner),
    max_leaves=12,
)


def azure(**changed: object) -> str:
    event = {
        "EventId": "f020ba2e-3bc0-4c40-a10b-86575a9eabd5",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": ["vm-6", "vm-7"],
        "EventStatus": "Scheduled",
        "NotBefore": "Sun, 01 Mar 2026 12:00:31 GMT",
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }
    return json.dumps({"DocumentIncarnation": 2, "Events": [event | changed]})


@pytest.mark.parametrize(
    ("meaning", "body", "kind", "left_s"),
    [
        ("aws action", '{"action": "terminate", "time": "2026-03-01T12:01:58Z"}', "terminate", 118.0),
        ("aws action", '{"action": "stop", "time": "2026-03-01T12:02:00Z"}', "stop", 120.0),
        ("aws action", '{"action": "hibernate", "time": "2026-03-01T11:59:59Z"}', "hibernate", 0.0),
        ("aws action", '{"action": "terminate"}', "terminate", 120.0),
        ("aws action", '{"action": "terminate", "time": "soon"}', "terminate", 120.0),
        ("aws rebalance", '{"noticeTime": "2026-03-01T11:58:00Z"}', "rebalance", None),
        ("google preempted", "TRUE", "preempt", 30.0),
        ("google preempted", "true\n", "preempt", 30.0),
        ("google maintenance", "TERMINATE_ON_HOST_MAINTENANCE", "terminate", 30.0),
        ("azure", azure(), "preempt", 31.0),
        ("azure", azure(EventType="Terminate", Resources=["VM-7"]), "terminate", 31.0),
        ("azure", azure(EventType="Reboot", NotBefore="Sun, 01 Mar 2026 12:15:00 GMT"), "reboot", 900.0),
        ("azure", azure(EventType="Redeploy"), "redeploy", 31.0),
        ("azure", azure(EventStatus="Started", NotBefore=""), "preempt", 30.0),
        ("azure", azure(NotBefore=None), "preempt", 30.0),
        ("alibaba", "2026-03-01T12:05:00Z", "terminate", 300.0),
        ("alibaba", "2026-03-01T12:05:00Z\n", "terminate", 300.0),
    ],
)
def test_a_notice(meaning: str, body: str, kind: str, left_s: float | None) -> None:
    (notice,) = MEANINGS[meaning](body)
    assert notice.provider == meaning.split()[0]
    assert (notice.kind, notice.seconds_left(SEEN)) == (kind, left_s)


@pytest.mark.parametrize(
    ("meaning", "body"),
    [
        *((meaning, None) for meaning in MEANINGS),
        ("google preempted", "FALSE"),
        ("google maintenance", "NONE"),
        ("google maintenance", "MIGRATE_ON_HOST_MAINTENANCE"),
        ("azure", '{"DocumentIncarnation": 1, "Events": []}'),
        ("azure", azure(Resources=["vm-6"])),
        ("azure", azure(Resources=[])),
        ("azure", azure(EventType="Freeze")),
        ("alibaba", ""),
    ],
)
def test_no_notice(meaning: str, body: str | None) -> None:
    assert MEANINGS[meaning](body) == ()


@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize(
    "body",
    [
        "<html>502 Bad Gateway</html>",
        "null",
        "[1]",
        '{"a": 1}',
        '{"action": 7, "Events": {}}',
        "[" * 100_000,
        "\0",
        "2026-03-01",
    ],
)
def test_garbage_is_told_from_a_notice(meaning: str, body: str) -> None:
    with pytest.raises(Garbled):
        MEANINGS[meaning](body)


@pytest.mark.parametrize("event", ["7", "{}", '{"EventType": "Preempt"}', '{"Resources": "vm-7"}'])
def test_a_garbled_event_is_no_notice(event: str) -> None:
    with pytest.raises(Garbled):
        MEANINGS["azure"](f'{{"Events": [{event}]}}')


@given(st.sampled_from(list(MEANINGS)), st.text() | JSON.map(json.dumps))
def test_any_body_has_a_meaning_or_is_garbled(meaning: str, body: str) -> None:
    try:
        notices = MEANINGS[meaning](body)
    except Garbled:
        return
    assert all(isinstance(notice, Notice) for notice in notices)


@pytest.mark.parametrize("meaning", ["google preempted", "google maintenance", "azure"])
def test_the_same_notice_has_the_same_text_later(meaning: str) -> None:
    """A notice that is read again, perhaps without its time, is no second notice."""
    first = {"google preempted": "TRUE", "google maintenance": "TERMINATE_ON_HOST_MAINTENANCE", "azure": azure()}
    again = first | {"azure": azure(EventStatus="Started", NotBefore="")}
    later = dict(MEANINGS)
    for name, ask in MEANINGS.items():
        if isinstance(ask, partial):
            later[name] = partial(ask, seen_at=SEEN + timedelta(seconds=2))
    (before,), (after,) = MEANINGS[meaning](first[meaning]), later[meaning](again[meaning])
    assert (before.kind, before.text) == (after.kind, after.text)
    assert before.deadline_at != after.deadline_at


def test_two_notices_differ_in_their_text() -> None:
    texts = {
        notice.text
        for notice in (
            *MEANINGS["aws action"]('{"action": "terminate", "time": "2026-03-01T12:02:00Z"}'),
            *MEANINGS["aws action"]('{"action": "terminate", "time": "2026-03-01T12:01:00Z"}'),
            *MEANINGS["azure"](azure()),
            *MEANINGS["azure"](azure(EventId="another")),
        )
    }
    assert len(texts) == 4


@pytest.mark.parametrize(("body", "name"), [("vm-7", "vm-7"), ("scale_set_3\n", "scale_set_3"), ("a.b", "a.b")])
def test_the_name_of_a_machine(body: str, name: str) -> None:
    assert azure_name(body) == name


@pytest.mark.parametrize("body", [None, "", "<html>", "two words", "x" * 81])
def test_no_name_of_a_machine(body: str | None) -> None:
    with pytest.raises(Garbled):
        azure_name(body)
