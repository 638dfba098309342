"""Migration files: find, read and check them, and make new ones; nothing here talks to a server."""

import hashlib
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from posduif_cli.core.folders import BAD_NAME, FILE_NAME, RESERVED, Folders
from posduif_cli.core.schema import lint
from posduif_cli.core.schema.lint import Found
from posduif_cli.core.schema.parse import Section
from posduif_cli.errors import ConfigurationError, InvalidName

_MARKER = re.compile(r"^--[ \t]*migrate:(up|down)(?![^ \t\n])([^\n]*)$", re.MULTILINE)
_LOOKALIKE = re.compile(r"^[ \t]*--[ \t-]*migrate[ \t]?:(?:[ \t]*(?:up|down)\b|\w)", re.MULTILINE | re.IGNORECASE)
TEMPLATE = "-- migrate:up\n\n\n-- migrate:down\n"


@dataclass(frozen=True)
class File:
    """One migration file."""

    version: str
    name: str
    path: Path
    up: Section
    down: Section | None
    checksum: str


@dataclass(frozen=True)
class Problem:
    """What is wrong, or risky, at one line of one file; *rule* is a name to look for or to allow."""

    path: Path
    level: Literal["error", "warning"]
    line: int
    rule: str
    message: str
    fix: str | None


@dataclass(frozen=True)
class Files:
    """The migrations of some folders, by version, and what is wrong with some.

    *faults* are by version, or by file name where there is none: the first error of each. *problems* are by path all
    that was found when the file was read.
    """

    read: Mapping[str, File]
    faults: Mapping[str, ConfigurationError]
    problems: Mapping[Path, Sequence[Problem]]

    @property
    def sound(self) -> Mapping[str, File]:
        """The migrations that can be run, by version; of two files with one version neither can be."""
        return {version: file for version, file in self.read.items() if version not in self.faults}

    def one(self, version: str) -> File:
        """Return one migration; raises ConfigurationError where its file is faulty, KeyError where there is none."""
        if version in self.faults:
            raise self.faults[version]
        return self.read[version]

    def require_sound(self) -> None:
        """Raise ConfigurationError while any file is faulty."""
        for fault in self.faults.values():
            raise fault

    @property
    def all(self) -> tuple[File, ...]:
        """Every migration, for what needs all of them. Raises as `require_sound`."""
        self.require_sound()
        return tuple(self.read.values())


def of(folders: Folders) -> Files:
    """Return the migrations of some folders, read when they are first asked for."""
    if folders.files_read is None:
        files: dict[str, File] = {}
        faults, problems = dict(folders.misnamed), dict[Path, Sequence[Problem]]()
        for version, path in folders.paths.items():
            file, problems[path] = load(version, path)
            if file is not None:
                files[version] = file
            if (error := _fault(problems[path])) is not None:
                faults.setdefault(version, error)
        object.__setattr__(folders, "files_read", Files(files, faults, problems))
    found = folders.files_read
    assert isinstance(found, Files)
    return found


def read(version: str, path: Path) -> File:
    """Read one migration file in dbmate's format; raise ConfigurationError, with the line, on its first error."""
    file, problems = load(version, path)
    error = _fault(problems)
    if error is not None or file is None:
        raise error or ConfigurationError(f"{path}: {BAD_NAME}")
    return file


def _fault(problems: Sequence[Problem]) -> ConfigurationError | None:
    """Return the first error of a file, as an exception."""
    error = next((problem for problem in problems if problem.level == "error"), None)
    if error is None:
        return None
    return ConfigurationError(f"{error.path}:{error.line}: {error.message}", hint=error.fix or ())


def load(version: str, path: Path) -> tuple[File | None, Sequence[Problem]]:
    """Read one file and what is wrong with it, by line. There is no File without its sections."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return None, [Problem(path, "error", 1, "unreadable", f"cannot be read: {error.strerror}", None)]
    plain = content.replace(b"\r\n", b"\n")
    name = FILE_NAME.fullmatch(path.name)
    file, errors = None, list(_byte_errors(plain))
    if not errors:
        text = plain.decode()
        markers = list(_MARKER.finditer(text))
        errors += _marker_errors(text, markers)
        if not errors:
            up, down = _section(text, markers, 0), _section(text, markers, 1) if len(markers) > 1 else None
            errors += [*lint.errors(up, "up"), *(lint.errors(down, "down") if down else ())]
            title = name[2] if name else path.stem
            file = File(version, title, path, up, down, hashlib.sha256(plain).hexdigest())
    if name is None or name[1] != version:
        errors.append((1, "file-name", BAD_NAME, None))
    problems = [Problem(path, "error", *found) for found in sorted(errors, key=lambda found: found[0])]
    if plain != content:
        fix = "git config core.autocrlf input, or `*.sql text eol=lf` in .gitattributes"
        problems.append(Problem(path, "warning", 1, "line-ends", "lines end in CRLF; they are read as LF", fix))
    return file, problems


def _byte_errors(content: bytes) -> Iterator[Found]:
    fix = "save it as UTF-8 without a byte order mark"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        yield content.count(b"\n", 0, error.start) + 1, "encoding", "not UTF-8 text", fix
    if content.startswith(b"\xef\xbb\xbf"):
        yield 1, "encoding", "the file begins with a byte order mark", fix
    if b"\0" in content:
        yield content.count(b"\n", 0, content.index(b"\0")) + 1, "encoding", "the text holds a NUL character", None


def _section(text: str, markers: "Sequence[re.Match[str]]", number: int) -> Section:
    start = min(markers[number].end() + 1, len(text))
    end = markers[number + 1].start() if number + 1 < len(markers) else len(text)
    return Section(text[start:end], text.count("\n", 0, start) + 1, markers[number][2].strip() != "transaction:false")


def _marker_errors(text: str, markers: "Sequence[re.Match[str]]") -> Iterator[Found]:
    lines = [text.count("\n", 0, marker.start()) + 1 for marker in markers]
    kinds = [marker[1] for marker in markers]
    if kinds not in (["up"], ["up", "down"]):
        line = next((at for n, at in enumerate(lines) if kinds[: n + 1] != ["up", "down"][: n + 1]), 1)
        yield line, "markers", "a migration has one `-- migrate:up` and after it at most one `-- migrate:down`", None
        return
    for line, marker in zip(lines, markers, strict=True):
        if (option := marker[2].strip()) not in ("", "transaction:true", "transaction:false"):
            fix = "transaction:true (the default) or transaction:false"
            yield line, "markers", f"option `{option}` is not known", fix
    for match in _LOOKALIKE.finditer(text):
        if match.start() not in {marker.start() for marker in markers}:
            message = "this looks like a marker, but it would be read as a comment"
            fix = "write `-- migrate:up` or `-- migrate:down` at the start of the line, in lower case"
            yield text.count("\n", 0, match.start()) + 1, "markers", message, fix
    for line, before in enumerate(text[: markers[0].start()].split("\n"), 1):
        if before.strip() and not before.lstrip().startswith("--"):
            message = "SQL is before `-- migrate:up`; only lines of `--` comments may"
            yield line, "markers", message, "move it below the marker"
    if not _section(text, markers, 0).statements:
        yield lines[0], "empty-up", "the up section is empty", None


def check(path: Path, version: str) -> tuple[Problem, ...]:
    """Return everything wrong or risky in one file, by line; risks only of the up section."""
    return _checked(*load(version, path))


def _checked(file: File | None, problems: Sequence[Problem]) -> tuple[Problem, ...]:
    risks = [Problem(file.path, "warning", *found) for found in lint.warnings(file.up)] if file else []
    return tuple(sorted([*problems, *risks], key=lambda problem: problem.line))


def check_all(folders: Folders, *, versions: Collection[str] | None = None) -> tuple[Problem, ...]:
    """Return the problems of every file, or of those of some *versions*, with those of the files' names and order.

    Raises ConfigurationError for a folder that is not there.
    """
    known = of(folders)
    bundled = folders.listing[0]
    latest = max((match[1] for path in bundled if (match := FILE_NAME.fullmatch(path.name))), default="")
    problems: list[Problem] = []
    seen: dict[str, Path] = {}
    for listing in folders.listing:
        highest = "0"
        for path in listing:
            match = FILE_NAME.fullmatch(path.name)
            version = match[1] if match else ""
            if versions is None or version in versions:
                read = path in known.problems
                problems += _checked(known.read.get(version), known.problems[path]) if read else check(path, version)
            if match is None:
                continue
            if version in seen:
                message = f"version {version} is also {seen[version]}"
                problems.append(Problem(path, "error", 1, "duplicate-version", message, "renumber the newer one"))
            elif listing is not bundled and (version < latest or int(version) < RESERVED):
                message = f"version {version} may be taken by a later posduif: it numbers its own below {RESERVED}"
                if version < latest:
                    message = f"version {version} comes before the bundled {latest}, which tenants have already"
                fix = "number from 1000 or by timestamp"
                problems.append(Problem(path, "warning", 1, "out-of-order", message, fix))
            if int(version) < int(highest):
                message = f"versions are ordered as text, so {version} comes after {highest}"
                problems.append(Problem(path, "warning", 1, "mixed-widths", message, "use the same number of digits"))
            highest = max(highest, version, key=int)
            seen.setdefault(version, path)
    return tuple(problems)


def new(folders: Folders, *, name: str, folder: Path | None) -> Path:
    """Make the next migration file in *folder*, or in the first configured one, and return its path.

    The version is the next number where the folder counts, else the time in UTC. Raises InvalidName,
    ConfigurationError without a folder or where the file cannot be made.
    """
    if not re.fullmatch(r"[a-z0-9_]{1,100}", name):
        raise InvalidName(f'"{name}" cannot be the name of a migration', why="it takes a-z, 0-9 and _")
    target = folder or next(iter(folders.further), None)
    if target is None:
        raise ConfigurationError(
            "there is no folder for migrations of your own",
            why="the bundled folder belongs to posduif",
            hint=["add --dir DIR", "set migrations.paths in the configuration"],
        )
    versions = [match[1] for path in target.glob("*.sql") if (match := FILE_NAME.fullmatch(path.name))]
    newest = max(versions, default=None)
    moment = datetime.now(UTC)
    while (version := f"{moment:%Y%m%d%H%M%S}") in versions:  # two files within one second
        moment += timedelta(seconds=1)
    if newest is not None and len(newest) < 14:
        following = f"{int(newest) + 1:04}"
        # Versions are compared as text, so behind 9999 comes 99990001.
        version = following if following > newest else f"{newest}0001"
    path = target / f"{version}_{name}.sql"
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except OSError as error:
        hint = f"mkdir -p {shlex.quote(str(target))}" if isinstance(error, FileNotFoundError) else ()
        raise ConfigurationError(f"{path} cannot be made", why=error.strerror, hint=hint) from None
    return path
