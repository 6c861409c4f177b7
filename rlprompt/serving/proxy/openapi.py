"""The routes as an OpenAPI document."""

from __future__ import annotations

from typing import Any

from rlprompt.types import Json

_ERROR = {"$ref": "#/components/schemas/Error"}


def _answer(about: str, schema: Any = None, kind: str = "application/json") -> Json:
    return {"description": about, "content": {kind: {"schema": {} if schema is None else schema}}}


def _errors(*statuses: int) -> Json:
    return {str(status): _answer("refused", _ERROR) for status in statuses}


_REFUSALS = (400, 401, 403, 408, 413, 415, 429, 502, 503, 504)


def _forwarded(summary: str, field: str, schema: Json) -> Json:
    return {
        "post": {
            "summary": summary,
            "description": "The user's last text may be rewritten; all other bytes reach the upstream as they came.",
            "parameters": [
                {
                    "name": "x-rlprompt-rewrite",
                    "in": "header",
                    "required": False,
                    "schema": {"type": "string", "enum": ["0", "1"]},
                    "description": "0 forwards the request as it is.",
                }
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["model", field],
                            "properties": {"model": {"type": "string"}, field: schema},
                            "additionalProperties": True,
                        }
                    }
                },
            },
            "responses": {"200": {"description": "the upstream's answer"}, "default": {"description": "the upstream's"}}
            | _errors(*_REFUSALS),
        }
    }


def _read(summary: str, *, kind: str = "application/json", statuses: tuple[int, ...] = (401, 403)) -> Json:
    return {"get": {"summary": summary, "responses": {"200": _answer(summary, kind=kind)} | _errors(*statuses)}}


_MESSAGES: Json = {
    "type": "array",
    "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}, "content": {}}},
}
DOCUMENT: Json = {
    "openapi": "3.1.0",
    "info": {"title": "rlprompt", "version": "1", "description": "Rewrites users' texts on their way to an LLM."},
    "security": [{"key": []}],
    "paths": {
        "/v1/chat/completions": _forwarded("A chat completion", "messages", _MESSAGES),
        "/v1/completions": _forwarded("A completion", "prompt", {"type": "string"}),
        "/v1/responses": _forwarded("A response", "input", {"type": "string"}),
        "/v1/models": _read("The upstream's models", statuses=(401, 403, 429, 502, 503, 504)),
        "/rewrite": {
            "post": {
                "summary": "What would be sent in the place of a text",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["text"],
                                "properties": {"text": {"type": "string"}, "model": {"type": "string"}},
                            }
                        }
                    },
                },
                "responses": {
                    "200": _answer(
                        "the rewrite",
                        {
                            "type": "object",
                            "required": ["text", "rewritten", "reason", "seconds"],
                            "properties": {
                                "text": {"type": "string"},
                                "rewritten": {"type": "string", "enum": ["1", "0", "fallback"]},
                                "reason": {"type": ["string", "null"]},
                                "seconds": {"type": "number"},
                            },
                        },
                    )
                }
                | _errors(400, 401, 403, 408, 413, 415, 429, 503),
            }
        },
        "/health/liveness": _read("Whether the server runs"),
        "/health/readiness": _read("Whether requests should be sent here", statuses=(401, 403))
        | {
            "get": {
                "summary": "Whether requests should be sent here",
                "responses": {"200": _answer("yes"), "503": _answer("no")} | _errors(401, 403),
            }
        },
        "/metrics": _read("Numbers for Prometheus", kind="text/plain; version=0.0.4; charset=utf-8"),
        "/report": _read("Shares and means since the server began"),
    },
    "components": {
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        "schemas": {
            "Error": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }
                },
            }
        },
    },
}
