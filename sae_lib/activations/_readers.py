"""Rows of local text files, one at a time: .txt, .jsonl, .csv and .parquet.

No file is read whole. An unreadable row is an error that names the file and the line; nothing is
skipped on the quiet.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_lib.errors import BadInput, MissingFile, nearest

TABLES = (".csv", ".jsonl", ".parquet")
"""Formats with named columns."""

SUFFIXES = (*TABLES, ".txt")
"""Formats that can be read at all."""

CSV_BLOCK_BYTES = 1 << 24
"""Longest row of a CSV file that can be read."""

PARQUET_BATCH_ROWS = 1024

Row = tuple[int, tuple[Any, ...]]
"""Line (or row) number, from 1, and the values of the columns that were asked for."""


def text_files(path: Path, *, key: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """``path`` itself, or the readable files below it in the order of their names.

    Hidden files, empty files and files of other formats inside a folder are left out. Raises
    `MissingFile` where there is nothing at ``path`` or nothing in it, `BadInput` for a file of
    another format or an empty one; both name ``key``.
    """
    if path.is_dir():
        below = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p, path))
        files = [p for p in below if p.suffix.lower() in suffixes and p.stat().st_size > 0]
        if not files:
            found = sorted({p.suffix or p.name for p in below})
            raise MissingFile(
                f"the folder holds no {_either(suffixes)} file with anything in it"
                f" (found: {', '.join(found) or 'no files'}).",
                key=key,
                value=str(path),
            )
        return files
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise MissingFile(
            f"there is no such file or folder.{nearest(path.name, siblings)}",
            key=key,
            value=str(path),
        )
    if path.suffix.lower() not in suffixes:
        raise BadInput(
            f"{path.suffix or 'no suffix'} is not a format that can be read here;"
            f" use {_either(suffixes)}.",
            key=key,
            value=str(path),
        )
    if path.stat().st_size == 0:
        raise BadInput("the file is empty.", key=key, value=str(path))
    return [path]


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a table, as its first row (or its schema) has them."""
    match path.suffix.lower():
        case ".parquet":
            return list(_open_parquet(path).schema_arrow.names)
        case ".csv":
            return list(_open_csv(path, None).schema.names)
        case _:
            _, first = next(_json_lines(path), (0, {}))
            return list(first)


def check_columns(path: Path, wanted: Mapping[str, str]) -> None:
    """Raise `BadInput` unless ``path`` has every column of ``wanted`` (column: config key)."""
    known = columns_of(path)
    for column, key in wanted.items():
        if column not in known:
            raise _missing_column(path, column, key, known)


def rows(path: Path, wanted: Mapping[str, str]) -> Iterator[Row]:
    """Values of the columns ``wanted`` (column: config key, for messages), row by row."""
    match path.suffix.lower():
        case ".parquet":
            yield from _parquet_rows(path, wanted)
        case ".csv":
            yield from _csv_rows(path, wanted)
        case _:
            yield from _json_rows(path, wanted)


def texts(path: Path, *, column: str, column_key: str, document_chars: int) -> Iterator[str]:
    """Documents of one file; those without a visible character are left out."""
    if path.suffix.lower() == ".txt":
        yield from plain_documents(path, document_chars)
        return
    for line, (text,) in rows(path, {column: column_key}):
        if text is None:
            continue
        if not isinstance(text, str):
            raise BadInput(
                f"line {line} holds {type(text).__name__}, not text.",
                file=path,
                key=column_key,
                value=column,
            )
        if text.strip():
            yield text


def plain_documents(path: Path, document_chars: int) -> Iterator[str]:
    """A .txt file cut at blank lines into documents of at least ``document_chars`` characters.

    What is left at the end joins the last document when it is shorter than that.
    """
    ready: str | None = None
    lines: list[str] = []
    length = 0
    for line in _lines(path):
        if line.strip():
            lines.append(line)
            length += len(line) + 1
        elif length > document_chars:  # the last line break is not part of it
            if ready is not None:
                yield ready
            ready, lines, length = "\n".join(lines), [], 0
        elif lines and lines[-1]:
            lines.append("")
            length += 1
    rest = "\n".join(lines).strip("\n")
    if ready is not None and rest and len(rest) < document_chars:
        yield f"{ready}\n\n{rest}"
        return
    for document in (ready, rest):
        if document:
            yield document


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _either(suffixes: tuple[str, ...]) -> str:
    return f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"


def _missing_column(path: Path, column: str, key: str, known: list[str]) -> BadInput:
    return BadInput(
        f"there is no such column. Columns: {', '.join(known) or 'none'}.{nearest(column, known)}",
        file=path,
        key=key,
        value=column,
    )


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            try:
                yield raw.decode(encoding).rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise BadInput(f"line {number} is not UTF-8 ({error}).", file=path) from error


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"line {number} is not JSON ({error}); a .jsonl file holds one object per line.",
                file=path,
            ) from error
        if not isinstance(content, dict):
            raise BadInput(
                f"line {number} holds {type(content).__name__}, not an object with columns.",
                file=path,
            )
        yield number, content


def _json_rows(path: Path, wanted: Mapping[str, str]) -> Iterator[Row]:
    for number, content in _json_lines(path):
        for column, key in wanted.items():
            if column not in content:
                raise BadInput(
                    f"line {number} has no such column. Columns: {', '.join(content) or 'none'}."
                    f"{nearest(column, content)}",
                    file=path,
                    key=key,
                    value=column,
                )
        yield number, tuple(content[column] for column in wanted)


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise BadInput(f"this is not a readable Parquet file ({error}).", file=path) from error


def _parquet_rows(path: Path, wanted: Mapping[str, str]) -> Iterator[Row]:
    import pyarrow as pa

    check_columns(path, wanted)
    number = 0
    with _open_parquet(path) as file:
        try:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=list(wanted)):
                columns = [batch.column(name).to_pylist() for name in wanted]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, values
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"unreadable after row {number} ({error}).", file=path) from error


def _open_csv(path: Path, wanted: list[str] | None) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    try:
        return csv.open_csv(
            path,
            read_options=csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                include_columns=wanted,
                # a column of numbers is text too: a label "01" must not become 1
                column_types={name: pa.string() for name in wanted or ()},
            ),
        )
    except pa.ArrowException as error:
        raise BadInput(f"this is not a readable CSV file ({error}).", file=path) from error


def _csv_rows(path: Path, wanted: Mapping[str, str]) -> Iterator[Row]:
    import pyarrow as pa

    check_columns(path, wanted)
    number = 1  # the header
    with _open_csv(path, list(wanted)) as reader:
        try:
            for batch in reader:
                columns = [batch.column(name).to_pylist() for name in wanted]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, values
        except pa.ArrowException as error:
            raise BadInput(f"unreadable after row {number} ({error}).", file=path) from error
