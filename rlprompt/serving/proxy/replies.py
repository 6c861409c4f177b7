"""What the server itself answers: errors in OpenAI's shape."""

from __future__ import annotations

from starlette.responses import JSONResponse

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "upstream_error",
    503: "overloaded_error",
    504: "timeout_error",
}
RETRY_AFTER = "1"


def error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> JSONResponse:
    """Returns an error as OpenAI's clients read it.

    Args:
        status: of HTTP.
        message: one sentence, without anything secret.
        code: for programs.
        param: the field that is wrong.
    """
    body = {"error": {"message": message, "type": TYPES[status], "param": param, "code": code}}
    headers = {"retry-after": RETRY_AFTER} if status in (429, 503) else None
    return JSONResponse(body, status, headers)
