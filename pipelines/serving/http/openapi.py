"""The OpenAPI document: what FastAPI makes of the pages, and the routes of inference."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from pipelines.serving.http.request_json import InferAnswer, InferRequest

_REFUSAL = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
_REASONS = {
    "400": "It breaks the protocol",
    "401": "A key is needed",
    "403": "A web page of another origin",
    "404": "No such model or version",
    "408": "The body took too long",
    "413": "Too large",
    "415": "Content-Encoding or media type that is not known",
    "422": "The model cannot answer it",
    "429": "Too many requests wait; Retry-After says when to come again",
    "503": "No version is loaded yet",
}
_BINARY = {"type": "string", "format": "binary"}


def complete(document: dict[str, Any], model: str) -> dict[str, Any]:
    """Add the routes of inference, and name the model that is served.

    Args:
        document: Of FastAPI; it is changed.
        model: Name of the model.
    """
    paths = document["paths"]
    if "/predict" in paths:
        return document  # FastAPI keeps what it made
    schemas = document["components"]["schemas"]
    for kind in (InferRequest, InferAnswer):
        made = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(made.pop("$defs", {}))
        schemas[kind.__name__] = made
    paths["/v2/models/{model}/infer"] = {"post": _infer("infer", ["model"])}
    paths["/v2/models/{model}/versions/{version}/infer"] = {
        "post": _infer("infer_version", ["model", "version"])
    }
    paths["/predict"] = {"post": _predict()}
    for operations in paths.values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"] = {"type": "string", "enum": [model]}
    return document


def _responses(answer: dict[str, Any]) -> dict[str, Any]:
    refusals = {
        code: {"description": reason, "content": _REFUSAL} for code, reason in _REASONS.items()
    }
    return {"200": {"description": "The answer", "content": answer}} | refusals


def _infer(name: str, places: list[str]) -> dict[str, Any]:
    header = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "Bytes of the JSON, where bytes of tensors follow it",
        "schema": {"type": "integer", "minimum": 1},
    }
    named = [
        {"name": one, "in": "path", "required": True, "schema": {"type": "string"}}
        for one in places
    ]
    return {
        "summary": "Ask the model: JSON, and tensors as bytes behind it",
        "operationId": name,
        "parameters": [*named, header],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
                "application/octet-stream": {"schema": _BINARY},
            },
        },
        "responses": _responses(
            {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferAnswer"}},
                "application/octet-stream": {"schema": _BINARY},
            }
        ),
    }


def _predict() -> dict[str, Any]:
    form = {
        "type": "object",
        "properties": {"file": {"type": "array", "items": _BINARY}},
        "required": ["file"],
    }
    cell = {"type": ["string", "number", "boolean", "null"]}
    rows = {"type": "array", "items": {"type": "object", "additionalProperties": cell}}
    return {
        "summary": "Ask the model about an image file, or a table, as it is",
        "operationId": "predict",
        "parameters": [
            {
                "name": "top",
                "in": "query",
                "required": False,
                "description": "Likeliest classes to name",
                "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 3},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": _BINARY},
                "multipart/form-data": {"schema": form},
                "application/json": {"schema": rows},
                "text/csv": {"schema": {"type": "string"}},
                "application/vnd.apache.parquet": {"schema": _BINARY},
            },
        },
        "responses": _responses({"application/json": {"schema": {"type": "object"}}}),
    }
