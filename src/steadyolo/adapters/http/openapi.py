"""The OpenAPI document: written by hand, and held true by requests that are made from it."""

from __future__ import annotations

from typing import Any

from steadyolo.adapters.http.questions import MAX_CLASS, MAX_DET, MAX_TEXT
from steadyolo.version import __version__

_TEXT: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": "number"}
_FLAG: dict[str, Any] = {"type": "boolean"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_ANY: dict[str, Any] = {"type": "object"}


def _object(**fields: Any) -> dict[str, Any]:
    """An object with these fields; a name that ends in `_` may be left out."""
    properties = {name.removesuffix("_"): field for name, field in fields.items()}
    return {"type": "object", "properties": properties, "required": [one for one in fields if not one.endswith("_")]}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_ANSWER = _object(
    model=_TEXT,
    version=_TEXT,
    session={**_TEXT, "description": "runtime, device and precision that computed it"},
    image=_object(height=_COUNT, width=_COUNT),
    objects={**_list(_ANY), "description": "as Ultralytics' Results.summary(), in pixels of the picture"},
    seconds={"type": "object", "additionalProperties": _NUMBER, "description": "by stage"},
    file_=_TEXT,
)
_MODEL = _object(
    name=_TEXT,
    state={"enum": ["waiting", "loading", "warming", "ready", "failed", "unloaded"]},
    why=_TEXT,
    versions=_list(_TEXT),
    session={"type": ["string", "null"]},
    warm_ms={"type": ["number", "null"], "description": "a picture's time when warm"},
    required=_FLAG,
    resident_bytes=_COUNT,
    version_=_TEXT,
    task_=_TEXT,
    classes_=_list(_TEXT),
    shape_=_ANY,
    source_=_ANY,
)
_TENSOR = _object(
    name=_TEXT,
    shape=_list({"type": "integer"}),
    datatype={"enum": ["FP32"]},
    parameters_=_ANY,
    data_={"type": "array", "description": "numbers row by row, flat or nested", "items": {}},
)
_SCHEMAS: dict[str, Any] = {
    "Answer": _ANSWER,
    "Answers": _object(images=_list(_ref("Answer"))),
    "Models": _object(models=_list(_MODEL), ready=_FLAG),
    "Error": _object(error=_object(message=_TEXT, remedy=_TEXT, code=_TEXT)),
    "ProtocolError": _object(error=_TEXT, remedy=_TEXT, code=_TEXT),
    "Server": _object(name=_TEXT, version=_TEXT, extensions=_list(_TEXT)),
    "ModelMetadata": _object(
        name=_TEXT, versions=_list(_TEXT), platform=_TEXT, inputs=_list(_TENSOR), outputs=_list(_TENSOR)
    ),
    "InferRequest": _object(
        id_=_TEXT,
        parameters_=_ANY,
        inputs={**_list(_TENSOR), "minItems": 1, "maxItems": 1},
        outputs_=_list(_object(name=_TEXT, parameters_=_ANY)),
    ),
    "InferAnswer": _object(model_name=_TEXT, model_version=_TEXT, id_=_TEXT, outputs=_list(_TENSOR)),
    "Index": _list(_object(name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)),
    "Object": _ANY,
    "Live": _object(live=_FLAG),
    "Ready": _object(ready=_FLAG),
}


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _share(default: float) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "maximum": 1, "default": default}


_QUESTION = [
    _query("conf", _share(0.25), "least confidence"),
    _query("iou", _share(0.7), "overlap above which the weaker of two boxes is dropped"),
    _query("max_det", {"type": "integer", "minimum": 1, "maximum": MAX_DET, "default": 300}, "most objects"),
    {
        **_query(
            "classes",
            {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MAX_CLASS}, "minItems": 1},
            "only these classes, by number: 0,2",
        ),
        "style": "form",
        "explode": False,
    },
    _query("agnostic_nms", {"type": "boolean", "default": False}, "boxes of different classes overlap too"),
    _query("version", {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}, "a version of /v1/models"),
]
_REASONS = {
    400: "the request is wrong",
    401: "a token is needed",
    403: "not allowed",
    404: "no such model or version",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "a type of body that is not read",
    424: "a picture could not be fetched",
    429: "this client asks too often",
    503: "not now: Retry-After says when",
    504: "no answer within the time limit",
}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(schema)}}


def _operation(
    number: str, summary: str, content: dict[str, Any], codes: tuple[int, ...], **more: Any
) -> dict[str, Any]:
    error = "ProtocolError" if number.startswith("v2") else "Error"
    answers: dict[str, Any] = {"200": {"description": summary, "content": content}}
    for code in codes:
        answers[str(code)] = {"description": _REASONS[code], "content": _json(error)}
    return {"operationId": number, "summary": summary, "responses": answers, **more}


def _open(number: str, summary: str, content: dict[str, Any], codes: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"get": _operation(number, summary, content, codes, security=[])}


def _path(*names: str) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


def _by_version(path: str, tail: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    versioned = {**operation, "operationId": f"{operation['operationId']}_version"}
    return {
        f"{path}/{{name}}{tail}": {"parameters": _path("name"), method: operation},
        f"{path}/{{name}}/versions/{{version}}{tail}": {"parameters": _path("name", "version"), method: versioned},
    }


def openapi_document(*, has_tokens: bool) -> dict[str, Any]:
    """What can be asked, and all that may be answered."""
    image = {"schema": {"type": "string", "format": "binary"}}
    files = {"type": "object", "properties": {"file": {"type": "array", "items": image["schema"], "minItems": 1}}}
    pictures = {
        "image/*": image,
        "application/octet-stream": image,
        "multipart/form-data": {"schema": {**files, "required": ["file"], "additionalProperties": False}},
        "application/json": {"schema": _object(url=_TEXT)},
    }
    answer = {"application/json": {"schema": {"anyOf": [_ref("Answer"), _ref("Answers")]}}}
    tensor = {"required": True, "content": _json("InferRequest")}
    control = {"required": False, "content": _json("Object")}
    inferred = {**_json("InferAnswer"), "application/octet-stream": image}
    detect = _operation(
        "v1_detect",
        "Objects on a picture, or on each of several",
        answer,
        (400, 401, 403, 404, 408, 413, 415, 424, 429, 503, 504),
        requestBody={"required": True, "content": pictures},
        parameters=_QUESTION,
    )
    models = _operation("v1_models", "Models and their state", _json("Models"), (401,))
    v2, known = "/v2/models", (401, 404, 503)
    changing = (400, 401, 403, 404, 408, 413, 415, 429, 503)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "steadyolo", "version": __version__, "description": "Detectors served warm."},
        "paths": {
            "/v1/models/{name}/detect": {"parameters": _path("name"), "post": detect},
            "/v1/models": {"get": models},
            "/v2": {"get": _operation("v2_server", "This server", _json("Server"), (401,))},
            **_by_version(v2, "", "get", _operation("v2_model", "Tensors", _json("ModelMetadata"), known)),
            **_by_version(v2, "/config", "get", _operation("v2_config", "Configuration", _json("Object"), known)),
            **_by_version(v2, "/ready", "get", _operation("v2_model_ready", "Warm", _json("Object"), known)),
            **_by_version(
                v2,
                "/infer",
                "post",
                _operation("v2_infer", "Tensors of the graph", inferred, (*changing, 504), requestBody=tensor),
            ),
            "/v2/repository/index": {
                "post": _operation("v2_index", "Models", _json("Index"), (400, 401, 408, 413, 415), requestBody=control)
            },
            **{
                f"/v2/repository/models/{{name}}/{verb}": {
                    "parameters": _path("name"),
                    "post": _operation(f"v2_{verb}", text, _json("Object"), changing, requestBody=control),
                }
                for verb, text in (("load", "Load and warm a model"), ("unload", "Give its memory back"))
            },
            "/metrics": {"get": _operation("metrics", "For Prometheus", {"text/plain": {"schema": _TEXT}}, (401,))},
            "/healthz": _open("live", "The process answers", _json("Live")),
            "/readyz": _open("ready", "Every required model is warm", _json("Ready"), (503,)),
            "/v2/health/live": _open("v2_live", "The process answers", _json("Live")),
            "/v2/health/ready": _open("v2_ready", "Every required model is warm", _json("Ready"), (503,)),
        },
        "components": {"schemas": _SCHEMAS},
    }
    if has_tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document
