"""Rules for the SQL of migration files, as a table: what would fail or could not be judged, and what is risky.

An error is what would fail, or leave a tenant in a state that cannot be judged. A warning is for statements that work
on a small table and make a large one wait; it has the name of squawk's rule where there is one, and
`-- posduif: allow RULE` on a line above a statement silences it. Each rule has an example of what it finds and a
counter-example of what it does not; a test runs both.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from posduif_cli.core.schema import parse
from posduif_cli.core.schema.parse import Name, Section, Statement

Found = tuple[int, str, str, str | None]  # line, rule, message, fix


@dataclass(frozen=True)
class Rule:
    """What is looked for in a statement.

    *pattern* matches the beginning of its shape, of a rule in ACTIONS that of one action of ALTER TABLE without what
    is in parentheses, or with it where the rule is *deep*. *also* must be True as well. *on* returns the relations
    that the statement works on, given the number of tokens that matched. The rule is for sections with or without a
    transaction as *transactional* says, None for both. In the texts `{words}` are the statement's first three words,
    `{first}` is the first of them, `{kind}` the section's, up or down.
    """

    name: str
    pattern: str
    message: str
    fix: str | None
    example: str
    counter_example: str
    transactional: bool | None = None
    also: Callable[[Statement], bool] = lambda statement: True
    on: Callable[[Statement, int], Iterable[Name | None]] = lambda statement, at: parse.names_at(statement.tokens, at)
    deep: bool = False


def _contains(pattern: str) -> Callable[[Statement], bool]:
    return lambda statement: re.search(pattern, statement.text, re.IGNORECASE) is not None


_is_utf8 = _contains(r"utf_?-?8|unicode|\bdefault\b")
_CONCURRENTLY = "say CONCURRENTLY, in a migration of its own with transaction:false"
_LATER = "drop it in a later migration, when nothing in use reads it any more"

# fmt: off
UNCLOSED = Rule("unclosed", "",
    "a {what} begins here and never ends",
    None,
    "SELECT 'a", "SELECT 'a', $$ ' $$")
PSQL_COMMAND = Rule("psql-command", "",
    "a backslash command is psql's own; the server does not know it",
    "write it in SQL",
    "\\i other.sql", "SELECT '\\i other.sql'")
# Of single statements, in both sections of a file.
ERRORS = (
    Rule("transaction-nesting",
        r"(?:begin|start transaction|commit|end|rollback|abort|savepoint|release|prepare transaction)\b",
        "{first} would end or divide the migration's own transaction; leave it out",
        None,
        "COMMIT", "SELECT 1 AS commit"),
    Rule("role-change", r"(?:set (?:local |session )?|reset )(?:role|session authorization|session_authorization)\b",
        "a change of role would make objects belong to someone else; leave it out",
        None,
        "SET LOCAL ROLE joe", "SET search_path = role"),
    Rule("advisory-unlock", "",
        "it would give up the lock that keeps other runs off the tenant",
        "leave it out",
        "SELECT pg_advisory_unlock_all()", "SELECT pg_advisory_unlock(7)",
        also=_contains(r"pg_advisory_unlock_all\s*\(")),
    Rule("session-state", r"create (?:global |local )?temp(?:orary)?\b|(?:prepare|declare|listen|load|deallocate)\b",
        "{first} makes what only this session has; after an interruption the next one would go on without",
        "put it into a file of its own, with what needs it, without transaction:false",
        "CREATE TEMP TABLE t (a int)", "CREATE TABLE temp (a int)",
        transactional=False),
    Rule("client-encoding", r"set (?:local |session )?(?:client_encoding|names)\b",
        "migrations are sent as UTF-8; another encoding would garble their text",
        "leave it out",
        "SET client_encoding = 'LATIN1'", "SET NAMES 'utf8'",
        also=lambda statement: not _is_utf8(statement)),
    Rule("copy-stdin", r"copy\b.* (?:from stdin|to stdout)\b",
        "COPY cannot read from or write to the client here",
        "use INSERT",
        "COPY (SELECT 1) TO STDOUT", "COPY t FROM '/stdin'"),
    Rule("ban-in-transaction", "",
        "{words} ... cannot run in a transaction",
        "write `-- migrate:{kind} transaction:false`",
        "CREATE INDEX CONCURRENTLY i ON t (a)", "REFRESH MATERIALIZED VIEW CONCURRENTLY v",
        transactional=True,
        also=lambda statement: parse.alone(statement) or parse.target(statement).kind == "reindex_concurrently"),
    Rule("unnamed-index", "create (?:unique )?index concurrently ",
        "name it: after an interruption it could not be told whether an unnamed index was built",
        "CREATE INDEX CONCURRENTLY name ON ...",
        "CREATE INDEX CONCURRENTLY ON t (a)", "CREATE INDEX CONCURRENTLY i ON t (a)",
        transactional=False, also=lambda statement: not parse.target(statement).names),
)

# Of single statements on relations that the same file has not made, in the up section.
RISKS = (
    Rule("ban-drop-table", r"drop table (?:if exists )?",
        "dropping a table loses its rows, and breaks what still reads it",
        _LATER,
        "DROP TABLE t", "CREATE TABLE t (a int); DROP TABLE t"),
    Rule("ban-truncate", r"truncate (?:table )?",
        "TRUNCATE loses every row and makes readers wait",
        "DELETE the rows that are meant",
        "TRUNCATE t", "DELETE FROM t WHERE truncate"),
    Rule("lock-table", r"lock (?:table )?",
        "LOCK TABLE makes others wait until the migration ends",
        None,
        "LOCK TABLE t IN SHARE MODE", "SELECT lock FROM t"),
    # ON ONLY a partitioned table builds nothing.
    Rule("require-concurrent-index-creation", r"create (?:unique )?index (?!concurrently )(?!.* on only )",
        "building an index makes writers wait",
        _CONCURRENTLY,
        "CREATE INDEX i ON t (a)", "CREATE INDEX i ON ONLY partitioned (a)",
        on=lambda statement, at: [parse.target(statement).table]),
    Rule("require-concurrent-index-deletion", r"drop index (?!concurrently )(?:if exists )?",
        "dropping an index makes readers and writers wait",
        _CONCURRENTLY,
        "DROP INDEX i", "CREATE TABLE t (a int); CREATE INDEX i ON t (a); DROP INDEX i"),
)

_COLUMN = (
    r"add (?:column (?:if not exists |(?!if not exists ))"
    r"|(?!column |constraint |check |foreign |unique |primary |exclude |not null))"
)
# Of the actions of ALTER TABLE, on tables that the same file has not made, in the up section.
ACTIONS = (
    Rule("adding-required-field",
        _COLUMN + r"(?=.* not null\b)(?!.* (?:default|generated)\b)(?!\S+ (?:small|big)?serial\d?\b)",
        "a NOT NULL column without a default fails on a table that has rows",
        "give it a DEFAULT, or add it without NOT NULL",
        "ALTER TABLE t ADD COLUMN c int NOT NULL", "ALTER TABLE t ADD COLUMN c int NOT NULL DEFAULT 0"),
    Rule("adding-field-with-default",
        _COLUMN
        + r"\S+ (?:(?:small|big)?serial\d?\b|.*\bgenerated (?:always|by default) as (?:identity|\(.*\) stored)\b"
        r"|.* default .*\b(?:random|random_normal|gen_random_uuid|uuidv[47]|uuid_generate_\w+|clock_timestamp"
        r"|timeofday|nextval) \()",
        "a default that differs from row to row rewrites the table while readers wait",
        "add the column without it, set the default in a second statement, fill old rows in batches",
        "ALTER TABLE t ADD COLUMN c uuid DEFAULT (gen_random_uuid())",
        "ALTER TABLE t ADD COLUMN c timestamp DEFAULT now()",
        deep=True),
    Rule("changing-column-type", r"alter (?:column |(?!column ))\S+ (?:set data )?type\b",
        "a new type may rewrite the table while readers wait, and breaks what expects the old one",
        "add a column of the new type, copy in batches, and drop the old one in a later migration",
        "ALTER TABLE t ALTER COLUMN c TYPE bigint", "ALTER TABLE t ALTER COLUMN type SET DEFAULT 1"),
    Rule("adding-not-nullable-field", r"alter (?:column |(?!column ))\S+ set not null\b",
        "SET NOT NULL reads the whole table while readers and writers wait",
        "first ADD CONSTRAINT ... CHECK (... IS NOT NULL) NOT VALID and VALIDATE it in another migration",
        "ALTER TABLE t ALTER c SET NOT NULL", "ALTER TABLE t ALTER c DROP NOT NULL"),
    Rule("constraint-missing-not-valid",
        r"add (?:constraint \S+ )?(?:check|foreign key|not null)\b(?!.* not (?:valid|enforced)\b)",
        "adding a constraint reads the whole table while writers wait",
        "add it NOT VALID, and VALIDATE CONSTRAINT in another migration",
        "ALTER TABLE t ADD CONSTRAINT k CHECK (a > 0)", "ALTER TABLE t ADD CONSTRAINT k CHECK (a > 0) NOT VALID"),
    Rule("disallowed-unique-constraint",
        rf"add (?:constraint \S+ )?(?:unique|primary key)\b(?! using index\b)|{_COLUMN}.* (?:unique|primary key)\b",
        "a unique constraint builds its index while readers and writers wait",
        "CREATE UNIQUE INDEX CONCURRENTLY, then ADD CONSTRAINT ... UNIQUE USING INDEX",
        "ALTER TABLE t ADD COLUMN c int UNIQUE", "ALTER TABLE t ADD CONSTRAINT k UNIQUE USING INDEX i"),
    Rule("renaming-column", r"rename (?!to\b|constraint\b)",
        "renaming a column breaks what still uses the old name",
        "add a column of the new name and drop the old one in a later migration",
        "ALTER TABLE t RENAME COLUMN a TO b", "ALTER TABLE t RENAME CONSTRAINT a TO b"),
    Rule("renaming-table", r"rename to\b",
        "renaming a table breaks what still uses the old name",
        "rename it and CREATE VIEW under the old name in the same migration",
        "ALTER TABLE IF EXISTS t RENAME TO u", "CREATE TABLE t (a int); ALTER TABLE t RENAME TO u"),
    Rule("ban-drop-column", r"drop (?!constraint\b)",
        "dropping a column loses its data, and breaks what still reads it",
        _LATER,
        "ALTER TABLE t DROP a", "ALTER TABLE t DROP CONSTRAINT k"),
)
# fmt: on
RULES = (UNCLOSED, PSQL_COMMAND, *ERRORS, *RISKS, *ACTIONS)

_ALLOW = re.compile(r"--\s*posduif:\s*allow\s+(.*)")
_CREATE_TABLE = re.compile(
    r"create (?:(?:global |local )?temp(?:orary)? |unlogged )?(?:table|materialized view) (?:if not exists )?"
)
_ALTER_TABLE = re.compile(r"alter table (?:if exists )?(?:only )?")


def errors(section: Section, kind: Literal["up", "down"]) -> Iterator[Found]:
    """Yield what is certainly wrong with a section; *kind* says which one of its file it is."""
    for found, start, _ in section.odd:
        rule = UNCLOSED if found == "open" else PSQL_COMMAND
        kinds = {"/": "comment", "$": "dollar quote", '"': "quoted name", "u": "quoted name", "U": "quoted name"}
        message = rule.message.format(what=kinds.get(section.text[start], "string"))
        yield section.line_at(start), rule.name, message, rule.fix
    for statement in section.statements:
        for rule in ERRORS:
            if rule.transactional not in (None, section.transactional):
                continue
            if re.match(rule.pattern, statement.shape) and rule.also(statement):
                words = statement.shape.upper().split(" ")
                texts = {"first": words[0], "words": " ".join(words[:3]), "kind": kind}
                fix = rule.fix and rule.fix.format(**texts)
                yield statement.line, rule.name, rule.message.format(**texts), fix


def warnings(section: Section) -> Iterator[Found]:
    """Yield what is risky in a section, without what a comment allows."""
    made: set[Name] = set()
    for statement in section.statements:
        risks = list(_risks(statement, made))
        allowed = _allowed(section.text[: statement.offset]) if risks else set()
        yield from ((line, rule.name, rule.message, rule.fix) for line, rule in risks if rule.name not in allowed)
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
        return _public(parse.names_at(statement.tokens, match[0].count(" ")))
    if parse.CREATE_INDEX.match(statement.shape):
        return _public(parse.target(statement).names)
    if (match := _ALTER_TABLE.match(statement.shape)) and statement.tokens[-3:-1] == ("rename", "to"):
        old = _public(parse.names_at(statement.tokens, match[0].count(" ")))
        return _public([parse.name_at(statement.tokens, len(statement.tokens) - 1)[0]]) if old <= made else set()
    return set()


def _risks(statement: Statement, made: set[Name]) -> Iterator[tuple[int, Rule]]:
    """Yield (line, rule) for what would make others wait or lose data, except on what the same file has made."""
    for rule in RISKS:
        match = re.match(rule.pattern, statement.shape)
        if match and not _public(rule.on(statement, match[0].count(" "))) <= made:
            yield statement.line, rule
    if match := _ALTER_TABLE.match(statement.shape):
        table, at = parse.name_at(statement.tokens, match[0].count(" "))
        if not _public([table]) <= made:
            for line, shallow, deep in _actions(statement, at + (statement.tokens[at : at + 1] == ("*",))):
                for rule in ACTIONS:
                    if re.match(rule.pattern, deep if rule.deep else shallow):
                        yield line, rule


def _actions(statement: Statement, skipped: int) -> Iterator[tuple[int, str, str]]:
    """Yield the actions of ALTER TABLE: line, words outside parentheses, all words; *skipped* tokens lead."""
    text, depth, shallow, deep, begun = statement.text, 0, list[str](), list[str](), 0
    for token in (*parse.lex(text + ","),):
        word = parse.token_text(text + ",", token)
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
