"""The Open Inference Protocol: Triton's own client works unchanged, and wrong tensors are refused precisely."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.unit.adapters.http.front import Reply, Running, running
from tests.unit.adapters.http.plain_service import SIDE_PX, small_graph

SHAPE = (1, 3, SIDE_PX, SIDE_PX)


@pytest.fixture
def client(front: Running) -> Any:
    made = triton.InferenceServerClient(f"127.0.0.1:{front.port}")
    yield made
    made.close()


def images(num_images: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((num_images, *SHAPE[1:]), np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(small_graph(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": batch})[0]


def asked(batch: np.ndarray, *, binary: bool) -> list[triton.InferInput]:
    one = triton.InferInput("images", list(batch.shape), "FP32")
    one.set_data_from_numpy(batch, binary_data=binary)
    return [one]


@pytest.mark.parametrize("binary_in", [True, False], ids=["bytes in", "JSON in"])
@pytest.mark.parametrize("binary_out", [True, False, None], ids=["bytes out", "JSON out", "nothing asked"])
@pytest.mark.parametrize("packed", ["gzip", "deflate", None])
def test_tensors_go_through_unchanged(
    client: Any, binary_in: bool, binary_out: bool | None, packed: str | None
) -> None:
    batch = images(2)
    wanted = None if binary_out is None else [triton.InferRequestedOutput("output0", binary_data=binary_out)]
    answer = client.infer(
        "small",
        asked(batch, binary=binary_in),
        outputs=wanted,
        request_id="seven",
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
        timeout=5_000_000,
    )
    assert answer.get_response()["id"] == "seven"
    assert answer.get_response()["model_version"] == "0123456789ab"
    np.testing.assert_array_equal(answer.as_numpy("output0"), expected(batch))


def test_the_client_sees_server_and_models(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("small") and client.is_model_ready("small", "0123456789ab")
    assert not client.is_model_ready("none") and not client.is_model_ready("small", "none")
    assert client.get_server_metadata()["name"] == "steadyolo"
    about = client.get_model_metadata("small")
    assert about["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, SIDE_PX, SIDE_PX]}]
    assert about["outputs"] == [{"name": "output0", "datatype": "FP32", "shape": [-1, 6, -1]}]
    assert client.get_model_config("small", "0123456789ab")["input"][0]["data_type"] == "TYPE_FP32"
    assert client.get_model_repository_index() == [
        {"name": "small", "version": "0123456789ab", "state": "READY", "reason": ""}
    ]


def test_the_client_unloads_and_loads(client: Any) -> None:
    client.unload_model("small")
    assert not client.is_model_ready("small") and not client.is_server_ready()
    with pytest.raises(InferenceServerException, match="unloaded"):
        client.infer("small", asked(images(), binary=True))
    client.load_model("small")
    assert client.is_model_ready("small")
    with pytest.raises(InferenceServerException, match="parameters"):
        client.load_model("small", config="{}")


def test_asynchronous_requests_are_answered(client: Any, front: Running) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{front.port}", concurrency=4)
    waiting = [client.async_infer("small", asked(images(), binary=True)) for _ in range(20)]
    for one in waiting:
        np.testing.assert_array_equal(one.get_result().as_numpy("output0"), expected(images()))
    client.close()


@pytest.mark.parametrize(
    ("name", "version", "text"), [("none", "", "no model is named"), ("small", "9", "has no version '9'")]
)
def test_the_client_reads_why(client: Any, name: str, version: str, text: str) -> None:
    with pytest.raises(InferenceServerException, match=text) as raised:
        client.infer(name, asked(images(), binary=True), model_version=version)
    assert raised.value.status() == "404"


def infer(front: Running, request: Any, tail: bytes = b"", **headers: str) -> Reply:
    head = request if isinstance(request, bytes) else json.dumps(request).encode()
    if tail:
        headers.setdefault("inference_header_content_length", str(len(head)))
    return front.ask("POST", "/v2/models/small/infer", head + tail, **headers)


def tensor(**changes: Any) -> dict[str, Any]:
    given = {"name": "images", "shape": list(SHAPE), "datatype": "FP32", "data": [0.5] * int(np.prod(SHAPE))}
    return {"inputs": [{name: value for name, value in {**given, **changes}.items() if value is not None}]}


WRONG: dict[str, Any] = {
    "no JSON": b"{",
    "a list": [],
    "deep": b"[" * 100_000,
    "NaN": b'{"inputs": NaN}',
    "no inputs": {},
    "two inputs": {"inputs": tensor()["inputs"] * 2},
    "an input that is a number": {"inputs": [1]},
    "name": tensor(name="image"),
    "datatype": tensor(datatype="FP16"),
    "no datatype": tensor(datatype=None),
    "rank": tensor(shape=[3, SIDE_PX, SIDE_PX]),
    "side": tensor(shape=[1, 3, SIDE_PX, SIDE_PX + 32]),
    "empty batch": tensor(shape=[0, 3, SIDE_PX, SIDE_PX]),
    "negative": tensor(shape=[-1, 3, SIDE_PX, SIDE_PX]),
    "true for one": tensor(shape=[True, 3, SIDE_PX, SIDE_PX]),
    "text for a side": tensor(shape=["1", 3, SIDE_PX, SIDE_PX]),
    "too few": tensor(data=[0.5]),
    "text": tensor(data=["a"] * int(np.prod(SHAPE))),
    "ragged": tensor(data=[[0.5], [0.5, 0.5]]),
    "no data": tensor(data=None),
    "too large a number": tensor(data=[1e39] * int(np.prod(SHAPE))),
    "shared memory": tensor(data=None, parameters={"shared_memory_region": "a", "shared_memory_byte_size": 4}),
    "bytes that do not follow": tensor(data=None, parameters={"binary_data_size": 4}),
    "parameters": {**tensor(), "parameters": 1},
    "timeout": {**tensor(), "parameters": {"timeout": -1}},
    "id": {**tensor(), "id": 1},
    "output": {**tensor(), "outputs": [{"name": "none"}]},
    "output twice": {**tensor(), "outputs": [{"name": "output0"}] * 2},
    "output's parameters": {**tensor(), "outputs": [{"name": "output0", "parameters": {"classification": 1}}]},
    "outputs": {**tensor(), "outputs": "output0"},
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_tensor_is_refused(front: Running, kind: str) -> None:
    before = front.service.num_asked
    reply = infer(front, WRONG[kind])
    assert (reply.status, reply.json["code"]) == (400, "bad_tensor")
    assert isinstance(reply.json["error"], str) and reply.json["remedy"]
    assert front.service.num_asked == before, "it was computed all the same"


@pytest.mark.parametrize("length", ["0", "-1", "x", "99999999", "9" * 40])
def test_a_wrong_length_of_the_head_is_refused(front: Running, length: str) -> None:
    assert infer(front, tensor(), inference_header_content_length=length).status == 400


def test_bytes_and_their_number_have_to_agree(front: Running) -> None:
    num_bytes = 4 * int(np.prod(SHAPE))
    right = tensor(data=None, parameters={"binary_data_size": num_bytes})
    assert infer(front, right, b"\0" * num_bytes).status == 200
    assert infer(front, right, b"\0" * (num_bytes - 1)).status == 400
    assert infer(front, tensor(), b"\0").status == 400
    assert infer(front, right, b"\xff" * num_bytes).json["error"].endswith("not finite")


def test_without_tokens_and_off_this_machine_nobody_loads_models() -> None:
    with running(may_control=False) as front:
        for verb in ("load", "unload"):
            reply = front.ask("POST", f"/v2/repository/models/small/{verb}")
            assert (reply.status, reply.json["code"]) == (403, "not_allowed")
        assert front.ask("GET", "/v2/models/small/ready").status == 200
