"""A chat template as a program: compiled once, run within limits."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from jinja2 import Template

from tallow.errors import DataError
from tallow.tokenizer.sandbox import (
    GENERATION_END,
    GENERATION_START,
    BoundedEnvironment,
    TemplateLimitError,
    TemplateRefusal,
)


class Program:
    """One template, compiled on first use; one rendering at a time."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._environment: BoundedEnvironment | None = None
        self._template: Template | None = None

    @property
    def marks_generation(self) -> bool:
        """Whether it says by `{% generation %}` what an assistant wrote."""
        return self._compiled()[0].marks_generation

    def marks(self, start: str, end: str) -> dict[str, str]:
        """The variables with which it writes these characters around what an assistant wrote."""
        return {GENERATION_START: start, GENERATION_END: end}

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that it writes.

        Raises:
            DataError: It is broken, fails, refuses the conversation or reaches a limit.
        """
        environment, template = self._compiled()
        with self._lock:
            try:
                return environment.render(template, variables)
            except TemplateRefusal as error:
                raise DataError(
                    f"the chat template refuses this conversation: {error}", "check the roles and their order"
                ) from error
            except TemplateLimitError as error:
                raise DataError(f"the chat template was stopped: {error}", "use another template") from error
            except Exception as error:  # a template is a program: anything can go wrong in it
                raise DataError(f"the chat template fails: {_describe(error)}", "use another template") from error

    def _compiled(self) -> tuple[BoundedEnvironment, Template]:
        with self._lock:
            if self._environment is None or self._template is None:
                self._environment = BoundedEnvironment()
                try:
                    self._template = self._environment.compile_template(self._source)
                except Exception as error:  # besides Jinja's own errors: too deep, too long, not Python in the end
                    raise DataError(
                        f"the chat template is broken: {_describe(error)}", "use another template"
                    ) from error
            return self._environment, self._template


def _describe(error: Exception) -> str:
    return f"{error}" if str(error) else type(error).__name__
