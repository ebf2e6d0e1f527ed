"""Whatever comes in, it is answered as the client's mistake, and the next one is answered as ever."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from steadyolo.adapters.http.limits import HttpLimits
from steadyolo.testing.odd_requests import answer_to, odd_requests
from tests.unit.adapters.http.front import picture, running
from tests.unit.adapters.http.plain_service import SIDE_PX

NUM_REQUESTS = 500
LIMITS = HttpLimits(head_timeout_s=0.5, body_timeout_s=0.5, body_bytes=4 << 20)


def test_odd_requests_are_the_clients_mistakes() -> None:
    statuses: Counter[int | None] = Counter()
    kinds: set[str] = set()
    with running(LIMITS) as front:
        requests = odd_requests(7, model="small", picture=picture(), shape=(1, 3, SIDE_PX, SIDE_PX))
        for request in islice(requests, NUM_REQUESTS):
            status = answer_to(request, "127.0.0.1", front.port)
            assert status is None or status < 500, f"{status} for {request}"
            statuses[status] += 1
            kinds.add(request.kind.removeprefix("slow "))
        assert front.detect(picture()).status == 200
        assert front.in_loop(lambda: front.service.num_running) == 0
        assert b"steadyolo_body_bytes 0.0" in front.ask("GET", "/metrics").body
    assert len(kinds) == 14
    assert {200, 400, 404, 413, 415} <= set(statuses), f"few things were odd about these: {statuses}"
    assert statuses[None] < NUM_REQUESTS / 3  # torn ones are owed no answer
