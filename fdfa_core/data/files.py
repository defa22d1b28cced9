"""Where the files of a data set are found, or fetched from, and whether they are what their authors published."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from fdfa_core.errors import DataError
from fdfa_core.files import open_file
from fdfa_core.locks import held

MOST_BYTES = 2**29  # of a download: twice the largest published file


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
    with open_file(path) as stream:
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
    for url in file.urls:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with held(folder / f".{file.name}.lock", f"the download of {file.name}"):
                pooch.retrieve(url, f"sha256:{file.sha256}", file.name, folder, downloader=_download)
                return
        except (requests.RequestException, OSError, ValueError) as error:  # pooch: ValueError for a wrong hash
            failures.append(f"{url}: {error}")
    raise DataError("Downloading failed:\n" + "\n".join(failures))


def _download(url: str, place: str | IO[bytes], pooch: object) -> None:
    """Write what is at an address into a file, as `pooch` asks its downloaders to; encrypted, and no more than `MOST_BYTES`.

    Raises:
        ValueError: the address, or the one that it leads to, is not https (but for this very machine), or has too much to say.
    """
    import requests
    from tqdm import tqdm

    with requests.get(url, stream=True, timeout=30) as response:
        response.raise_for_status()
        for address in (url, response.url):
            parts = urlsplit(address)
            if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
                raise ValueError(f"{address} is not https, so that anyone on the way could change what it sends")
        announced = int(response.headers.get("content-length", 0))
        file = open(place, "w+b") if isinstance(place, str | os.PathLike) else nullcontext(place)
        with file as target, tqdm(total=announced, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            received = 0
            for part in response.iter_content(2**16):
                received += len(part)
                if max(received, announced) > MOST_BYTES:
                    raise ValueError(f"{url} sends more than {MOST_BYTES} bytes, which no file of these data sets has")
                target.write(part)
                bar.update(len(part))
        if announced and received < announced and "content-encoding" not in response.headers:
            raise ValueError(f"{url} sent {received} of {announced} bytes")


def _how_to_get(missing: Sequence[PublishedFile], dataset: str, places: Sequence[Path], reason: DataError) -> str:
    return "\n".join(
        [
            f"{dataset}: {', '.join(file.name for file in missing)} not found in {', '.join(map(str, places))}. {reason}",
            "Put the files into one of these directories, or let FDFA_DATA name the one where they are. Sources:",
            *(f"  {url}" for file in missing for url in file.urls),
        ]
    )
