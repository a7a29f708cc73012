"""Programming languages by the names of files."""

from __future__ import annotations

from pathlib import Path

LANGUAGES = {
    ".py": "Python", ".pyx": "Cython", ".c": "C", ".h": "C", ".cc": "C++",
    ".cpp": "C++", ".cxx": "C++", ".hpp": "C++", ".hh": "C++", ".cu": "CUDA",
    ".cs": "C#", ".java": "Java", ".kt": "Kotlin", ".kts": "Kotlin", ".scala": "Scala",
    ".clj": "Clojure", ".go": "Go", ".rs": "Rust", ".swift": "Swift", ".m": "Objective-C",
    ".zig": "Zig", ".js": "JavaScript", ".mjs": "JavaScript", ".jsx": "JavaScript", ".ts": "TypeScript",
    ".tsx": "TypeScript", ".vue": "Vue", ".css": "CSS", ".scss": "SCSS", ".php": "PHP",
    ".rb": "Ruby", ".pl": "Perl", ".pm": "Perl", ".lua": "Lua", ".r": "R",
    ".jl": "Julia", ".sh": "Shell", ".bash": "Shell", ".ps1": "PowerShell", ".sql": "SQL",
    ".hs": "Haskell", ".ml": "OCaml", ".mli": "OCaml", ".ex": "Elixir", ".exs": "Elixir",
    ".erl": "Erlang", ".el": "Emacs Lisp", ".lisp": "Common Lisp", ".scm": "Scheme", ".dart": "Dart",
    ".f90": "Fortran", ".f": "Fortran", ".asm": "Assembly", ".s": "Assembly", ".v": "Verilog",
    ".sv": "SystemVerilog", ".vhd": "VHDL", ".tex": "TeX", ".proto": "Protocol Buffers", ".cmake": "CMake",
    ".mk": "Makefile",
}  # fmt: skip
NAMES = {"makefile": "Makefile", "dockerfile": "Dockerfile", "cmakelists.txt": "CMake", "rakefile": "Ruby"}


def language(path: Path) -> str | None:
    """The language that the name of a file tells it is written in, if it does."""
    return NAMES.get(path.name.lower()) or LANGUAGES.get(path.suffix.lower())
