"""`steadyolo store provision` against real servers: what it says of a bucket is what is there."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import typer
from botocore import auth
from botocore.exceptions import ClientError
from typer.testing import CliRunner, Result

from steadyolo.adapters.objects.bucket import S3Bucket, look, provision
from steadyolo.adapters.objects.opening import open_store
from steadyolo.cli import store_provision
from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.plan.bucket import Change
from steadyolo.plan.bucket_policy import policies
from steadyolo.spec.bucket import Lock, Replica, wanted_bucket
from steadyolo.spec.location import parse_location
from steadyolo.testing.free_ports import free_ports
from tests.servers import ministack
from tests.servers.seaweed import ADMIN, READER, Identity, SeaweedServer, aws_environment

ROLE = "arn:aws:iam::123456789012:role/copy"
PREFIX = "line-3"
GUARDED = "guarded-by-policies"  # the one bucket that the identities' policies name

app = typer.Typer()
app.command()(store_provision.provision)


def policy_of(role: str) -> dict[str, Any]:
    location = parse_location(f"s3://{GUARDED}/{PREFIX}")
    return policies(wanted_bucket(location, region="us-east-1", lock=Lock()))[role]


TRAINER = Identity(
    name="trainer", access_key="STEADYTRAINER", secret_key="steady-trainer-SECRET-1", policy=policy_of("train")
)
PRUNER = Identity(
    name="pruner", access_key="STEADYPRUNER", secret_key="steady-pruner-SECRET-2", policy=policy_of("prune")
)


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    identities = (ADMIN, READER, TRAINER, PRUNER)
    with SeaweedServer(tmp_path_factory.mktemp("seaweed"), identities=identities) as server:
        yield server


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ministack.ministack(tmp_path_factory.mktemp("ministack")) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def _administrator() -> Iterator[None]:
    with aws_environment(ADMIN):
        yield


@pytest.fixture
def name() -> str:
    return f"pcb-{uuid.uuid4().hex[:12]}"


def run(*arguments: str) -> Result:
    """Run the command. An error of ours is raised, as the command line would tell it."""
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, SteadyError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def settings(result: Result) -> dict[str, dict[str, Any]]:
    return {one["setting"]: one for one in json.loads(result.stdout)["settings"]}


def statuses(result: Result) -> dict[str, str]:
    return {name: one["status"] for name, one in settings(result).items()}


def url(endpoint: str, name: str, options: str = "") -> str:
    return f"s3://{name}/{PREFIX}?endpoint={endpoint}{options}"


# --- ministack: everything but replication ---------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_shows_what_is_sent(mini: str, name: str) -> None:
    client = ministack.client(mini)
    shown = settings(run(url(mini, name), "--json"))
    assert {one["status"] for one in shown.values()} == {"differs"}
    with pytest.raises(ClientError, match="NoSuchBucket"):
        client.get_bucket_versioning(Bucket=name)

    client.create_bucket(Bucket=name)
    location = parse_location(url(mini, name))
    wanted = wanted_bucket(location, region="us-east-1", lock=Lock())
    shown_changes = [one.change for one in look(S3Bucket(location), wanted) if one.change]
    sent: list[Change] = []

    class Watched(S3Bucket):
        def send(self, change: Change) -> Any:
            sent.append(change)
            return super().send(change)

    provision(Watched(location), wanted)
    assert sent == shown_changes
    assert {change.operation for change in sent} == {
        "PutBucketVersioning",
        "PutPublicAccessBlock",
        "PutBucketLifecycleConfiguration",
        "PutObjectLockConfiguration",
    }, "a bucket is born encrypted; everything else had to be sent"


def test_what_is_said_to_hold_is_there(mini: str, name: str) -> None:
    client = ministack.client(mini)
    assert set(statuses(run(url(mini, name), "--apply", "--json")).values()) == {"holding"}
    assert client.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    assert all(client.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"].values())
    clean_up, tiers = client.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    assert clean_up["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert [(move["Days"], move["StorageClass"]) for move in tiers["Transitions"]] == [
        (30, "STANDARD_IA"),
        (90, "GLACIER"),
    ]
    assert clean_up["Filter"] == tiers["Filter"] == {"Prefix": f"{PREFIX}/"}
    lock = client.get_object_lock_configuration(Bucket=name)["ObjectLockConfiguration"]
    assert lock["Rule"]["DefaultRetention"] == {"Mode": "GOVERNANCE", "Days": 30}

    again = settings(run(url(mini, name), "--json"))
    assert {one["status"] for one in again.values()} == {"holding"}
    assert all(one["change"] is None for one in again.values())


def test_settings_are_adjusted_and_rules_of_others_kept(mini: str, name: str) -> None:
    client = ministack.client(mini)
    client.create_bucket(Bucket=name)
    theirs = {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}}
    client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [theirs]})

    def rules() -> dict[str, dict[str, Any]]:
        return {rule["ID"]: rule for rule in client.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]}

    asked = ("--archive", "400:DEEP_ARCHIVE", "--infrequent", "never", "--lock", "none", "--old-versions", "5")
    assert set(statuses(run(url(mini, name), *asked, "--apply", "--json")).values()) == {"holding"}
    tiers, clean_up = f"steadyolo tiers {PREFIX}/", f"steadyolo clean-up {PREFIX}/"
    assert rules().keys() == {"logs", tiers, clean_up}
    assert rules()["logs"] == theirs
    assert rules()[tiers]["Transitions"] == [{"Days": 400, "StorageClass": "DEEP_ARCHIVE"}]
    assert rules()[clean_up]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 5}
    with pytest.raises(ClientError, match="ObjectLockConfigurationNotFoundError"):
        client.get_object_lock_configuration(Bucket=name)

    never = ("--archive", "never", "--infrequent", "never", "--lock", "none")
    run(url(mini, name), *never, "--old-versions", "never", "--partial-uploads", "never", "--apply")
    assert rules() == {"logs": theirs}


def test_a_setting_that_the_store_keeps_in_part_is_not_claimed(mini: str, name: str) -> None:
    """ministack takes the rule of replication and forgets that deletions are to be left out."""
    client = ministack.client(mini)
    copy = f"{name}-copy"
    run(url(mini, copy), "--apply")
    location = parse_location(url(mini, name))
    replica = Replica(bucket=copy, role=ROLE)
    wanted = wanted_bucket(location, region="us-east-1", lock=Lock(), replica=replica)
    found = {one.setting: one for one in provision(S3Bucket(location), wanted, settle_s=0.2)}
    assert client.get_bucket_replication(Bucket=name)["ReplicationConfiguration"]["Role"] == ROLE
    assert found["replication"].status == "differs"
    assert "does not show it" in found["replication"].why
    assert {one.status for setting, one in found.items() if setting != "replication"} == {"holding"}


def test_doctor_finds_what_differs(mini: str, name: str) -> None:
    location = parse_location(url(mini, name))
    (missing,) = store_provision.examine_bucket(location)
    assert missing.level == "problem"
    assert "--apply" in missing.remedy

    run(url(mini, name), "--apply")
    found = {one.name: one.level for one in store_provision.examine_bucket(location)}
    assert found.pop("bucket replication") == "warning"
    assert set(found.values()) == {"ok"}

    client = ministack.client(mini)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Suspended"})
    rules = client.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    bad = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 3}}
    client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [*rules, bad]})
    found = {one.name: one.level for one in store_provision.examine_bucket(location) if one.level != "ok"}
    assert found == {"bucket versioning": "warning", "bucket replication": "warning", "bucket rules": "problem"}
    assert json.loads(run(url(mini, name), "--json").stdout)["rules_that_delete"] == ["tidy"]


# --- SeaweedFS: real signatures, encryption, locks and policies ------------------------------------------------------


def test_what_a_store_lacks_is_told_and_the_rest_is_set(weed: SeaweedServer, name: str) -> None:
    replica = ("--replica", "s3://elsewhere", "--replication-role", ROLE)
    result = run(url(weed.endpoint, name), *replica, "--apply", "--json")
    assert statuses(result) == {
        "bucket": "holding",
        "versioning": "holding",
        "encryption": "holding",
        "public access": "unsupported",
        "clean-up": "holding",
        "tiers": "unsupported",
        "object lock": "holding",
        "replication": "unsupported",  # the request is taken for CreateBucket
    }
    assert set(json.loads(result.stdout)["policies"]) == {"train", "prune", "replicate"}
    assert weed.client().list_objects_v2(Bucket=name)["KeyCount"] == 0, "the bucket is still there"


def test_what_was_set_protects(weed: SeaweedServer, name: str) -> None:
    run(url(weed.endpoint, name, "&sse=kms:alias/seaweedfs-default"), "--lock", "governance:1", "--apply")
    client = weed.client()
    version = client.put_object(Bucket=name, Key="a", Body=b"first")["VersionId"]
    client.put_object(Bucket=name, Key="a", Body=b"second")
    client.delete_object(Bucket=name, Key="a")
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(Bucket=name, Key="a", VersionId=version)
    kept = client.get_object(Bucket=name, Key="a", VersionId=version)
    assert kept["Body"].read() == b"first"
    assert kept["ServerSideEncryption"] == "aws:kms"


def test_without_provisioning_nothing_protects(weed: SeaweedServer, name: str) -> None:
    client = weed.client()
    client.create_bucket(Bucket=name)
    client.put_object(Bucket=name, Key="a", Body=b"first")
    client.put_object(Bucket=name, Key="a", Body=b"second")
    assert [one["VersionId"] for one in client.list_object_versions(Bucket=name)["Versions"]] == ["null"]
    client.delete_object(Bucket=name, Key="a", VersionId="null")
    with pytest.raises(ClientError, match="NoSuchKey"):
        client.get_object(Bucket=name, Key="a")


def allowed(work: Callable[[], Any]) -> bool:
    try:
        answer = work()
    except ClientError as error:  # refused for another reason: the right was there
        return str(error.response["Error"]["Code"]) != "AccessDenied"
    return not answer.get("Errors")  # several deletions in one request are answered one by one


def rights(weed: SeaweedServer, identity: Identity, bucket: str) -> set[str]:
    """What `identity` may do in `bucket`, tried out: under the prefix ("here"), beside it, and to the bucket."""
    admin, client = weed.client(), weed.client(identity)
    here, there = f"{PREFIX}/a", "line-4/a"
    admin.put_object(Bucket=bucket, Key=there, Body=b"x")
    version = admin.put_object(Bucket=bucket, Key=here, Body=b"x")["VersionId"]

    def can(operation: str, **parameters: Any) -> bool:
        return allowed(lambda: getattr(client, operation)(Bucket=bucket, **parameters))

    both = {"here": here, "there": there}
    rules = {"Rules": [{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]}
    until = {"Mode": "GOVERNANCE", "RetainUntilDate": "2099-01-01T00:00:00Z"}
    lock = {"ObjectLockEnabled": "Enabled"}
    found = {
        **{f"list {where}": can("list_objects_v2", Prefix=key[:-1]) for where, key in both.items()},
        **{f"get {where}": can("get_object", Key=key) for where, key in both.items()},
        **{f"put {where}": can("put_object", Key=key, Body=b"y") for where, key in both.items()},
        **{f"delete {where}": can("delete_object", Key=key) for where, key in both.items()},
        "delete many": can("delete_objects", Delete={"Objects": [{"Key": here}]}),
        "list all": can("list_objects_v2"),
        "lengthen a lock": can("put_object_retention", Key=here, VersionId=version, Retention=until),
        "delete a version": can("delete_object", Key=here, VersionId=version, BypassGovernanceRetention=True),
        "versioning": can("put_bucket_versioning", VersioningConfiguration={"Status": "Suspended"}),
        "lifecycle": can("put_bucket_lifecycle_configuration", LifecycleConfiguration=rules),
        "no lifecycle": can("delete_bucket_lifecycle"),
        "lock": can("put_object_lock_configuration", ObjectLockConfiguration=lock),
        "policy": can("put_bucket_policy", Policy="{}"),
        "delete the bucket": can("delete_bucket"),
    }
    return {right for right, has in found.items() if has}


def test_the_policies_allow_what_is_needed_and_no_more(weed: SeaweedServer) -> None:
    run(url(weed.endpoint, GUARDED), "--lock", "governance:1", "--apply")
    assert rights(weed, TRAINER, GUARDED) == {"list here", "get here", "put here"}
    assert rights(weed, PRUNER, GUARDED) == {"list here", "get here", "delete here", "delete many"}


def test_without_the_policies_everything_is_allowed(weed: SeaweedServer, name: str) -> None:
    run(url(weed.endpoint, name), "--lock", "governance:1", "--apply")
    assert len(rights(weed, ADMIN, name)) == 18


def test_a_store_works_with_the_training_role(weed: SeaweedServer) -> None:
    run(url(weed.endpoint, GUARDED), "--lock", "governance:1", "--apply")
    with aws_environment(TRAINER):
        store = open_store(parse_location(url(weed.endpoint, GUARDED)))
        store.put("run/file", b"first")
        store.put("run/file", b"second")
        tag = store.put_if("run/writer", b"a", tag=None)
        store.put_if("run/writer", b"b", tag=tag)
        assert store.get("run/file").data == b"second"
        assert {listed.key for listed in store.list("run/")} == {"run/file", "run/writer"}
        with pytest.raises(UserError, match="no permission"):
            store.delete("run/file")


def test_the_training_role_may_not_look_and_is_told_so(weed: SeaweedServer) -> None:
    run(url(weed.endpoint, GUARDED), "--lock", "governance:1", "--apply")
    with aws_environment(TRAINER):
        found = store_provision.examine_bucket(parse_location(url(weed.endpoint, GUARDED)))
        result = run(url(weed.endpoint, GUARDED), "--apply", "--json")
    assert {one.level for one in found} == {"warning"}
    assert all("no permission" in one.text for one in found)
    assert set(statuses(result).values()) == {"unreadable"}
    assert result.exit_code == 1


# --- bad input -------------------------------------------------------------------------------------------------------


WRONG_SECRET = Identity(name="admin", access_key=ADMIN.access_key, secret_key="wrong-SECRET-wrong")
NOBODY = Identity(name="nobody", access_key="STEADYNOBODY", secret_key="nobody-SECRET-nobody")


@pytest.mark.parametrize(
    ("identity", "says"),
    [
        (WRONG_SECRET, "the secret of the credentials is wrong"),
        (NOBODY, "does not know the credentials"),
        (None, "no credentials for S3 were found"),
    ],
)
def test_wrong_credentials_are_told_and_not_repeated(
    weed: SeaweedServer, name: str, identity: Identity | None, says: str
) -> None:
    with aws_environment(identity), pytest.raises(UserError) as caught:
        run(url(weed.endpoint, name))
    assert says in caught.value.message
    assert "-SECRET-" not in str(caught.value)


def test_an_unknown_profile_is_told(weed: SeaweedServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match="profile"):
        run(url(weed.endpoint, name))


def test_a_wrong_clock_is_told(weed: SeaweedServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = auth.get_current_datetime
    monkeypatch.setattr(auth, "get_current_datetime", lambda *given: now(*given) + timedelta(hours=3))
    with pytest.raises(UserError, match="clock is wrong") as caught:
        run(url(weed.endpoint, name))
    assert caught.value.remedy.startswith("set the clock")


def test_a_role_that_only_reads_changes_nothing(weed: SeaweedServer, name: str) -> None:
    weed.client().create_bucket(Bucket=name)
    with aws_environment(READER):
        result = run(url(weed.endpoint, name), "--apply", "--json")
    assert result.exit_code == 1
    assert "holding" not in statuses(result).values()
    assert "Status" not in weed.client().get_bucket_versioning(Bucket=name)


def test_a_bucket_that_cannot_be_made_is_told(weed: SeaweedServer, name: str) -> None:
    with aws_environment(READER), pytest.raises(UserError, match=f"{name} cannot be made"):
        run(url(weed.endpoint, name), "--apply")


def test_a_server_that_is_not_there_is_told(name: str) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Transient, match="Could not connect"):
        run(url(f"http://127.0.0.1:{port}", name))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--replica", "s3://elsewhere"),
        ("--replication-role", ROLE),
        ("--replica", "gs://elsewhere", "--replication-role", ROLE),
        ("--replica", "s3://elsewhere?endpoint=https://other.example", "--replication-role", ROLE),
    ],
)
def test_a_replica_that_cannot_be_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UserError):
        run("s3://bucket/prefix", *arguments)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("gs://bucket/line-3", "gcloud storage buckets update gs://bucket --versioning"),
        ("az://container/line-3", "az storage account blob-service-properties update"),
        ("file:///mnt/disk", "a folder has no such settings"),
    ],
)
def test_other_places_are_left_to_their_own_tools(place: str, says: str) -> None:
    shown = run(place)
    assert says in shown.stdout
    assert shown.exit_code == 0
    assert run(place, "--apply").exit_code == 1, "nothing was applied, and that is no success"
    assert "by_hand" in json.loads(run(place, "--json").stdout)
    (found,) = store_provision.examine_bucket(parse_location(place))
    assert found.level == ("ok" if place.startswith("file") else "warning")


def test_what_people_read(weed: SeaweedServer, name: str) -> None:
    text = run(url(weed.endpoint, name)).stdout
    assert "differs      versioning: older versions are kept" in text
    assert 'send: PutBucketVersioning {"Bucket": ' in text
    assert "nothing was changed" in text
    assert "policy of the role that may train" in text
    assert ADMIN.access_key not in text
