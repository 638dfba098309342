"""Places for backups: a folder of this machine, or a bucket of an object store that speaks S3's protocol.

In a bucket there is no rename: a backup is there as soon as its manifest is, which is written last and removed first.
Nor is there a lock: ids differ, and what is read while it is removed is missed and said so.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from posduif_cli.core.copies.streams import CHUNK, Keys
from posduif_cli.core.store import CANARY, ID, MANIFEST, PIN, Folder, Store
from posduif_cli.errors import AccessDenied, ConfigurationError, OperationFailed, PosduifError, Run, ServerUnreachable

S3 = "s3://"
AT_ONCE = 16  # requests
RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
# Without TLS only where the endpoint says http.
OPTIONS: Any = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(minutes=5), "allow_http": True}


def open_store(place: Path | str | None, *, make: bool = False) -> Store:
    """Return the store that is configured; with *make* an empty place becomes one. Raises ConfigurationError."""
    if place is None:
        raise ConfigurationError(
            "no place for backups is configured",
            why="backup.dir has no default",
            hint=[
                Run("config", "init", lead="put  backup: {dir: /srv/backups}  into the configuration; a new one by"),
                "or  backup: {dir: s3://BUCKET/PREFIX}",
            ],
        )
    if isinstance(place, str) and place.startswith(S3):
        bucket = Bucket(place)
        return Store.open(bucket, make=make, empty=bucket.empty)
    folder = Folder(Path(place))
    return Store.open(folder, make=make, empty=folder.empty)


def keep_canary(store: Store, keys: Keys) -> None:
    """Leave a text that is encrypted to the recipients, so that `doctor` can tell whether a key still fits."""
    name = CANARY.format(keys.digest)
    if keys.recipients and store.storage.read(name) is None:
        store.storage.write(name, keys.canary())


def canary(store: Store, keys: Keys) -> bytes | None:
    """Return the text that was left for these recipients."""
    return store.storage.read(CANARY.format(keys.digest))


def has_canary(store: Store) -> bool:
    """Whether backups in a store were encrypted."""
    return store.storage.has(CANARY.format("*"))


class Bucket:
    """A storage in a bucket, below a prefix. Whose keys are used, and where it is, the environment says: AWS_*."""

    def __init__(self, place: str) -> None:
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError:
            raise ConfigurationError(
                "object stores are reached with the package obstore",
                why="it is not installed",
                hint="pip install 'posduif[s3]'",
            ) from None
        self._api, self.place = obstore, place
        bucket, _, prefix = place.removeprefix(S3).strip("/").partition("/")
        if not bucket:
            raise ConfigurationError(f"{place} names no bucket", hint="s3://BUCKET/PREFIX")
        with self._failing():
            self._store = S3Store(bucket, prefix=prefix or None, client_options=OPTIONS, retry_config=RETRIES)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Make the library's errors ours; what they say is left out but for its kind, for it may quote a request."""
        errors = self._api.exceptions
        try:
            yield
        except (errors.PermissionDeniedError, errors.UnauthenticatedError):
            raise AccessDenied(
                f"{self.place} refuses this machine's keys",
                hint="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights of their owner",
            ) from None
        except errors.NotFoundError:
            raise ConfigurationError(f"{self.place} is not there", hint="make the bucket first") from None
        except (errors.BaseError, OSError) as error:
            text = str(error)
            why = next(
                (words for words in ("NoSuchBucket", "AccessDenied", "timed out", "dns error") if words in text), None
            )
            raise ServerUnreachable(
                f"{self.place} cannot be reached",
                why=why or f"the library says {type(error).__name__}",
                hint="check AWS_ENDPOINT_URL, AWS_REGION and the network",
            ) from None

    def listing(self) -> Mapping[str, Iterable[str]]:
        """Return the objects of all backups that have a manifest, by their keys."""
        return {key: set(names) for key, names in self._everything().items() if MANIFEST in names}

    def _everything(self) -> dict[str, dict[str, float]]:
        """Return every backup's objects, with when each was written, by the backup's key."""
        found: dict[str, dict[str, float]] = {}
        with self._failing():
            for page in self._api.list(self._store):
                for item in page:
                    key, _, name = str(item["path"]).rpartition("/")
                    if key.count("/") == 1 and ID.fullmatch(key.rpartition("/")[2]):
                        found.setdefault(key, {})[name] = item["last_modified"].timestamp()
        return found

    def read(self, path: str) -> bytes | None:
        """Return an object, None where there is none."""
        with self._failing():
            try:
                return bytes(self._api.get(self._store, path).bytes())
            except FileNotFoundError:
                return None
            except self._api.exceptions.NotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def has(self, pattern: str) -> bool:
        """Whether there is an object of such a name at the top."""
        with self._failing():
            found = self._api.list_with_delimiter(self._store)["objects"]
            return any(fnmatch(str(item["path"]), pattern) for item in found)

    def read_all(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return many objects, several requests at once."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self.read, paths))

    def write(self, path: str, content: bytes) -> None:
        """Put an object: it is there whole or not at all."""
        with self._failing():
            self._api.put(self._store, path, content)

    def append(self, path: str, line: bytes) -> None:
        """Put an object again with one line more."""
        self.write(path, (self.read(path) or b"") + line + b"\n")

    def delete(self, path: str) -> None:
        """Delete an object."""
        with self._failing(), suppress(FileNotFoundError, self._api.exceptions.NotFoundError):
            self._api.delete(self._store, path)

    @contextmanager
    def draft(self, key: str) -> "Iterator[_BucketDraft]":
        """Begin a backup, which no listing shows without its manifest."""
        draft = _BucketDraft(self, key)
        try:
            yield draft
        finally:
            if not draft.published:
                with suppress(PosduifError):
                    for name in draft.names:
                        self.delete(f"{key}/{name}")

    @contextmanager
    def fetch(self, path: str) -> Iterator[IO[bytes]]:
        """Lend a copy of an object, in a file without a name: a kill leaves nothing of it."""
        with TemporaryFile() as file:
            with self._failing():
                pieces = self._api.get(self._store, path).stream(min_chunk_size=CHUNK)
                for piece in pieces:
                    try:
                        file.write(piece)
                    except OSError as error:
                        raise OperationFailed(f"{path} could not be fetched", why=error.strerror) from error
            yield file

    def remove(self, key: str) -> None:
        """Delete a backup's objects, its manifest first."""
        names = set(self._everything().get(key, ())) | {MANIFEST}
        for name in sorted(names, key=lambda name: name != MANIFEST):
            self.delete(f"{key}/{name}")

    def sweep(self, before: float) -> None:
        """Delete what was written before a time and has no manifest."""
        for key, names in self._everything().items():
            if MANIFEST not in names and max(names.values()) < before:
                for name in names:
                    self.delete(f"{key}/{name}")

    @contextmanager
    def lock(self, path: str, *, shared: bool = False) -> Iterator[None]:
        """Do nothing: see above."""
        yield

    def free(self) -> int | None:
        """Return None: there is always room."""
        return None

    def location(self, key: str) -> str:
        """Return the address of a backup."""
        return f"{self.place.rstrip('/')}/{key}"

    def empty(self) -> bool:
        """Whether nothing is below the prefix yet."""
        with self._failing():
            return not any(True for page in self._api.list(self._store) for _ in page)


class _BucketDraft:
    def __init__(self, bucket: Bucket, key: str) -> None:
        self.bucket, self.key, self.names, self.published = bucket, key, [MANIFEST], False

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        self.names.append(name)
        with self.bucket._failing():
            writer = self.bucket._api.open_writer(self.bucket._store, f"{self.key}/{name}")
            yield writer  # without a close, after an error, the object never appears
            writer.close()

    def publish(self, manifest: bytes, pin: bytes | None) -> None:
        if pin is not None:
            self.bucket.write(f"{self.key}/{PIN}", pin)
            self.names.append(PIN)
        self.bucket.write(f"{self.key}/{MANIFEST}", manifest)
        self.published = True
