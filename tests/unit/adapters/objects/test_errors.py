"""What goes wrong with a store is told as what the caller can do about it, and never shows a credential."""

from __future__ import annotations

import base64
import dataclasses
import logging
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from obstore import exceptions as raised

from steadyolo.adapters.objects import opening
from steadyolo.adapters.objects.errors import sorted_error
from steadyolo.adapters.objects.opening import open_store
from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.spec.location import parse_location
from steadyolo.testing.fault_proxy import FaultProxy
from steadyolo.testing.network_faults import (
    ARCHIVED,
    CLOCK_SKEW,
    EXPIRED_TOKEN,
    INTERNAL_ERROR,
    OTHER_REGION,
    SLOW_DOWN,
    TOO_MANY_REQUESTS,
    UNAVAILABLE,
    Answer,
    ErrorPage,
    Fault,
    Flipped,
    LostAnswer,
    Reset,
    Silence,
    Truncated,
    s3_error,
)
from steadyolo.vault.objects import Absent, ObjectStore, Taken
from tests.servers.azurite import CONTAINER, AzuriteServer
from tests.servers.seaweed import ADMIN, BUCKET, IDENTITIES, KEEPER, READER, Identity, SeaweedServer, aws_environment

WRONG_SECRET = dataclasses.replace(ADMIN, secret_key="steady-wrong-SECRET-d00d")
UNKNOWN = dataclasses.replace(ADMIN, access_key="STEADYUNKNOWNACCESS")
TOKEN = "steady-session-TOKEN-beef"
CREDENTIALS = re.compile(r"steady-\w+-(SECRET|TOKEN)-\w+|STEADY\w+ACCESS")
TIMEOUT_S = 1.0


@pytest.fixture(autouse=True)
def nothing_is_logged_that_is_secret(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, logger="steadyolo")
    yield
    assert not CREDENTIALS.search(caplog.text)


def opened(url: str, *, timeout_s: float = 10.0) -> ObjectStore:
    return open_store(parse_location(url), timeout_s=timeout_s)


def all_uses(store: ObjectStore) -> dict[str, Callable[[], object]]:
    return {
        "put": lambda: store.put("a/b", b"1"),
        "put_if": lambda: store.put_if("a/claim", b"1", tag=None),
        "get": lambda: store.get("a/b"),
        "list": lambda: store.list("a/"),
        "delete": lambda: store.delete("a/b"),
    }


def refusal(use: Callable[[], object]) -> SteadyError:
    """What a use raises, which shows no credential however it is printed."""
    with pytest.raises(SteadyError) as found:
        use()
    error = found.value
    shown = f"{error} {error!r} {error.remedy} {error.__cause__!r}"
    assert not CREDENTIALS.search(shown), "a credential is shown"
    assert error.__suppress_context__ or error.__context__ is None or not CREDENTIALS.search(repr(error.__context__))
    return error


def test_credentials_would_be_noticed() -> None:
    for identity in (*IDENTITIES, WRONG_SECRET, UNKNOWN):
        assert CREDENTIALS.fullmatch(identity.secret_key)
        assert CREDENTIALS.fullmatch(identity.access_key)
    assert CREDENTIALS.fullmatch(TOKEN)


# --- what SeaweedFS refuses ---


@pytest.mark.parametrize(
    ("identity", "told", "remedy"),
    [
        (WRONG_SECRET, "the secret of the credentials is wrong", "check the secret key"),
        (UNKNOWN, "the store does not know the credentials", "check which credentials are used"),
        (None, "no credentials for S3 were found", "give this machine a role, or set AWS_PROFILE"),
    ],
    ids=["wrong secret", "unknown key", "nobody"],
)
def test_credentials_that_do_not_open_the_store(
    seaweed: SeaweedServer, prefix: str, identity: Identity | None, told: str, remedy: str
) -> None:
    with aws_environment(identity):
        for use in all_uses(opened(seaweed.url(prefix))).values():
            error = refusal(use)
            assert isinstance(error, UserError)
            assert told in error.message
            assert remedy in error.remedy


def test_a_token_that_is_not_known(seaweed: SeaweedServer, prefix: str) -> None:
    with aws_environment(ADMIN, token=TOKEN):
        assert "does not know the credentials" in refusal(lambda: opened(seaweed.url(prefix)).get("a")).message


@pytest.mark.parametrize("bucket", ["no-such-bucket", "NOT-A-NAME"])
def test_a_bucket_that_is_not_there(seaweed: SeaweedServer, aws: None, bucket: str) -> None:
    for use in all_uses(opened(seaweed.url("runs", bucket=bucket))).values():
        error = refusal(use)
        assert isinstance(error, UserError)
        assert f"s3://{bucket}/runs: the bucket does not exist" in error.message
        assert error.remedy.startswith("check the bucket's name")


def test_rights_that_are_lacking(seaweed: SeaweedServer, s3_url: str) -> None:
    store = opened(s3_url)
    store.put("a/b", b"1")
    for identity, refused in ((READER, {"put", "put_if", "delete"}), (KEEPER, {"delete"})):
        with aws_environment(identity):
            uses = all_uses(opened(s3_url))
            for name in sorted(refused):
                error = refusal(uses.pop(name))
                assert isinstance(error, UserError)
                assert "no permission" in error.message
                assert "the rights that `steadyolo store provision URL` prints" in error.remedy
            for use in uses.values():
                use()
    assert store.get("a/b").data == b"1"


def test_renewed_credentials_are_found_without_opening_anew(seaweed: SeaweedServer, prefix: str) -> None:
    with aws_environment(UNKNOWN):
        store = opened(seaweed.url(prefix))
        refusal(lambda: store.put("a", b"1"))
    with aws_environment(ADMIN):
        store.put("a", b"1")


def test_credentials_that_go_and_come_back(
    seaweed: SeaweedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_CREDENTIALS_TTL", timedelta(0))
    with aws_environment(ADMIN):
        store = opened(seaweed.url(prefix))
        store.put("a", b"1")
    time.sleep(0.15)  # obstore asks at most once in a tenth of a second
    with aws_environment(None):
        for _ in range(2):
            error = refusal(lambda: store.get("a"))
            assert isinstance(error, UserError)
            assert "no credentials" in error.message
    with aws_environment(ADMIN):
        assert store.get("a").data == b"1"


def test_a_profile_that_cannot_be_read(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with aws_environment(None):
        monkeypatch.setenv("AWS_PROFILE", "nowhere")
        error = refusal(lambda: opened(seaweed.url("runs")).get("a"))
    assert isinstance(error, UserError)
    assert "the credentials for S3 cannot be read: ProfileNotFound" in error.message
    assert error.remedy.startswith("check the profile")


# --- what other stores answer ---


FINAL = {
    "expired": (EXPIRED_TOKEN, "the credentials have expired", "renew them"),
    "expired, refused": (s3_error(403, "ExpiredToken"), "the credentials have expired", "renew them"),
    "clock": (CLOCK_SKEW, "this machine's clock is wrong", "set the clock"),
    "archived": (ARCHIVED, "the object is in an archive tier", "restore (thaw) it first"),
    "region": (OTHER_REGION, "the bucket is in another region", "add region="),
    "region, refused": (
        s3_error(400, "AuthorizationHeaderMalformed", text="the region 'us-east-1' is wrong; expecting 'eu-west-7'"),
        "the bucket is in another region",
        "add region=",
    ),
    "key disabled": (s3_error(400, "KMS.DisabledException"), "the encryption key of the store", "check sse=kms:KEY-ID"),
    "key forbidden": (
        s3_error(403, "AccessDenied", text="User is not authorized to perform: kms:GenerateDataKey"),
        "the encryption key of the store",
        "check sse=kms:KEY-ID",
    ),
    "no words": (Answer(403), "no permission", "give the role the rights"),
    "quota": (s3_error(403, "QuotaExceeded", text="no more space"), "403 Forbidden (QuotaExceeded: no more space)", ""),
    "unsupported": (s3_error(501, "NotImplemented"), "501 Not Implemented", "correct the store's URL"),
    "malformed": (s3_error(400, "InvalidArgument", text="no"), "400 Bad Request (InvalidArgument: no)", "correct"),
}
PASSING = {
    "slow down": (SLOW_DOWN, "503 Service Unavailable (SlowDown: Please reduce your request rate.)"),
    "unavailable": (UNAVAILABLE, "503 Service Unavailable"),
    "gateway": (Answer(502, b"<html>bad gateway</html>"), "502 Bad Gateway"),
    "internal": (INTERNAL_ERROR, "500 Internal Server Error"),
    "too many": (TOO_MANY_REQUESTS, "429 Too Many Requests"),
    "timed out": (s3_error(400, "RequestTimeout"), "RequestTimeout"),
    "damaged": (s3_error(400, "BadDigest"), "BadDigest"),
    "a conflict": (s3_error(409, "OperationAborted"), "OperationAborted"),
    "a log-in page": (Answer(200, ErrorPage().body, (("Content-Type", "text/html"),)), ""),
}


@pytest.mark.parametrize("case", FINAL)
def test_refusals_that_need_somebody(
    seaweed: SeaweedServer, fault_proxy: FaultProxy, aws: None, prefix: str, case: str
) -> None:
    answer, told, remedy = FINAL[case]
    rule = fault_proxy.inject(answer)
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint))
    for name, use in all_uses(store).items():
        error = refusal(use)
        assert isinstance(error, UserError), f"{name}: {error!r}"
        assert told in error.message
        assert error.remedy.startswith(remedy)
    assert rule.num_hits >= 5, "the fault did not happen, so this proves nothing"


@pytest.mark.parametrize("case", PASSING)
def test_answers_that_pass(seaweed: SeaweedServer, fault_proxy: FaultProxy, aws: None, prefix: str, case: str) -> None:
    answer, told = PASSING[case]
    rule = fault_proxy.inject(answer)
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint))
    for name, use in all_uses(store).items():
        error = refusal(use)
        assert isinstance(error, Transient), f"{name}: {error!r}"
        assert told in error.message
    assert rule.num_hits >= 5
    fault_proxy.clear()
    for use in all_uses(store).values():
        use()


def test_one_bad_answer_is_sat_out(seaweed: SeaweedServer, fault_proxy: FaultProxy, aws: None, prefix: str) -> None:
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint))
    for use in all_uses(store).values():
        rule = fault_proxy.inject(UNAVAILABLE, times=1)
        use()
        assert rule.num_hits == 1


def test_names_of_objects_say_nothing_about_errors(
    seaweed: SeaweedServer, fault_proxy: FaultProxy, aws: None, prefix: str
) -> None:
    fault_proxy.inject(UNAVAILABLE)
    store = opened(seaweed.url(f"{prefix}/kms:key", endpoint=fault_proxy.endpoint))
    for key in ("KMS", "kms:Decrypt", "AccessDenied", "<Code>NoSuchBucket", "token has expired", "customer provided"):
        assert isinstance(refusal(lambda key=key: store.put(key, b"")), Transient)


def test_objects_of_somebody_else(seaweed: SeaweedServer, s3_url: str, prefix: str) -> None:
    store, client = opened(s3_url), seaweed.client()
    for key in ("", "images/", "images/train/", "images/train/a b+c%20.jpg", "empty"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=b"x" if key.endswith("jpg") else b"")
    assert [listed.key for listed in store.list("")] == ["empty", "images/train/a b+c%20.jpg"]
    assert store.get("images/train/a b+c%20.jpg").data == b"x"
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/tab\tname", Body=b"")
    error = refusal(lambda: store.list(""))
    assert isinstance(error, UserError)
    assert "tab name" in error.message
    assert error.remedy == "rename that object, or move it elsewhere"


# --- networks ---


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Reset(), "the connection to the store broke"),
        (Reset(is_midway=True), "the connection to the store broke"),
        (LostAnswer(is_reset=True), "the connection to the store broke"),
        (LostAnswer(), "the store did not answer in time"),
        (Silence(), "the store did not answer in time"),
    ],
)
def test_broken_connections(
    seaweed: SeaweedServer, fault_proxy: FaultProxy, s3_url: str, prefix: str, fault: Fault, told: str
) -> None:
    opened(s3_url).put("a/b", b"0")
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint), timeout_s=TIMEOUT_S / 4)
    for use in all_uses(store).values():
        rule = fault_proxy.inject(fault)
        start_s = time.monotonic()
        error = refusal(use)
        assert time.monotonic() - start_s < 10
        assert isinstance(error, Transient)
        assert told in error.message
        assert "check the network" in error.remedy
        assert rule.num_hits
        fault_proxy.clear()
        use()


def test_a_truncated_answer(seaweed: SeaweedServer, fault_proxy: FaultProxy, aws: None, prefix: str) -> None:
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint))
    store.put("a/b", b"1" * 1000)
    rule = fault_proxy.inject(Truncated())
    for read in (lambda: store.get("a/b"), lambda: store.list("")):
        assert isinstance(refusal(read), Transient)
    assert rule.num_hits >= 2


def test_a_list_that_is_damaged(seaweed: SeaweedServer, fault_proxy: FaultProxy, aws: None, prefix: str) -> None:
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint))
    for number in range(5):
        store.put(f"a/{number}", b"")
    before = store.list("")
    rule = fault_proxy.inject(Flipped(), times=1)
    try:  # the bit may be in a part that nobody reads
        assert len(store.list("")) == len(before)
    except SteadyError as error:
        assert isinstance(error, Transient)
    assert rule.num_hits == 1


def test_nobody_listens(seaweed: SeaweedServer, fault_proxy: FaultProxy, aws: None, prefix: str) -> None:
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint))
    fault_proxy.go_down()
    for use in all_uses(store).values():
        error = refusal(use)
        assert isinstance(error, Transient)
        assert "the store cannot be reached" in error.message
    fault_proxy.come_up()
    store.put("a/b", b"1")


def test_a_restart_of_the_server_is_sat_out(own_seaweed: SeaweedServer, aws: None) -> None:
    store = opened(own_seaweed.url("runs"))
    store.put("a", b"1")
    tag = store.put_if("claim", b"mine", tag=None)
    own_seaweed.kill()
    assert isinstance(refusal(lambda: store.put("b", b"2")), Transient)
    own_seaweed.restart()
    assert store.get("a").data == b"1"
    assert store.get("claim").tag == tag
    store.put("b", b"2")


# --- what is confirmed ---


def test_a_store_that_says_yes_and_keeps_nothing_is_not_believed(
    seaweed: SeaweedServer, fault_proxy: FaultProxy, aws: None, prefix: str
) -> None:
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint))
    yes = Answer(200, fields=(("ETag", '"00000000000000000000000000000000"'),))
    rule = fault_proxy.inject(yes, method="PUT")
    error = refusal(lambda: store.put("a", b"1"))
    assert isinstance(error, Transient)
    assert "is not what was sent" in error.message
    fault_proxy.clear()
    store.put("a", b"0")
    rule = fault_proxy.inject(yes, method="PUT")
    assert isinstance(refusal(lambda: store.put("a", b"1")), Transient)
    assert rule.num_hits == 1


@pytest.mark.parametrize(
    "fault", [LostAnswer(), LostAnswer(is_reset=True), s3_error(500, "InternalError", is_committed=True)]
)
@pytest.mark.parametrize("is_update", [False, True])
def test_a_claim_whose_answer_is_lost_is_known_for_ones_own(
    seaweed: SeaweedServer, fault_proxy: FaultProxy, s3_url: str, prefix: str, fault: Fault, is_update: bool
) -> None:
    direct = opened(s3_url)
    tag = direct.put_if("claim", b"predecessor", tag=None) if is_update else None
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint), timeout_s=TIMEOUT_S)
    rule = fault_proxy.inject(fault, method="PUT", times=1)
    try:
        mine = store.put_if("claim", b"mine", tag=tag)
    except Transient:
        mine = store.put_if("claim", b"mine", tag=tag)  # as its docstring allows
    assert rule.num_hits == 1
    assert direct.get("claim").data == b"mine"
    assert direct.get("claim").tag == mine
    with pytest.raises(Taken):
        direct.put_if("claim", b"somebody else's", tag=tag)


def test_a_claim_of_somebody_else_is_known_for_theirs(
    seaweed: SeaweedServer, fault_proxy: FaultProxy, s3_url: str, prefix: str
) -> None:
    store = opened(seaweed.url(prefix, endpoint=fault_proxy.endpoint))
    rule = fault_proxy.inject(Reset(), method="PUT", times=1)
    with pytest.raises(Transient):
        store.put_if("claim", b"mine", tag=None)
    assert rule.num_hits == 1
    opened(s3_url).put_if("claim", b"theirs", tag=None)
    with pytest.raises(Taken):
        store.put_if("claim", b"mine", tag=None)


# --- Azure, and answers that nobody here gives ---


def test_azure_refuses(azurite: AzuriteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in azurite.variables.items():
        monkeypatch.setenv(name, value)
    uses = all_uses(opened("az://no-such-container/runs"))
    uses.pop("delete")()  # Azure says of each object only that it is not there
    for use in uses.values():
        error = refusal(use)
        assert isinstance(error, UserError)
        assert "the bucket does not exist" in error.message
    wrong_key = base64.b64encode(TOKEN.encode()).decode()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", wrong_key)
    for use in all_uses(opened(f"az://{CONTAINER}/runs")).values():
        error = refusal(use)
        assert isinstance(error, UserError)
        assert "no permission" in error.message
        assert wrong_key not in str(error)


def test_without_an_account_there_is_no_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"):
        monkeypatch.delenv(name, raising=False)
    error = refusal(lambda: opened("az://container/runs").get("a"))
    assert isinstance(error, UserError)
    assert "no credentials were found" in error.message


def answered(status: str, code: str, text: str, *, url: str = "https://host/bucket/key") -> str:
    body = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>" if code else text
    return (
        f"Generic store error: Error performing PUT {url} in 3.1ms, after 1 retries, max_retries: 1, retry_timeout: 20s"
        f"  - Server returned non-2xx status code: {status}: {body}\n\nDebug source:\nGeneric {{ <Code>Other</Code> }}"
    )


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (answered("409 Conflict", "BlobArchived", "This operation is not permitted"), UserError, "archive tier"),
        (answered("403 Forbidden", "AuthenticationFailed", "Server failed"), UserError, "secret of the credentials"),
        (answered("403 Forbidden", "AuthorizationPermissionMismatch", ""), UserError, "no permission"),
        (answered("503 Service Unavailable", "ServerBusy", "over the limit"), Transient, "ServerBusy"),
        (answered("401 Unauthorized", "", "<html>who?</html>"), UserError, "does not know the credentials"),
        (
            answered("400 Bad Request", "InvalidRequest", "stored using a form of Server Side Encryption. The correct"),
            UserError,
            "key of the customer's",
        ),
        (
            answered("403 Forbidden", "", "denied", url="http://169.254.169.254/metadata/identity/oauth2/token?x=1"),
            UserError,
            "no credentials were found",
        ),
    ],
)
def test_answers_of_other_providers(error: str, kind: type[SteadyError], told: str) -> None:
    ours = sorted_error("put", "key in az://bucket", raised.GenericError(error))
    assert type(ours) is kind
    assert told in ours.message


def test_errors_by_type() -> None:
    forbidden = raised.GenericError("Bulk delete request failed for key runs/a: This is not for you. (code: 403)")
    assert "no permission" in sorted_error("delete", "key", forbidden).message
    gone = FileNotFoundError(answered("404 Not Found", "NoSuchKey", "no"))
    assert isinstance(sorted_error("get", "key", gone), Absent)
    taken = raised.PreconditionError(answered("412 Precondition Failed", "PreconditionFailed", "no"))
    assert isinstance(sorted_error("put_if", "key", taken), Taken)
    assert isinstance(sorted_error("put", "key", taken), Transient)
    assert isinstance(sorted_error("put_if", "key", NotImplementedError("conditional put")), UserError)
    assert isinstance(sorted_error("open", "url", ValueError("bad endpoint")), UserError)


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://host/c/k?sv=1&sig={TOKEN}&se=2 failed",
        f"header X-Amz-Security-Token: {TOKEN}",
        f"Authorization: AWS4-HMAC-SHA256 Credential={ADMIN.access_key}/2026/us-east-1, Signature={TOKEN}",
        f'secret_access_key: "{ADMIN.secret_key}", access_key_id: "{ADMIN.access_key}"',
    ],
)
def test_texts_that_nobody_foresaw_are_cleaned(text: str) -> None:
    refusal(lambda: (_ for _ in ()).throw(sorted_error("get", "key", raised.GenericError(text))))
