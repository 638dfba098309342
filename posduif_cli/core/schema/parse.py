"""SQL text: how psql splits it into statements, and what a statement works on; no server is needed."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

# As PostgreSQL's own lexer has it: letters, _ and every character beyond ASCII begin a name, digits and $ go on with
# it. The sets are negated, because one that runs to the end of Unicode takes long to compile.
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
_SETTING = re.compile(r"(?:set|reset)\b(?! local| transaction| constraints)")
_ALONE = re.compile(
    r"(?:create (?:unique )?|drop )index concurrently\b|vacuum\b|(?:create|drop) (?:database|tablespace)\b"
    r"|reindex (?:\( \) )?(?:database|schema|system)\b|alter (?:system|database \S+ set tablespace)\b"
    r"|alter table .* detach partition .* concurrently$|cluster(?: verbose| \( \))?$|discard all\b"
)
CREATE_INDEX = re.compile(r"create (?:unique )?index (concurrently )?(?:if not exists )?")
_DROP_INDEX = re.compile(r"drop index (concurrently )?(?:if exists )?")
_REINDEX = re.compile(r"reindex (?:\( \) )?(?:index|table|schema|database|system) (concurrently )?")
_REINDEX_OPTION = re.compile(r"(?is)reindex\s*\([^)]*\bconcurrently\b(?!\s*(?:false|off|0))")
_DATA = re.compile(
    r"(?:with|insert|update|delete|merge|copy|truncate|do|call|select)\b"
    r"|create .*?(?:table|view)\b.* as (?:with|select|values|table)\b"
)
_EMPTIES = re.compile(r"(?:drop table (?:if exists )?|truncate (?:table )?)")
_KEEPS_ROWS = re.compile(r"(?:drop index|create (?:unique )?index|comment on|set|reset|analyze|vacuum|reindex)\b")
_REPEATABLE = re.compile(r"(?:vacuum|analyze|analyse|reindex|cluster|checkpoint)\b")
_Token = tuple[str, int, int]  # kind, start, end


@dataclass(frozen=True)
class Statement:
    """One statement without its semicolon; *offset* is where in the split text it starts, *line* in the file.

    *tokens* has what is outside parentheses: words in lower case, quoted names as they are, strings as `''`.
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
class Name:
    """A relation's name as the catalog has it; without *schema* the search path decides."""

    schema: str | None
    name: str


@dataclass(frozen=True)
class Target:
    """What a statement works on, so that the catalog can tell whether it was done.

    *kind* is create_index_concurrently, drop_index_concurrently, reindex_concurrently, vacuum (may simply be
    repeated) or other. *names* are the indexes, for a reindex what is reindexed; an index without a name has none.
    """

    kind: str
    names: tuple[Name, ...] = ()
    table: Name | None = None


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
    """Return (statements, odd tokens): backslashes, which only psql understands, and quotes without an end."""
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
    """Return 1 if the last word begins a block of a function's body in SQL's own form, -1 if it ends one, else 0."""
    word, before = words[-1], words[-2] if len(words) > 1 else ""
    if word not in ("atomic", "case", "end") or before in (".", "as"):
        return 0
    if words[0] != "create" or not {"function", "procedure"} & {*words[1:4]}:
        return 0
    if word == "end":
        return -1 if bodies else 0
    return int(before == "begin" if word == "atomic" else bodies > 0)


def locate(section: Section, position: int) -> tuple[int, str]:
    """Return (line of the file, excerpt) for PostgreSQL's position in a section's text, counted from 1.

    For a position in a single statement add the statement's *offset*.
    """
    begun = [statement for statement in section.statements if statement.offset < position]
    statement = begun[-1] if begun else next(iter(section.statements), None)
    excerpt = " ".join(statement.text[:1000].split()) if statement else ""
    excerpt = _PASSWORD.sub(r"\1'****'", excerpt)
    return section.line_at(position - 1), excerpt if len(excerpt) <= 80 else excerpt[:79] + "…"


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
    """Whether PostgreSQL refuses a statement inside a transaction, whatever it works on."""
    return bool(_ALONE.match(statement.shape))


def target(statement: Statement) -> Target:
    """Return what a statement works on, as far as `apply` or a rule needs it."""
    shape, tokens = statement.shape, statement.tokens
    if match := CREATE_INDEX.match(shape):
        at = match[0].count(" ")
        name, at = (None, at) if tokens[at : at + 1] == ("on",) else name_at(tokens, at)
        at = tokens.index("on", at) if "on" in tokens[at:] else len(tokens)
        table = next(iter(names_at(tokens, at + 1)), None)
        names = (Name(table.schema, name.name),) if name and table else ()
        concurrent = "create_index_concurrently" if match[1] else "other"
        return Target(concurrent, names, table)
    if match := _DROP_INDEX.match(shape):
        concurrent = "drop_index_concurrently" if match[1] else "other"
        return Target(concurrent, names_at(tokens, match[0].count(" ")))
    match = _REINDEX.match(shape)
    if match and (match[1] or _REINDEX_OPTION.match(statement.text)):
        return Target("reindex_concurrently", names_at(tokens, match[0].count(" ")))
    return Target("vacuum" if _REPEATABLE.match(shape) else "other")


def declares(statement: Statement) -> bool:
    """Whether a statement declares objects; a block, a call, a query or a change of rows may run any code."""
    return statement.tokens[:1] in (("alter",), ("comment",), ("create",), ("drop",))


def name_at(tokens: Sequence[str], at: int) -> tuple[Name | None, int]:
    """Return (name, index of the token after it) of a name that may have a schema; the name is None where none is."""
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
    """Return the names of a list, each perhaps with ONLY before it and * behind it."""
    names: list[Name] = []
    while True:
        name, at = name_at(tokens, at + (tokens[at : at + 1] == ("only",)))
        names += [name] if name else []
        at += tokens[at : at + 1] == ("*",)
        if name is None or tokens[at : at + 1] != (",",):
            return tuple(names)
        at += 1
