"""Lists of tenants to create: rows of CSV, YAML or JSON, each with its line."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from posduif_cli.errors import UsageError


@dataclass(frozen=True, eq=False, repr=False)
class Row:
    """One entry of a list in a file, with the line that it begins on; a value that is left empty is None.

    Keys are in lower case, with _ for a blank or a hyphen: `Web User` is `web_user`.
    """

    line: int
    values: Mapping[str, str | None]


def rows(text: str, source: str, *, required: str) -> list[Row]:
    """Return the entries of a list: CSV with a header, or YAML or JSON with a list of mappings of plain values.

    The end of *source* says which; else a text that begins like a list of YAML or JSON is one. The values of CSV are
    separated by commas, semicolons or tabs, as the header is. Its header must have the column *required*: without rows
    below it no other check would notice. Values are kept as they are written. Raises UsageError naming source and line.
    """
    text = text.removeprefix("\ufeff")
    suffix = Path(source).suffix.lower()
    content = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    yaml_like = re.match(r"\s*(---|-\s|\[|-$)", content) is not None
    if suffix in (".yaml", ".yml", ".json") or (suffix != ".csv" and yaml_like):
        return list(_yaml_rows(text, source))
    return list(_csv_rows(text, source, required))


def _csv_rows(text: str, source: str, required: str) -> Iterator[Row]:
    import csv

    lines = text.splitlines(keepends=True)
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    # Spreadsheets write semicolons where the comma is the decimal sign.
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    header: list[str] = []
    begin = 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells) or cells[0].startswith("#"):
                pass
            elif not header:
                header = [_key(cell) for cell in cells]
                if len(set(header)) < len(header):
                    raise UsageError(f"{source}:{begin}: a column appears twice", why=",".join(cells))
                if required not in header:
                    raise UsageError(
                        f"{source}:{begin}: the column {required} is missing",
                        why=",".join(cells),
                        hint=f"begin the list with a line such as: {required},url,web_user",
                    )
            elif len(cells) > len(header):
                raise UsageError(f"{source}:{begin}: there are more values than columns", why=",".join(header))
            else:
                yield Row(begin, {key: cell or None for key, cell in zip(header, cells, strict=False)})
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{source}:{reader.line_num}: not valid CSV", why=str(error)) from None


def _yaml_rows(text: str, source: str) -> Iterator[Row]:
    import yaml

    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        raise UsageError(f"{where}: not valid YAML", why=getattr(error, "problem", None)) from None
    except RecursionError:
        raise UsageError(f"{source}: not a list", why="it is nested too deeply", hint="- name: acme") from None
    if root is None:
        return
    if not isinstance(root, yaml.SequenceNode):
        raise UsageError(f"{source}:{root.start_mark.line + 1}: must hold a list", hint="- name: acme")
    for node in root.value:
        line = node.start_mark.line + 1
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        plain = all(isinstance(part, yaml.ScalarNode) for pair in pairs for part in pair)
        if not pairs or not plain or len({_key(key.value) for key, _ in pairs}) < len(pairs):
            raise UsageError(f"{source}:{line}: an entry holds `key: value`, each key once", hint="- name: acme")
        empty = "tag:yaml.org,2002:null"
        yield Row(line, {_key(key.value): None if value.tag == empty else value.value for key, value in pairs})


def _key(text: str) -> str:
    return re.sub("[ -]", "_", text.lower())
