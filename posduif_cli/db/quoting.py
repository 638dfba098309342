"""Identifiers, literals and statements, quoted by psycopg alone."""

from typing import Any, LiteralString

from psycopg import sql

Query = LiteralString | sql.SQL | sql.Composed


def quoted(name: str) -> str:
    """Quote an SQL identifier for a hint that a person pastes into psql.

    >>> quoted("alice"), quoted("Alice B")
    ('alice', '"Alice B"')
    """
    plain = name.replace("_", "a").isalnum() and name.isascii() and name.islower() and not name[0].isdigit()
    return name if plain else '"' + name.replace('"', '""') + '"'


def quoted_text(text: str) -> str:
    """Quote an SQL literal for a hint that a person pastes into psql.

    >>> quoted_text("o'brien")
    "'o''brien'"
    """
    return sql.Literal(text).as_string(None).strip()


def identifier(*names: str) -> sql.Composable:
    """Quote an identifier."""
    return sql.Identifier(*names)


def literal(value: Any) -> sql.Composable:
    """Quote a literal."""
    return sql.Literal(value)


def compose(template: LiteralString, **parts: sql.Composable) -> sql.Composed:
    """Fill a template of SQL with quoted identifiers and literals."""
    return sql.SQL(template).format(**parts)
