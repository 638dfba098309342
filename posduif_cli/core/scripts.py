"""Migration files: read them, split them into statements as psql does, and find what is wrong with them.

Nothing here talks to a server. Wrong is what would fail, or leave a tenant in a state that cannot be judged;
what is merely risky is found in `risks`.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from posduif_cli.core.folders import BAD_NAME, FILE_NAME
from posduif_cli.errors import ConfigurationError

_MARKER = re.compile(r"^--[ \t]*migrate:(up|down)(?![^ \t\n])([^\n]*)$", re.MULTILINE)
_LOOKALIKE = re.compile(r"^[ \t]*--[ \t-]*migrate[ \t]?:(?:[ \t]*(?:up|down)\b|\w)", re.MULTILINE | re.IGNORECASE)
# As PostgreSQL's own lexer has it: letters, _ and every character beyond ASCII begin a name, digits and $ go on with
# it. Said by what does not, because a set that runs to the end of Unicode takes long to compile.
_BEGIN = r"[^\x00-\x40\x5b-\x5e\x60\x7b-\x7f]"
_ON = r"[^\x00-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]"
_WORD_ON = r"[^\x00-\x23\x25-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]"
# Only how a token begins. What has an end of its own is followed to it by `_end`, which takes linear time without
# possessive quantifiers and atomic groups: Python 3.11.0 to 3.11.4 get those wrong.
_TOKEN = re.compile(
    rf"""(?P<blank> [ \t\n\r\f\v]+ | --[^\n\r]* )
      | (?P<comment> /\* )
      | (?P<string> [eE]?' )
      | (?P<dollar> \$(?: {_BEGIN}{_ON}* )?\$ )
      | (?P<name> (?: [uU]& )?" )
      | (?P<word> {_BEGIN}{_WORD_ON}* )
      | [0-9]+ | .""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_BLANKS = re.compile(r"(?:[ \t\n\r\f\v]+|--[^\n\r]*)*")
_QUOTE = re.compile("''?")
_ESCAPED_QUOTE = re.compile(r"\\.|''?", re.DOTALL)
_DOUBLE_QUOTE = re.compile('""?')
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_PASSWORD = re.compile(r"(?i)(\bpassword\s+)(?:[eu]&?)?'(?:[^']|'')*(?:'|$)")
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}

# Each is matched with a statement's shape.
_CONTROL = re.compile(r"(?:begin|start transaction|commit|end|rollback|abort|savepoint|release|prepare transaction)\b")
_ROLE = re.compile(r"(?:set (?:local |session )?|reset )(?:role|session authorization|session_authorization)\b")
_SETTING = re.compile(r"(?:set|reset)\b(?! local| transaction| constraints)")
_OF_THE_SESSION = re.compile(r"create (?:global |local )?temp(?:orary)?\b|(?:prepare|declare|listen|load|deallocate)\b")
_UNLOCKING = re.compile(r"pg_advisory_unlock_all\s*\(", re.IGNORECASE)
_ENCODING = re.compile(r"set (?:local |session )?(?:client_encoding|names)\b")
_UTF8 = re.compile(r"utf_?-?8|unicode|\bdefault\b", re.IGNORECASE)
_COPY = re.compile(r"copy\b.* (?:from stdin|to stdout)\b")
_ALONE = re.compile(
    r"(?:create (?:unique )?|drop )index concurrently\b|vacuum\b|(?:create|drop) (?:database|tablespace)\b"
    r"|reindex (?:\( \) )?(?:database|schema|system)\b|alter (?:system|database \S+ set tablespace)\b"
    r"|alter table .* detach partition .* concurrently$|cluster(?: verbose| \( \))?$|discard all\b"
)
CREATE_INDEX = re.compile(r"create (unique )?index (concurrently )?(if not exists )?")
DROP_INDEX = re.compile(r"drop index (concurrently )?(if exists )?")
_REINDEX = re.compile(r"reindex (?:\( \) )?(index|table|schema|database|system) (concurrently )?")
_REINDEX_OPTION = re.compile(r"(?is)reindex\s*\([^)]*\bconcurrently\b(?!\s*(?:false|off|0))")
_DATA = re.compile(
    r"(?:with|insert|update|delete|merge|copy|truncate|do|call|select)\b"
    r"|create .*?(?:table|view)\b.* as (?:with|select|values|table)\b"
)
_EMPTIES = re.compile(r"(?:drop table (?:if exists )?|truncate (?:table )?)")
_KEEPS_ROWS = re.compile(r"(?:drop index|create (?:unique )?index|comment on|set|reset|analyze|vacuum|reindex)\b")
_REPEATABLE = re.compile(r"(?:vacuum|analyze|analyse|reindex|cluster|checkpoint)\b")
_Token = tuple[str, int, int]  # kind, start, end
Found = tuple[int, str, str, str | None]  # line, rule, message, fix


@dataclass(frozen=True)
class Statement:
    """One statement without its semicolon; *offset* is where in the split text it starts, *line* in the file.

    *tokens* has what stands outside parentheses: words in lower case, quoted names as they are, strings as `''`.
    """

    text: str
    line: int
    offset: int = 0
    tokens: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def shape(self) -> str:
        """The tokens in one line, a quoted name as `""`: what rules are matched with."""
        return " ".join('""' if token[0] == '"' else token for token in self.tokens)


@dataclass(frozen=True)
class Section:
    """The up or the down part of a file; *text* has LF only and begins on *line* of the file."""

    text: str
    line: int
    transactional: bool = True

    @cached_property
    def _parsed(self) -> "tuple[tuple[Statement, ...], tuple[_Token, ...]]":
        return _parse(self.text, self.line)

    @property
    def statements(self) -> tuple[Statement, ...]:
        """The section's statements in order."""
        return self._parsed[0]

    @property
    def odd(self) -> tuple[_Token, ...]:
        """Backslashes, which only psql understands, and what begins a quote or comment that never ends."""
        return self._parsed[1]

    def line_at(self, offset: int) -> int:
        """The line of the file that a character of the text, counted from 0, is on."""
        return self.line + self.text.count("\n", 0, offset)


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
    line: int
    level: Literal["error", "warning"]
    rule: str
    message: str
    fix: str | None


@dataclass(frozen=True)
class Name:
    """A relation's name as the catalog has it; without *schema* the search path decides."""

    schema: str | None
    name: str


@dataclass(frozen=True)
class Target:
    """What a statement works on, so that the catalog can tell whether it was done.

    *kind* is create_index_concurrently, drop_index_concurrently, reindex_concurrently, vacuum (may simply be
    repeated) or other. *names* are the indexes, for a reindex what *object* says (index, table, schema,
    database, system); an index without a name has none. *guarded* is IF [NOT] EXISTS.
    """

    kind: str
    names: tuple[Name, ...] = ()
    table: Name | None = None
    object: str = "index"
    guarded: bool = False
    unique: bool = False


def split(text: str, *, line: int = 1) -> tuple[Statement, ...]:
    """Split SQL as psql does; *line* is the line of the file that *text* begins on.

    A semicolon counts outside quotes, comments, parentheses and the body of a function in SQL's own form.
    """
    return _parse(text, line)[0]


def lex(text: str) -> Iterator[_Token]:
    """Yield every token but blanks and comments; a quote or comment that never ends is of the kind `open`."""
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None
        start, position, kind = position, match.end(), match.lastgroup or "other"
        if kind in ("comment", "string", "dollar", "name"):
            end = _end(text, start, match[0])
            position = len(text) if end is None else end
            if end is None:
                yield "open", start, position
                return
        if kind not in ("blank", "comment"):
            yield "string" if kind == "dollar" else kind, start, position


def _end(text: str, start: int, opening: str) -> int | None:
    """Return where the comment or quote that begins at *start* with *opening* ends; None where it never does."""
    at = start + len(opening)
    if opening == "/*":
        nested = 1
        while nested and (edge := _COMMENT_EDGE.search(text, at)):
            at = edge.end()
            nested += 1 if edge[0] == "/*" else -1
        return None if nested else at
    if opening[0] == "$":
        found = text.find(opening, at)
        return None if found < 0 else found + len(opening)
    escapes = opening[0] in "eE"
    closing = _ESCAPED_QUOTE if escapes else _QUOTE if opening == "'" else _DOUBLE_QUOTE
    while edge := closing.search(text, at):
        at = edge.end()
        if edge[0] in ("'", '"'):
            # E'...' goes on in the next '...' of another line, with its escapes; of other strings that is a new token.
            more = _continued(text, at) if escapes else None
            if more is None:
                return at
            at = more
    return None


def _continued(text: str, end: int) -> int | None:
    """Return where a string that was closed at *end* goes on on a later line, behind the quote; None if it does not."""
    blanks = _BLANKS.match(text, end)
    assert blanks is not None
    goes_on = text.startswith("'", blanks.end()) and ("\n" in blanks[0] or "\r" in blanks[0])
    return blanks.end() + 1 if goes_on else None


def token_text(text: str, token: _Token) -> str:
    """Return a token as rules compare it: words in lower case, strings as `''`."""
    kind, start, end = token
    if kind == "word":
        word = text[start:end]
        return word.lower() if word.isascii() else word.translate(_ASCII_LOWER)
    if kind == "name":
        return text[start:end] if text[start] == '"' else "?"
    return "''" if kind in ("string", "open") else text[start:end]


def _parse(text: str, line: int) -> tuple[tuple[Statement, ...], tuple[_Token, ...]]:
    """Split *text*; the second part has what psql only understands (backslashes) and quotes without an end."""
    statements: list[Statement] = []
    odd: list[_Token] = []
    shallow: list[str] = []
    start, end, depth, bodies, counted = -1, 0, 0, 0, 0
    for token in (*lex(text), ("other", len(text), len(text))):
        kind, begin, stop = token
        word = token_text(text, token)
        if kind == "open" or word == "\\":
            odd.append(token)
        if kind == "open" and text.startswith("/*", begin):
            continue
        if begin == len(text) or (word == ";" and not depth and not bodies):
            if start >= 0:
                line += text.count("\n", counted, start)
                statements.append(Statement(text[start:end], line, start, tuple(shallow)))
                counted = start
            start, depth, bodies, shallow = -1, 0, 0, []
            continue
        start, end = (begin if start < 0 else start), stop
        depth -= word == ")" and depth > 0
        if not depth:
            shallow.append(word)
            bodies += _opens(shallow, bodies) if kind == "word" else 0
        depth += word == "("
    return tuple(statements), tuple(odd)


def _opens(words: list[str], bodies: int) -> int:
    """Say whether the last word begins (1) or ends (-1) a block of a function's body in SQL's own form."""
    word, before = words[-1], words[-2] if len(words) > 1 else ""
    if word not in ("atomic", "case", "end") or before in (".", "as"):
        return 0
    if words[0] != "create" or not {"function", "procedure"} & {*words[1:4]}:
        return 0
    if word == "end":
        return -1 if bodies else 0
    return int(before == "begin" if word == "atomic" else bodies > 0)


def locate(section: Section, position: int) -> tuple[int, str]:
    """Turn PostgreSQL's position in a section's text, counted from 1, into the file's line and an excerpt.

    For a position in a single statement add the statement's *offset*.
    """
    begun = [statement for statement in section.statements if statement.offset < position]
    statement = begun[-1] if begun else next(iter(section.statements), None)
    excerpt = " ".join(statement.text[:1000].split()) if statement else ""
    excerpt = _PASSWORD.sub(r"\1'****'", excerpt)
    return section.line_at(position - 1), excerpt if len(excerpt) <= 80 else excerpt[:79] + "…"


def read(version: str, path: Path) -> File:
    """Read one migration file in dbmate's format; raises ConfigurationError, with the line, on its first error."""
    try:
        file, problems = load(version, path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read", why=error.strerror) from None
    errors = [problem for problem in problems if problem.level == "error"]
    if errors or file is None:
        raise ConfigurationError(f"{path}:{errors[0].line}: {errors[0].message}", hint=errors[0].fix or ())
    return file


def load(version: str, path: Path) -> tuple[File | None, list[Problem]]:
    """Read one file and what is certainly wrong with it, by line; there is no File without its sections."""
    content = path.read_bytes()
    plain = content.replace(b"\r\n", b"\n")
    name = FILE_NAME.fullmatch(path.name)
    file, errors = None, list(_byte_errors(plain))
    if not errors:
        text = plain.decode()
        markers = list(_MARKER.finditer(text))
        errors += _marker_errors(text, markers)
        if not errors:
            up, down = _section(text, markers, 0), _section(text, markers, 1) if len(markers) > 1 else None
            errors += [*_section_errors(up, "up"), *(_section_errors(down, "down") if down else ())]
            title = name[2] if name else path.stem
            file = File(version, title, path, up, down, hashlib.sha256(plain).hexdigest())
    if name is None or name[1] != version:
        errors.append((1, "file-name", BAD_NAME, None))
    problems = [problem(path, "error", found) for found in sorted(errors, key=lambda found: found[0])]
    if plain != content:
        fix = "git config core.autocrlf input, or `*.sql text eol=lf` in .gitattributes"
        problems.append(problem(path, "warning", (1, "line-ends", "lines end in CRLF; they are read as LF", fix)))
    return file, problems


def problem(path: Path, level: Literal["error", "warning"], found: Found) -> Problem:
    """Make a Problem of what was found in a file."""
    line, rule, message, fix = found
    return Problem(path, line, level, rule, message, fix)


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
        message = "a migration has one `-- migrate:up` and after it at most one `-- migrate:down`"
        yield line, "markers", message, None
        return
    for line, marker in zip(lines, markers, strict=True):
        if (option := marker[2].strip()) not in ("", "transaction:true", "transaction:false"):
            fix = "transaction:true (the default) or transaction:false"
            yield line, "markers", f"option `{option}` is not known", fix
    for match in _LOOKALIKE.finditer(text):
        if match.start() not in {marker.start() for marker in markers}:
            message = "this looks like a marker, but is none: it would be read as a comment"
            fix = "write `-- migrate:up` or `-- migrate:down` at the start of the line, in lower case"
            yield text.count("\n", 0, match.start()) + 1, "markers", message, fix
    for line, before in enumerate(text[: markers[0].start()].split("\n"), 1):
        if before.strip() and not before.lstrip().startswith("--"):
            message = "SQL stands before `-- migrate:up`; only lines of `--` comments may"
            yield line, "markers", message, "move it below the marker"
    if not _section(text, markers, 0).statements:
        yield lines[0], "empty-up", "the up section is empty", None


def _section_errors(section: Section, kind: str) -> Iterator[Found]:
    for found, start, _ in section.odd:
        if found == "open":
            kinds = {"/": "comment", "$": "dollar quote", '"': "quoted name", "u": "quoted name", "U": "quoted name"}
            what = kinds.get(section.text[start], "string")
            yield section.line_at(start), "unclosed", f"a {what} begins here and never ends", None
        else:
            message = "a backslash command is psql's own; the server does not know it"
            yield section.line_at(start), "psql-command", message, "write it in SQL"
    for statement in section.statements:
        for rule, message, fix in _statement_errors(statement, section.transactional, kind):
            yield statement.line, rule, message, fix


def _statement_errors(statement: Statement, transactional: bool, kind: str) -> Iterator[tuple[str, str, str | None]]:
    shape = statement.shape
    first = shape.partition(" ")[0].upper()
    if _CONTROL.match(shape):
        message = f"{first} would end or divide the migration's own transaction; leave it out"
        yield "transaction-nesting", message, None
    if _ROLE.match(shape):
        yield "role-change", "a change of role would make objects belong to someone else; leave it out", None
    if _UNLOCKING.search(statement.text):
        yield "advisory-unlock", "it would give up the lock that keeps other runs off the tenant", "leave it out"
    if not transactional and _OF_THE_SESSION.match(shape):
        message = f"{first} makes what only this session has; after an interruption the next one would go on without"
        yield "session-state", message, "put it into a file of its own, with what needs it, without transaction:false"
    if _ENCODING.match(shape) and not _UTF8.search(statement.text):
        yield (
            "client-encoding",
            "migrations are sent as UTF-8; another encoding would garble their text",
            "leave it out",
        )
    if _COPY.match(shape):
        yield "copy-stdin", "COPY cannot read from or write to the client here", "use INSERT"
    goal = target(statement)
    if transactional and (_ALONE.match(shape) or goal.kind == "reindex_concurrently"):
        words = " ".join(first if n == 0 else word.upper() for n, word in enumerate(statement.tokens[:3]))
        message = f"{words} ... cannot run in a transaction"
        yield "ban-in-transaction", message, f"write `-- migrate:{kind} transaction:false`"
    if goal.kind == "create_index_concurrently" and not goal.names:
        message = "name it: after an interruption nobody could tell whether an unnamed index was built"
        yield "unnamed-index", message, "CREATE INDEX CONCURRENTLY name ON ..."


def touches_data(statement: Statement) -> bool:
    """Whether a statement may do something to rows, which no comparison of schemas shows.

    >>> [touches_data(s) for s in split("ALTER TABLE a ADD b int; INSERT INTO a VALUES (1); CREATE TABLE c AS TABLE a")]
    [False, True, True]
    """
    return _DATA.match(statement.shape) is not None


def emptied(statement: Statement) -> tuple[Name, ...]:
    """Return the tables that a statement drops or truncates by name.

    >>> [emptied(s) for s in split("DROP TABLE IF EXISTS a, s.b; TRUNCATE ONLY c; DELETE FROM d")]
    [(Name(schema=None, name='a'), Name(schema='s', name='b')), (Name(schema=None, name='c'),), ()]
    """
    match = _EMPTIES.match(statement.shape)
    return names_at(statement.tokens, match[0].count(" ")) if match else ()


def keeps_rows(statement: Statement) -> bool:
    """Whether a statement is known to lose no rows and nothing in them.

    >>> [keeps_rows(s) for s in split("DROP INDEX i; ALTER TABLE a DROP COLUMN b; SELECT 1")]
    [True, False, False]
    """
    return _KEEPS_ROWS.match(statement.shape) is not None


def is_setting(statement: Statement) -> bool:
    """Whether a statement sets something for the session, which is to be set again in the next one.

    >>> [is_setting(s) for s in split("SET my.x = 1; SET LOCAL my.x = 1; RESET my.x; SELECT 1")]
    [True, False, True, False]
    """
    return _SETTING.match(statement.shape) is not None


def alone(statement: Statement) -> bool:
    """Say whether PostgreSQL is known to refuse a statement inside a transaction, whatever it works on."""
    return bool(_ALONE.match(statement.shape))


def kind(statement: Statement) -> str:
    """Say how the runner can judge a statement outside a transaction; see `Target`."""
    return target(statement).kind


def target(statement: Statement) -> Target:
    """Parse what a statement works on, as far as the runner or a rule needs it."""
    shape, tokens = statement.shape, statement.tokens
    if match := CREATE_INDEX.match(shape):
        at = match[0].count(" ")
        name, at = (None, at) if tokens[at : at + 1] == ("on",) else name_at(tokens, at)
        at = tokens.index("on", at) if "on" in tokens[at:] else len(tokens)
        table = next(iter(names_at(tokens, at + 1)), None)
        names = (Name(table.schema, name.name),) if name and table else ()
        concurrent = "create_index_concurrently" if match[2] else "other"
        return Target(concurrent, names, table, guarded=bool(match[3]), unique=bool(match[1]))
    if match := DROP_INDEX.match(shape):
        concurrent = "drop_index_concurrently" if match[1] else "other"
        return Target(concurrent, names_at(tokens, match[0].count(" ")), guarded=bool(match[2]))
    match = _REINDEX.match(shape)
    if match and (match[2] or _REINDEX_OPTION.match(statement.text)):
        return Target("reindex_concurrently", names_at(tokens, match[0].count(" ")), object=match[1])
    return Target("vacuum" if _REPEATABLE.match(shape) else "other")


def name_at(tokens: Sequence[str], at: int) -> tuple[Name | None, int]:
    """Parse a name that may have a schema; the second value is where it ends."""
    parts: list[str] = []
    while at < len(tokens) and (tokens[at][0] in '"_' or tokens[at][0].isalpha() or tokens[at][0] > "\x7f"):
        part = tokens[at][1:-1].replace('""', '"') if tokens[at][0] == '"' else tokens[at]
        parts.append(part.encode()[:63].decode(errors="ignore"))  # as PostgreSQL cuts it
        at += 1
        if tokens[at : at + 1] != (".",):
            break
        at += 1
    return (Name(parts[-2] if len(parts) > 1 else None, parts[-1]) if parts else None), at


def names_at(tokens: Sequence[str], at: int) -> tuple[Name, ...]:
    """Parse a list of names, each perhaps with ONLY before it and * behind it."""
    names: list[Name] = []
    while True:
        name, at = name_at(tokens, at + (tokens[at : at + 1] == ("only",)))
        names += [name] if name else []
        at += tokens[at : at + 1] == ("*",)
        if name is None or tokens[at : at + 1] != (",",):
            return tuple(names)
        at += 1
