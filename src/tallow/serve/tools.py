from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCallDelta:
    index: int
    id: str | None
    name: str | None
    arguments: str


class ToolParser:
    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        return text, []

    def finish(self) -> tuple[str, list[ToolCallDelta]]:
        return "", []


class ForcedToolParser(ToolParser):
    def __init__(self, tools, choice):
        pass


def tool_parser(template_source, tools):
    return ToolParser()


def forced_structure(tools, choice):
    return {}
