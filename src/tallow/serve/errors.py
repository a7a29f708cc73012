"""What a client is told when something cannot be done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATUS_OF_ENGINE_ERRORS = {"UsageError": 400, "DataError": 400, "CapacityError": 503}
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: One sentence that says what is wrong, and what to do.
        param: The field that is wrong.
        code: For programs.
        retry_after_s: When to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @classmethod
    def of_engine(cls, error: Mapping[str, str]) -> ApiError:
        """What an engine process says in its words."""
        hint = f" ({error['hint']})" if error["hint"] else ""
        return cls(STATUS_OF_ENGINE_ERRORS.get(error["type"], 500), error["message"] + hint)

    @property
    def kind(self) -> str:
        """In the words of OpenAI and Anthropic."""
        return KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def as_openai(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def as_anthropic(self) -> dict[str, Any]:
        return {"type": "error", "error": {"type": self.kind, "message": self.message}}
