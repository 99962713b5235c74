"""One reader for the files that people give: text, JSON and JSON Lines, from any editor and any system.

Text is UTF-8 with or without a byte-order mark, or UTF-16 or UTF-32 with one, and may be gzipped. Lines end only in LF,
CR LF or CR: U+2028, U+2029 and U+0085 are characters of a line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experts.outside.errors import UserError
from experts.outside.files import data_folder, expand

# UTF-32's mark begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MARK = "\ufeff"  # may occur inside a file that was put together from several
GZIP = b"\x1f\x8b"


def find_path(path: str, *, data: bool = True) -> Path:
    """A file or folder, relative to the current folder or else to `$SELFADAPT_DATA`.

    Args:
        data: whether it holds data, and so may be in the folder of data sets.

    Raises:
        UserError: naming the places that were tried.
    """
    places = [expand(path)]
    folder = data_folder()
    if folder and not places[0].is_absolute():
        places.append(folder / path)
    for place in places:
        if place.exists():
            return place
    hint = "" if folder or not data else "; SELFADAPT_DATA can name a folder of data sets"
    raise UserError(f"no file {' or '.join(str(place.absolute()) for place in places)}{hint}")


def read_text(file: Path) -> str:
    """The whole text of a file, with line ends as LF.

    Raises:
        UserError: if it cannot be read or is not text.
    """
    try:
        data = file.read_bytes()
        if data.startswith(GZIP) or file.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: not {encoding[:6].upper()} text ({error.reason}); save it as UTF-8") from error
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise UserError(f"{file}:{line}: holds a NUL character, which no text has; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: Path, *, growing: bool = False) -> Iterator[tuple[int, str]]:
    """Yields the numbers, from 1, and the lines that are not blank, without their ends; raises as `read_text` does.

    A line without an end is left out if the file is `growing`: whoever wrote it was stopped there, or is still writing.
    """
    for number, line in enumerate(io.StringIO(read_text(file)), 1):
        line = line.lstrip(MARK)
        if line.strip() and (line.endswith("\n") or not growing):
            yield number, line.removesuffix("\n")


def read_json(file: Path) -> Any:
    """The document in a JSON file.

    Raises:
        UserError: if it cannot be read or is not JSON.
    """
    return _parse(read_text(file), str(file))


def read_objects(file: Path, *, growing: bool = False) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yields each object in a JSON Lines file with its place (`file:line`) and line number; lines as in `read_lines`.

    Raises:
        UserError: if the file cannot be read, or a line is not a JSON object.
    """
    for number, line in read_lines(file, growing=growing):
        where = f"{file}:{number}"
        fields = _parse(line, where)
        if not isinstance(fields, dict):
            raise UserError(f"{where}: not a JSON object")
        yield where, number, fields


def _parse(text: str, where: str) -> Any:
    try:
        document = json.loads(text)
        if "\\u" in text:  # an escape can spell half a character, which no tokenizer takes
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: an escape is half of a surrogate pair, which is not a character") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{where}: not JSON ({reason})") from error
    return document
