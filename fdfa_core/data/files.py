"""Where the files of a data set are found, or fetched from, and whether they are what their authors published."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fdfa_core.errors import DataError
from fdfa_core.locks import held


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors published it.

    Attributes:
        name: file name.
        sha256: of its published content.
        urls: where to download it from, tried in this order.
    """

    name: str
    sha256: str
    urls: tuple[str, ...]


def data_directory(directory: str | os.PathLike | None = None) -> Path:
    """`directory`, else what the environment variable FDFA_DATA names, else `data` in the working directory."""
    return Path(directory or os.environ.get("FDFA_DATA") or "data").expanduser()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def listing_sha256(hashes: Mapping[str, str]) -> str:
    """One hash for several files (name → SHA-256): that of the lines which `sha256sum` prints, in order of name."""
    return hashlib.sha256("".join(f"{h}  {name}\n" for name, h in sorted(hashes.items())).encode()).hexdigest()


def find(pattern: str, places: Iterable[Path]) -> Path | None:
    """The first path that matches a glob pattern in the first of `places` where one does; None where none does."""
    return next((path for place in places for path in sorted(place.glob(pattern))), None)


def obtain(files: Sequence[PublishedFile], dataset: str, places: Sequence[Path], download: bool) -> list[Path]:
    """Paths of all `files`, found in one of `places`; what is missing is downloaded into the last of them.

    Raises:
        DataError: files are missing and may not or cannot be downloaded.
    """
    missing = [file for file in files if not find(file.name, places)]
    try:
        if missing and not download:
            raise DataError("Downloading was not asked for.")
        for file in missing:
            fetch(file, places[-1])
    except DataError as reason:
        raise DataError(_how_to_get(missing, dataset, places, reason)) from None
    return [find(file.name, places) for file in files]


def fetch(file: PublishedFile, folder: Path) -> None:
    """Download a file into `folder`.

    The file appears under its name only when it is complete and its hash is the published one. Processes that want the
    same file at the same time download it once.

    Raises:
        DataError: every address failed; the message gives the reason of each.
    """
    import pooch  # slow to import, and most runs download nothing
    import requests

    failures = []
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30)
    for url in file.urls:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with held(folder / f".{file.name}.lock", f"the download of {file.name}"):
                pooch.retrieve(url, f"sha256:{file.sha256}", file.name, folder, downloader=downloader)
                return
        except (requests.RequestException, OSError, ValueError) as error:  # pooch: ValueError for a wrong hash
            failures.append(f"{url}: {error}")
    raise DataError("Downloading failed:\n" + "\n".join(failures))


def _how_to_get(missing: Sequence[PublishedFile], dataset: str, places: Sequence[Path], reason: DataError) -> str:
    return "\n".join(
        [
            f"{dataset}: {', '.join(file.name for file in missing)} not found in {', '.join(map(str, places))}. {reason}",
            "Put the files into one of these directories, or let FDFA_DATA name the one where they are. Sources:",
            *(f"  {url}" for file in missing for url in file.urls),
        ]
    )
