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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, stem = f"{parts['owner']}/{parts['name']}", name.removesuffix(path).rstrip("/")
    one = wanted(Path(path))
    below = path if one or not path else path.rstrip("/") + "/"
    try:
        # also for one file: asked for by itself, it is asked for again and again where there is no network
        root = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=parts["revision"],
                allow_patterns=[below if one else below + "*"],
            )
        )
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
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file() and wanted(file))
    names = [file for file in names if (file == path if one else file.startswith(below))]
    if not names:
        raise DataError(
            f"{name} holds no data file, or there is no network to fetch it", "name a file that is on the hub"
        )
    return [(f"{stem}/{file}", root / file) for file in names]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
