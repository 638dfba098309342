"""Rules for the SQL of migration files: what would fail, or could not be judged, and what is risky.

An error is what would fail, or leave a tenant in a state that cannot be judged. A warning is for statements that work
on a small table and make a large one wait; it has the name of squawk's rule where there is one, and
`-- posduif: allow RULE` on a line above a statement silences it.
"""

import re
from collections.abc import Iterable, Iterator

from posduif_cli.core.schema.parse import (
    CREATE_INDEX,
    DROP_INDEX,
    Name,
    Section,
    Statement,
    alone,
    lex,
    name_at,
    names_at,
    target,
    token_text,
)

# Each is matched with a statement's shape.
_CONTROL = re.compile(r"(?:begin|start transaction|commit|end|rollback|abort|savepoint|release|prepare transaction)\b")
_ROLE = re.compile(r"(?:set (?:local |session )?|reset )(?:role|session authorization|session_authorization)\b")
_OF_THE_SESSION = re.compile(r"create (?:global |local )?temp(?:orary)?\b|(?:prepare|declare|listen|load|deallocate)\b")
_UNLOCKING = re.compile(r"pg_advisory_unlock_all\s*\(", re.IGNORECASE)
_ENCODING = re.compile(r"set (?:local |session )?(?:client_encoding|names)\b")
_UTF8 = re.compile(r"utf_?-?8|unicode|\bdefault\b", re.IGNORECASE)
_COPY = re.compile(r"copy\b.* (?:from stdin|to stdout)\b")
Found = tuple[int, str, str, str | None]  # line, rule, message, fix
_ALLOW = re.compile(r"--\s*posduif:\s*allow\s+(.*)")
_CREATE_TABLE = re.compile(
    r"create (?:(?:global |local )?temp(?:orary)? |unlogged )?(?:table|materialized view) (?:if not exists )?"
)
_ALTER_TABLE = re.compile(r"alter table (?:if exists )?(?:only )?")
_CONCURRENTLY = "say CONCURRENTLY, in a migration of its own with transaction:false"
_LATER = "drop it in a later migration, when nothing in use reads it any more"
_WHOLE_TABLE = (
    (
        "ban-drop-table",
        re.compile(r"drop table (?:if exists )?"),
        "dropping a table loses its rows, and breaks what still reads it",
        _LATER,
    ),
    (
        "ban-truncate",
        re.compile(r"truncate (?:table )?"),
        "TRUNCATE loses every row and makes readers wait",
        "DELETE the rows that are meant",
    ),
    ("lock-table", re.compile(r"lock (?:table )?"), "LOCK TABLE makes others wait until the migration ends", None),
)
_COLUMN = (
    r"add (?:column (?:if not exists |(?!if not exists ))"
    r"|(?!column |constraint |check |foreign |unique |primary |exclude |not null))"
)
# rule, what an action of ALTER TABLE looks like outside parentheses (for defaults inside them too), message, fix
_DEFAULTS = "adding-field-with-default"
_ACTIONS = tuple(
    (rule, re.compile(action), message, fix)
    for rule, action, message, fix in (
        (
            "adding-required-field",
            _COLUMN + r"(?=.* not null\b)(?!.* (?:default|generated)\b)(?!\S+ (?:small|big)?serial\d?\b)",
            "a NOT NULL column without a default fails on a table that has rows",
            "give it a DEFAULT, or add it without NOT NULL",
        ),
        (
            _DEFAULTS,
            _COLUMN
            + r"\S+ (?:(?:small|big)?serial\d?\b|.*\bgenerated (?:always|by default) as (?:identity|\(.*\) stored)\b"
            r"|.* default .*\b(?:random|random_normal|gen_random_uuid|uuidv[47]|uuid_generate_\w+|clock_timestamp"
            r"|timeofday|nextval) \()",
            "a default that differs from row to row rewrites the table while readers wait",
            "add the column without it, set the default in a second statement, fill old rows in batches",
        ),
        (
            "changing-column-type",
            r"alter (?:column |(?!column ))\S+ (?:set data )?type\b",
            "a new type may rewrite the table while readers wait, and breaks what expects the old one",
            "add a column of the new type, copy in batches, and drop the old one in a later migration",
        ),
        (
            "adding-not-nullable-field",
            r"alter (?:column |(?!column ))\S+ set not null\b",
            "SET NOT NULL reads the whole table while readers and writers wait",
            "first ADD CONSTRAINT ... CHECK (... IS NOT NULL) NOT VALID and VALIDATE it in another migration",
        ),
        (
            "constraint-missing-not-valid",
            r"add (?:constraint \S+ )?(?:check|foreign key|not null)\b(?!.* not (?:valid|enforced)\b)",
            "adding a constraint reads the whole table while writers wait",
            "add it NOT VALID, and VALIDATE CONSTRAINT in another migration",
        ),
        (
            "disallowed-unique-constraint",
            rf"add (?:constraint \S+ )?(?:unique|primary key)\b(?! using index\b)|{_COLUMN}.* (?:unique|primary key)\b",
            "a unique constraint builds its index while readers and writers wait",
            "CREATE UNIQUE INDEX CONCURRENTLY, then ADD CONSTRAINT ... UNIQUE USING INDEX",
        ),
        (
            "renaming-column",
            r"rename (?!to\b|constraint\b)",
            "renaming a column breaks what still uses the old name",
            "add a column of the new name and drop the old one in a later migration",
        ),
        (
            "renaming-table",
            r"rename to\b",
            "renaming a table breaks what still uses the old name",
            "rename it and CREATE VIEW under the old name in the same migration",
        ),
        (
            "ban-drop-column",
            r"drop (?!constraint\b)",
            "dropping a column loses its data, and breaks what still reads it",
            _LATER,
        ),
    )
)


def errors(section: Section, kind: str) -> Iterator[Found]:
    """Yield what is certainly wrong with a section; *kind* is up or down."""
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
    if transactional and (alone(statement) or goal.kind == "reindex_concurrently"):
        words = " ".join(first if n == 0 else word.upper() for n, word in enumerate(statement.tokens[:3]))
        message = f"{words} ... cannot run in a transaction"
        yield "ban-in-transaction", message, f"write `-- migrate:{kind} transaction:false`"
    if goal.kind == "create_index_concurrently" and not goal.names:
        message = "name it: after an interruption nobody could tell whether an unnamed index was built"
        yield "unnamed-index", message, "CREATE INDEX CONCURRENTLY name ON ..."


def warnings(section: Section) -> Iterator[Found]:
    """Yield what is risky in a section, but for what a comment allows."""
    made: set[Name] = set()
    for statement in section.statements:
        risks = list(_risks(statement, made))
        allowed = _allowed(section.text[: statement.offset]) if risks else set()
        yield from (risk for risk in risks if risk[1] not in allowed)
        made |= _makes(statement, made)


def _allowed(before: str) -> set[str]:
    """Return the rules that the comment lines right above a statement allow."""
    rules: set[str] = set()
    for line in reversed(before.split("\n")[:-1]):
        if not line.lstrip().startswith("--"):
            break
        if match := _ALLOW.search(line):
            rules.update(re.findall(r"[\w-]+", match[1]))
    return rules


def _public(names: Iterable[Name | None]) -> set[Name]:
    return {Name(name.schema or "public", name.name) for name in names if name}


def _makes(statement: Statement, made: set[Name]) -> set[Name]:
    """Return the tables and indexes that are new after a statement."""
    if match := _CREATE_TABLE.match(statement.shape):
        return _public(names_at(statement.tokens, match[0].count(" ")))
    if CREATE_INDEX.match(statement.shape):
        return _public(target(statement).names)
    if (match := _ALTER_TABLE.match(statement.shape)) and statement.tokens[-3:-1] == ("rename", "to"):
        old = _public(names_at(statement.tokens, match[0].count(" ")))
        return _public([name_at(statement.tokens, len(statement.tokens) - 1)[0]]) if old <= made else set()
    return set()


def _risks(statement: Statement, made: set[Name]) -> Iterator[Found]:
    """Find what would make others wait or lose data, except on what the same file has made."""
    shape, goal = statement.shape, target(statement)
    for rule, lead, message, fix in _WHOLE_TABLE:
        if (match := lead.match(shape)) and not _public(names_at(statement.tokens, match[0].count(" "))) <= made:
            yield statement.line, rule, message, fix
    builds = (match := CREATE_INDEX.match(shape)) and not match[2] and " on only " not in shape  # ONLY builds nothing
    if builds and not _public([goal.table]) <= made:
        message = "building an index makes writers wait"
        yield statement.line, "require-concurrent-index-creation", message, _CONCURRENTLY
    if (match := DROP_INDEX.match(shape)) and not match[1] and not _public(goal.names) <= made:
        message = "dropping an index makes readers and writers wait"
        yield statement.line, "require-concurrent-index-deletion", message, _CONCURRENTLY
    if match := _ALTER_TABLE.match(shape):
        table, at = name_at(statement.tokens, match[0].count(" "))
        if not _public([table]) <= made:
            for line, shallow, deep in _actions(statement, at + (statement.tokens[at : at + 1] == ("*",))):
                for rule, action, message, fix in _ACTIONS:
                    if action.match(deep if rule == _DEFAULTS else shallow):
                        yield line, rule, message, fix


def _actions(statement: Statement, skipped: int) -> Iterator[tuple[int, str, str]]:
    """Yield the actions of ALTER TABLE: line, words outside parentheses, all words; *skipped* tokens lead."""
    text, depth, shallow, deep, begun = statement.text, 0, list[str](), list[str](), 0
    for token in (*lex(text + ","),):
        word = token_text(text + ",", token)
        word = '""' if word[0] == '"' else word
        depth -= word == ")"
        if not depth and skipped:
            skipped -= 1
        elif not depth and word == ",":
            yield statement.line + text.count("\n", 0, begun), " ".join(shallow), " ".join(deep)
            shallow, deep = [], []
        else:
            begun = begun if deep else token[1]
            deep.append(word)
            shallow += [] if depth else [word]
        depth += word == "("
