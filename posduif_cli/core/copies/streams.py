"""The stream of a dump: compressed, encrypted and summed on its way into a store, and back."""

import hashlib
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from posduif_cli.errors import ConfigurationError, DamagedBackup

LEVEL = 1  # a higher one costs more than it saves
CHUNK = 1 << 18
NO_AGE = "backups are encrypted with the package pyrage"


@dataclass
class Sums:
    """A stream on the way through: how much went by, and its SHA-256. *failed* says that what takes it did not."""

    stream: IO[bytes]
    count: int = 0
    failed: bool = False

    def __post_init__(self) -> None:
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The SHA-256 of what went by."""
        return self._hash.hexdigest()

    def read(self, size: int = -1) -> bytes:
        """Read from the stream."""
        data = self.stream.read(size)
        self._hash.update(data)
        self.count += len(data)
        return data

    def write(self, data: Any) -> int:
        """Write to the stream."""
        self._hash.update(data)
        self.count += len(data)
        try:
            self.stream.write(data)
        except OSError:
            self.failed = True
            raise
        return len(data)

    def flush(self) -> None:
        """Do nothing: the stream is flushed by who opened it."""

    def close(self) -> None:
        """Do nothing: the stream is closed by who opened it."""


@dataclass(frozen=True)
class Keys:
    """Whom backups are encrypted to, as age spells it, and the file of who can decrypt them."""

    recipients: tuple[str, ...] = ()
    identity_file: Path | None = None

    def readers(self) -> list[Any]:
        """Return the recipients; raises ConfigurationError for one that is none."""
        pyrage = _pyrage()
        found = []
        for number, text in enumerate(self.recipients, 1):
            kind = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
            try:
                found.append(kind.from_str(text))
            except pyrage.RecipientError:
                raise ConfigurationError(
                    f"backup.encrypt_to: number {number} is no recipient of age",
                    hint=["age1...  as age-keygen prints it", "or the line of an SSH public key"],
                ) from None
        return found

    def identities(self) -> list[Any]:
        """Return the identities in the file; raises ConfigurationError."""
        if self.identity_file is None:
            raise ConfigurationError(
                "the backup is encrypted, and no key is configured here",
                hint="set backup.identity_file in the configuration to the file of an age identity",
            )
        pyrage = _pyrage()
        try:
            text = self.identity_file.read_text(encoding="utf-8")
            if "PRIVATE KEY-----" in text:
                return [pyrage.ssh.Identity.from_buffer(text.encode())]
            lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
            if not lines:
                raise ConfigurationError(f"{self.identity_file} holds no identity", hint="age-keygen makes one")
            return [pyrage.x25519.Identity.from_str(line) for line in lines]
        except OSError as error:
            raise ConfigurationError(f"{self.identity_file} cannot be read", why=error.strerror) from None
        except (pyrage.IdentityError, UnicodeDecodeError):
            raise ConfigurationError(
                f"{self.identity_file} holds no identity of age",
                why="it is shown to nobody",
                hint="it must have the line AGE-SECRET-KEY-1..., or be an SSH private key without a passphrase",
            ) from None

    def canary(self) -> bytes:
        """Return a text encrypted to the recipients."""
        return bytes(_pyrage().encrypt(secrets.token_bytes(32), self.readers()))

    def open_canary(self, content: bytes) -> None:
        """Raise ConfigurationError unless the identity decrypts a text of `canary`."""
        pyrage = _pyrage()
        try:
            pyrage.decrypt(content, self.identities())
        except pyrage.DecryptError:
            raise ConfigurationError(
                f"{self.identity_file} cannot decrypt backups", why="it belongs to none of their recipients"
            ) from None

    @property
    def digest(self) -> str:
        """Eight digits that tell these recipients from others."""
        return hashlib.sha256("\n".join(sorted(self.recipients)).encode()).hexdigest()[:8]


NO_KEYS = Keys()


def _pyrage() -> Any:
    try:
        import pyrage  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(NO_AGE, why="it is not installed", hint="pip install 'posduif[age]'") from None
    return pyrage


def pack(source: IO[bytes], target: IO[bytes], readers: Sequence[Any]) -> tuple[Sums, Sums]:
    """Copy *source* to *target*, compressed, and encrypted for *readers*; return what came and what was written."""
    came, written = Sums(source), Sums(target)
    packed = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).stream_reader(came, read_size=CHUNK)  # type: ignore[arg-type]
    if readers:
        _pyrage().encrypt_io(packed, written, readers)
    else:
        shutil.copyfileobj(packed, written, CHUNK)
    return came, written


def require_whole(file: IO[bytes], checksum: str, place: str) -> None:
    """Raise DamagedBackup unless a file has this SHA-256: before a byte of it is used."""
    try:
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise DamagedBackup(f"the backup in {place} cannot be read", why=error.strerror) from None
    if found != checksum:
        raise DamagedBackup(f"the backup in {place} is damaged", why="its SHA-256 is not that of the manifest")


class _Enough(Exception):
    """A first piece came: what is asked is answered."""


class _First:
    def write(self, data: Any) -> int:
        raise _Enough

    def flush(self) -> None:
        """Do nothing."""


def require_key(file: IO[bytes], keys: Keys) -> None:
    """Raise ConfigurationError unless an identity that is here can decrypt a file: before anything is made of it."""
    pyrage = _pyrage()
    file.seek(0)
    try:
        pyrage.decrypt_io(file, _First(), keys.identities())
    except pyrage.DecryptError as error:
        if "matching" in str(error):
            raise ConfigurationError(
                f"{keys.identity_file} cannot decrypt the backup",
                why="it belongs to none of those whom the backup was encrypted to",
                hint="set backup.identity_file to the file of another one's identity",
            ) from None
    except (_Enough, OSError, ValueError):
        return


def unpack(file: IO[bytes], target: IO[bytes], identities: Sequence[Any], checksum: str, place: str) -> None:
    """Copy the plain content of a file to *target*; raises DamagedBackup, afterwards also for another SHA-256.

    What the stream of *target* raises is BrokenPipeError: it wants no more.
    """
    plain = Sums(target)
    unpacked = zstandard.ZstdDecompressor().stream_writer(plain, closefd=False)  # type: ignore[arg-type]
    file.seek(0)
    try:
        if identities:
            _pyrage().decrypt_io(file, unpacked, identities)
        else:
            shutil.copyfileobj(file, unpacked, CHUNK)
    except Exception as error:
        if plain.failed:
            raise BrokenPipeError from error
        if isinstance(error, zstandard.ZstdError | OSError) or type(error).__module__.startswith("pyrage"):
            why = str(error) or "it cannot be decrypted"
            raise DamagedBackup(f"the backup in {place} is damaged", why=why) from None
        raise
    if plain.sha256 != checksum:
        why = "the SHA-256 of its content is not that of the manifest"
        raise DamagedBackup(f"the backup in {place} is damaged", why=why)
