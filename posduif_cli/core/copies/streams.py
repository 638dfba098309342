"""The stream of a dump: compressed and summed on its way to the disk, and back."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from posduif_cli.errors import DamagedBackup

LEVEL = 1  # a higher one costs more than it saves
CHUNK = 1 << 18


@dataclass(frozen=True)
class Sums:
    """How much went through, and its SHA-256."""

    bytes: int
    sha256: str


def compress(source: IO[bytes], target: IO[bytes]) -> tuple[Sums, Sums]:
    """Copy *source* to *target*, compressed; return (what came, what was written)."""
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
    plain, packed, came, written = hashlib.sha256(), hashlib.sha256(), 0, 0

    def put(data: bytes) -> None:
        nonlocal written
        packed.update(data)
        written += target.write(data)

    while data := source.read(CHUNK):
        plain.update(data)
        came += len(data)
        put(compressor.compress(data))
    put(compressor.flush())
    return Sums(came, plain.hexdigest()), Sums(written, packed.hexdigest())


def require_whole(path: Path, checksum: str) -> None:
    """Raise DamagedBackup unless a file has this SHA-256: before a byte of it is used."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedBackup(f"{path} cannot be read", why=error.strerror) from None
    if found != checksum:
        raise DamagedBackup(f"{path} is damaged", why="its SHA-256 is not that of the manifest")


def decompress(path: Path, put: Callable[[bytes], object]) -> None:
    """Give the plain content of a file to *put*, piece by piece; raises DamagedBackup."""
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            while data := reader.read(CHUNK):
                put(data)
    except zstandard.ZstdError as error:
        raise DamagedBackup(f"{path} is damaged", why=str(error)) from None
