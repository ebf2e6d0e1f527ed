"""Setting up a bucket: what is claimed, what is sent on the wire, and how refusals are sorted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
)

from steadyolo.adapters.objects.bucket import Refused, S3Bucket, look, provision
from steadyolo.adapters.objects.client_errors import is_denied, is_unsupported, sorted_client_error
from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.plan.bucket import Answer, Change, Reading, Setting, judge
from steadyolo.plan.bucket_settings import Replication, settings_of
from steadyolo.spec.bucket import KmsKey, Replica, WantedBucket
from steadyolo.spec.location import parse_location

ROLE = "arn:aws:iam::123456789012:role/copy"
WANTED = WantedBucket(
    name="runs",
    prefix="line-3/",
    region="eu-west-1",
    encryption=KmsKey("alias/here"),
    replica=Replica(bucket="copy", role=ROLE, encryption=KmsKey("alias/there")),
)


class Yes:
    """A store that says yes to everything, and shows it only after `num_polls` more looks; None is never."""

    def __init__(self, num_polls: int | None, *, refusal: Refused | None = None, there: bool = True) -> None:
        self.num_polls, self.refusal, self.there = num_polls, refusal, there
        self.sent: list[Change] = []
        self.asleep_s = 0.0
        self._answers: dict[Reading, tuple[int, Answer]] = {}

    def exists(self) -> bool:
        return self.there

    def read(self, reading: Reading) -> Answer:
        num_looks, answer = self._answers.get(reading, (0, {}))
        self._answers[reading] = (num_looks + 1, answer)
        return answer if self.num_polls is not None and num_looks >= self.num_polls else {}

    def send(self, change: Change) -> Refused | None:
        self.sent.append(change)
        if change.operation == "CreateBucket":
            return None
        reading = next(one.reading for one in settings_of(WANTED) if one.reading.operation[3:] in change.operation)
        told = {name: value for name, value in change.parameters.items() if name != "Bucket"}
        for flat in ("VersioningConfiguration", "LifecycleConfiguration"):  # these are told without their shell
            told |= told.pop(flat, {})
        self._answers[reading] = (0, told)
        return self.refusal

    def sleep(self, seconds: float) -> None:
        self.asleep_s += seconds

    def clock(self) -> float:
        return self.asleep_s


def statuses(bucket: Yes, *, settle_s: float = 20.0) -> set[str]:
    return {one.status for one in provision(bucket, WANTED, settle_s=settle_s, clock=bucket.clock, sleep=bucket.sleep)}


def test_only_what_was_read_back_is_claimed() -> None:
    bucket = Yes(num_polls=None)
    assert statuses(bucket) == {"differs"}
    assert len(bucket.sent) == len(settings_of(WANTED)), "nothing was sent, so this proves nothing"


def test_a_store_that_shows_a_change_late_is_waited_for_but_not_for_ever() -> None:
    late = Yes(num_polls=3)
    assert statuses(late) == {"holding"}
    assert 0 < late.asleep_s < 20
    assert statuses(Yes(num_polls=3), settle_s=0) == {"differs"}


@pytest.mark.parametrize(("unsupported", "status"), [(True, "unsupported"), (False, "differs")])
def test_a_refusal_is_told(unsupported: bool, status: str) -> None:
    bucket = Yes(num_polls=None, refusal=Refused("no such thing", unsupported=unsupported))
    found = provision(bucket, WANTED, clock=bucket.clock, sleep=bucket.sleep)
    assert {(one.status, one.why) for one in found} == {(status, "no such thing")}
    assert bucket.asleep_s == 0, "what was refused need not be waited for"


def test_what_is_looked_at_is_what_is_sent() -> None:
    bucket = Yes(num_polls=0, there=False)
    shown = [one.change for one in look(bucket, WANTED)]
    assert bucket.sent == [], "looking changes nothing"
    assert statuses(bucket) == {"holding"}
    assert bucket.sent == shown


# --- on the wire -----------------------------------------------------------------------------------------------------


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    yield


def stopped(bucket: S3Bucket, body: bytes = b"", status: int = 200) -> list[AWSPreparedRequest]:
    """What the bucket would send: each request is kept, and answered with `body` instead of being sent."""
    requests: list[AWSPreparedRequest] = []

    def answer(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        requests.append(request)
        raw = type("Raw", (), {"stream": lambda self: iter([body]), "read": lambda self: body})()
        return AWSResponse(request.url, status, {}, raw)

    bucket._client.meta.events.register("before-send.s3", answer)
    return requests


def copying() -> Change:
    assert WANTED.replica is not None
    return Replication(WANTED, WANTED.replica).change({})


@pytest.mark.usefixtures("credentials")
def test_replication_on_the_wire() -> None:
    """No server here keeps a whole rule of replication, so this is as far as it is shown."""
    bucket = S3Bucket(parse_location("s3://runs/line-3?region=eu-west-1"))
    requests = stopped(bucket)
    assert bucket.send(copying()) is None
    (request,) = requests
    assert (request.method, request.url) == ("PUT", "https://runs.s3.eu-west-1.amazonaws.com/?replication")
    body = request.body.decode() if isinstance(request.body, bytes) else request.body.read().decode()
    for part in (
        f"<Role>{ROLE}</Role>",
        "<ID>steadyolo line-3/</ID>",
        "<Priority>1</Priority>",
        "<Filter><Prefix>line-3/</Prefix></Filter>",
        "<Status>Enabled</Status>",
        "<SseKmsEncryptedObjects><Status>Enabled</Status></SseKmsEncryptedObjects>",
        "<Bucket>arn:aws:s3:::copy</Bucket>",
        "<ReplicaKmsKeyID>alias/there</ReplicaKmsKeyID>",
        "<DeleteMarkerReplication><Status>Disabled</Status></DeleteMarkerReplication>",
    ):
        assert part in body
    assert "not-a-secret" not in f"{request.url}{request.headers}{body}"


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    ("url", "sent_to"),
    [
        ("s3://runs?region=eu-west-1", "https://runs.s3.eu-west-1.amazonaws.com/?versioning"),
        ("s3://runs?endpoint=https://minio.example:9000", "https://minio.example:9000/runs?versioning"),
        (
            "s3://runs?endpoint=https://oss-cn-hangzhou.aliyuncs.com&region=cn-hangzhou",
            "https://runs.oss-cn-hangzhou.aliyuncs.com/?versioning",
        ),
    ],
)
def test_each_service_is_addressed_in_its_own_way(url: str, sent_to: str) -> None:
    bucket = S3Bucket(parse_location(url))
    requests = stopped(bucket, b"<VersioningConfiguration/>")
    assert bucket.read(Reading("GetBucketVersioning")) == {}
    assert [request.url for request in requests] == [sent_to]


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("setting", settings_of(WANTED), ids=lambda setting: setting.name)
def test_nothing_is_claimed_of_a_store_that_answers_something_else(setting: Setting) -> None:
    bucket = S3Bucket(parse_location("s3://runs?region=eu-west-1"))
    stopped(bucket, b"<ListBucketResult><Name>runs</Name></ListBucketResult>")
    assert judge(setting, bucket.read(setting.reading)).status == "differs"


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("setting", settings_of(WANTED), ids=lambda setting: setting.name)
def test_the_error_for_what_is_not_set_is_not_an_error(setting: Setting) -> None:
    bucket = S3Bucket(parse_location("s3://runs?region=eu-west-1"))
    stopped(bucket, f"<Error><Code>{setting.reading.not_set or 'None'}</Code></Error>".encode(), 404)
    if setting.reading.not_set:
        assert bucket.read(setting.reading) == {}
    else:  # S3 answers it without an error
        with pytest.raises(UserError):
            bucket.read(setting.reading)


@pytest.mark.usefixtures("credentials")
def test_a_request_that_a_store_takes_for_another_is_not_supported() -> None:
    bucket = S3Bucket(parse_location("s3://runs?region=eu-west-1"))
    stopped(bucket, b"<Error><Code>BucketAlreadyExists</Code></Error>", 409)
    refused = bucket.send(Change("PutBucketReplication", copying().parameters))
    assert refused is not None
    assert refused.unsupported
    made = bucket.send(Change("CreateBucket", {"Bucket": "runs"}))
    assert made is not None
    assert not made.unsupported


# --- errors ----------------------------------------------------------------------------------------------------------


def refusal(code: str, status: int, message: str = "") -> ClientError:
    said: Mapping[str, Any] = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(said, "PutBucketVersioning")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (refusal("NoSuchBucket", 404), UserError, "does not exist"),
        (refusal("InvalidBucketName", 400), UserError, "does not exist"),
        (refusal("AccessDenied", 403), UserError, "no permission"),
        (refusal("403", 403), UserError, "no permission"),
        (refusal("RequestTimeTooSkewed", 403), UserError, "clock is wrong"),
        (refusal("ExpiredToken", 400), UserError, "have expired"),
        (refusal("InvalidAccessKeyId", 403), UserError, "does not know the credentials"),
        (refusal("SignatureDoesNotMatch", 403), UserError, "secret of the credentials is wrong"),
        (refusal("PermanentRedirect", 301), UserError, "another region"),
        (
            refusal("AuthorizationHeaderMalformed", 400, "the region 'x-1' is wrong; expecting 'y-1'"),
            UserError,
            "another region",
        ),
        (refusal("IllegalLocationConstraintException", 400), UserError, "another region"),
        (refusal("InvalidArgument", 400, "The KMS key is disabled"), UserError, "encryption key"),
        (refusal("InvalidRequest", 400, "Destination bucket must have versioning"), UserError, "must have versioning"),
        (refusal("SlowDown", 503), Transient, "SlowDown"),
        (refusal("TooManyRequests", 429), Transient, "TooManyRequests"),
        (refusal("InternalError", 500), Transient, "InternalError"),
        (EndpointConnectionError(endpoint_url="https://x"), Transient, "Could not connect"),
        (ReadTimeoutError(endpoint_url="https://x"), Transient, "timeout"),
        (SSLError(endpoint_url="https://x", error="certificate"), Transient, "SSL"),
        (NoCredentialsError(), UserError, "credentials"),
        (ProfileNotFound(profile="x"), UserError, "credentials"),
        (ParamValidationError(report="Invalid bucket name"), UserError, "Invalid bucket name"),
        (ValueError("Invalid endpoint: x"), UserError, "Invalid endpoint"),
    ],
)
def test_errors_are_sorted_by_what_to_do(error: Exception, kind: type[SteadyError], says: str) -> None:
    ours = sorted_client_error("looking at s3://runs", error)
    assert type(ours) is kind
    assert re.match(r"looking at s3://runs: ", ours.message)
    assert says in ours.message


def test_no_credential_is_repeated() -> None:
    error = refusal("InvalidRequest", 400, "X-Amz-Security-Token=abc123&X-Amz-Signature=def456 and more")
    message = str(sorted_client_error("x", error))
    assert "abc123" not in message
    assert "def456" not in message
    assert "and more" in message, "the rest of the message is kept"


@pytest.mark.parametrize(
    ("error", "judge", "yes"),
    [
        (refusal("NotImplemented", 501), is_unsupported, True),
        (refusal("SomethingOfTheirs", 501), is_unsupported, True),
        (refusal("MethodNotAllowed", 405), is_unsupported, True),
        (refusal("InternalError", 500), is_unsupported, False),
        (refusal("AccessDenied", 403), is_denied, True),
        (refusal("SignatureDoesNotMatch", 403), is_denied, False),
        (EndpointConnectionError(endpoint_url="https://x"), is_unsupported, False),
    ],
)
def test_what_a_refusal_means(error: Exception, judge: Callable[[Exception], bool], yes: bool) -> None:
    assert judge(error) is yes
