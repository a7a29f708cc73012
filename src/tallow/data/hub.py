"""Files of data sets on the Hugging Face hub, kept in its own cache (`HF_HOME`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tallow.errors import DataError, UsageError

HUB = "hf://"
FORM = re.compile(
    r"hf://datasets/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<path>[^?*\[]*))?", re.ASCII
)


def fetch(name: str, wanted: Callable[[Path], bool]) -> list[tuple[str, Path]]:
    """Bring a file, or all files below a path, from the hub, unless they are in the cache already.

    Args:
        name: `hf://datasets/<owner>/<name>[@<revision>][/<path>]`.
        wanted: Which files below a path are meant.

    Returns:
        The name of each file, in the form of `name`, and where it lies, in the order of the names.

    Raises:
        UsageError: The name has another form.
        DataError: There is no such file, or no network.
    """
    parts = FORM.fullmatch(name)
    path = parts["path"] or "" if parts else ""
    if parts is None or ".." in path.split("/"):
        raise UsageError(
            f"{name} does not name data on the hub", "write hf://datasets/OWNER/NAME/FILE, or without a file for all"
        )
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, stem = f"{parts['owner']}/{parts['name']}", name.removesuffix(path).rstrip("/")
    options = {"repo_type": "dataset", "revision": parts["revision"]}
    try:
        if wanted(Path(path)):
            return [(name, Path(hf_hub_download(repository, path, **options)))]
        below = path.rstrip("/") + "/" if path else ""
        root = Path(snapshot_download(repository, allow_patterns=[below + "*"], **options))
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            raise DataError(
                f"{name} is not on the hub, or not for everybody ({_first_line(error)})", "check the name"
            ) from error
        raise DataError(
            f"{name} cannot be fetched: there is no network, and it is not in the hub's cache",
            "run this once where there is a network with the same HF_HOME, or download the file and name its path",
        ) from error
    except HFValidationError as error:
        raise UsageError(f"{name} does not name data on the hub ({_first_line(error)})", "check the name") from error
    files = sorted(file for file in root.rglob("*") if file.is_file() and wanted(file))
    files = [file for file in files if file.relative_to(root).as_posix().startswith(below)]
    if not files:
        raise DataError(f"{name} holds no data file", "name one of its files")
    return [(f"{stem}/{file.relative_to(root).as_posix()}", file) for file in files]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
