"""Experiment files as text: written whole, or changed in place with their comments and their order kept.

A changed text is always read again, and refused unless it says exactly what it was meant to say.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from fdfa_core.errors import InvalidInput

_HEADER = re.compile(r"^\[\[?[^\[\],=]+\]\]?\s*(#.*)?$")  # of a table; lines inside a list are indented
_BARE = re.compile(r"^[A-Za-z0-9_-]+$")


def value(item: Any) -> str:
    """Return a value as TOML: floats stay floats, tables are inline.

    Examples:
        >>> value({"name": "fdfa", "feedback_lr": 0.001, "warmup": True, "site": "post"})
        '{ name = "fdfa", feedback_lr = 1e-3, warmup = true, site = "post" }'
        >>> value([10.0, 0.01, 0.0004, 5])
        '[10.0, 0.01, 4e-4, 5]'
    """
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, float):
        return re.sub(r"e([+-])0*", lambda m: "e-" if m[1] == "-" else "e", f"{item!r}" if _plain(item) else _scientific(item))
    if isinstance(item, int):
        return str(item)
    if isinstance(item, str):
        return json.dumps(item, ensure_ascii=False)  # whose escapes are TOML's too
    if isinstance(item, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {value(v)}" for k, v in item.items()) + " }" if item else "{}"
    if isinstance(item, list | tuple):
        return "[" + ", ".join(map(value, item)) + "]"
    raise InvalidInput("value", item, "a truth value, number, text, list or table")


def document(tables: Mapping[str, Any], comment: str = "") -> str:
    """Return an experiment file: its texts, a comment, one section a table, its cases, its grid.

    Args:
        tables: of the file, as `tomllib` reads it.
        comment: lines that say where the file comes from, without their "# ".

    Raises:
        InvalidInput: a value that TOML cannot hold, or that would be read as another one.
    """
    texts = [f"{_key(k)} = {value(v)}" for k, v in tables.items() if not isinstance(v, Mapping) and k != "cases"]
    parts = ["\n".join(texts), "\n".join(f"# {line}".rstrip() for line in comment.splitlines())]
    sections = {k: v for k, v in tables.items() if isinstance(v, Mapping)}
    grid = sections.pop("grid", None)
    parts += [_section(f"[{_key(k)}]", v) for k, v in sections.items()]
    parts += [_section("[[cases]]", case) for case in tables.get("cases", ())]
    parts += [_section("[grid]", grid)] if grid is not None else []
    return verified("\n\n".join(filter(None, parts)) + "\n", tables, "experiment")


def with_case(text: str, index: int, key: str, item: Any, where: str) -> str:
    """Return the text of a file with ``key = item`` in one of its cases, in place of the line that says it or as a new one.

    Args:
        text: of the file.
        index: of the case, from zero.
        key: of the case.
        item: its new value.
        where: the file, for errors.

    Raises:
        InvalidInput: there is no such case, or it writes the key in another way than on one line.
    """
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if line.split("#")[0].strip() == "[[cases]]"]
    if index >= len(starts):
        raise InvalidInput(f"{where}: cases", index, f"the number of one of its {len(starts)} cases, from 0")
    start = starts[index] + 1
    end = next((i for i in range(start, len(lines)) if _HEADER.match(lines[i])), len(lines))
    own = [i for i in range(start, end) if re.match(rf"{re.escape(key)}\s*=", lines[i])]
    if own:
        lines[own[0]] = f"{key} = {value(item)}{_comment(lines[own[0]], f'{where}: cases[{index}].{key}')}"
    else:
        last = max((i for i in range(start, end) if lines[i].strip()), default=start - 1)
        lines.insert(last + 1, f"{key} = {value(item)}")
    return "\n".join(lines)


def without(text: str, key: str) -> str:
    """Return the text of a file without the line of a top-level key (before the first table)."""
    lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if _HEADER.match(line)), len(lines))
    return "\n".join(line for i, line in enumerate(lines) if i >= end or not re.match(rf"{re.escape(key)}\s*=", line))


def verified(text: str, meant: Mapping[str, Any], where: str) -> str:
    """Return the text if it reads as the tables that are meant.

    Raises:
        InvalidInput: it reads as something else, so that nothing must be written.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(where, str(error), "a file whose lines can be changed in place", "Change it by hand.") from error
    if json.dumps(found, sort_keys=True) != json.dumps(dict(meant), sort_keys=True):
        accepted = "a file with every key on one line of its own, so that it can be changed in place"
        raise InvalidInput(where, "a layout that would be read as something else", accepted, "Change it by hand.")
    return text


def _section(header: str, table: Mapping[str, Any]) -> str:
    return "\n".join([header, *(f"{_key(k)} = {value(v)}" for k, v in table.items())])


def _key(name: str) -> str:
    return name if _BARE.match(name) else json.dumps(name)


def _plain(number: float) -> bool:
    return number == 0 or 0.01 <= abs(number) < 1e6


def _scientific(number: float) -> str:
    """Return a number with an exponent and as few digits as say it exactly."""
    return next(text for digits in range(18) if float(text := f"{number:.{digits}e}") == number)


def _comment(line: str, where: str) -> str:
    """Return the comment at the end of a line that holds one key and its whole value, with the space before it."""
    for place in [i for i, letter in enumerate(line) if letter == "#"] + [len(line)]:
        try:
            tomllib.loads(line[:place])
        except tomllib.TOMLDecodeError:
            continue
        return line[len(line[:place].rstrip()) :].rstrip()
    raise InvalidInput(where, line.strip(), "a value on one line, so that it can be changed in place")
