"""Lines of a text file, plain or gzipped, in any encoding: read as they are asked for, never the whole file."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rdrop.errors import UserError
from rdrop.toolkit.data.files import opened

CHUNK = 2**16  # bytes
MAX_LINE = 2**26  # characters; a longer line is some other kind of file, and would fill the memory

OTHER_KINDS = {
    b"\x1f\x8b": "is gzipped; name it with .gz at the end",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it, or export the sheet as CSV",
    b"PAR1": "is Parquet; name it .parquet",
}
BYTE_ORDER_MARKS = {  # longest first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    r"""The lines of a text file.

    A line ends with a line feed and nothing else, as editors count them. A byte order mark is left out.

    Args:
        path: The file; one whose name ends in `.gz` is unpacked on the way.
        encoding: Its encoding, as Python names it.

    Yields:
        Each line with the line feed that ends it; the last may have none.

    Raises:
        UserError: The file cannot be opened or unpacked, is of another kind or in another encoding, or has a
            line of more than `MAX_LINE` characters. It is raised where the reading comes to it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "de.txt.gz"
    ...     _ = path.write_bytes(gzip.compress("Schöne\nGrüße".encode()))
    ...     list(text_lines(path))
    ['Schöne\n', 'Grüße']
    """
    started: list[str] = []
    number = 1
    for text in _texts(path, encoding):
        *complete, rest = text.split("\n")
        for line in complete:
            yield "".join([*started, line, "\n"])
            started = []
            number += 1
        started.append(rest)
        if sum(map(len, started)) > MAX_LINE:
            raise UserError(
                f"{path}:{number}: the line is longer than {MAX_LINE:,} characters; expected lines that end with a "
                "line feed"
            )
    if last := "".join(started):
        yield last


def _texts(path: Path, encoding: str) -> Iterator[str]:
    """The decoded text, piece by piece."""
    decoder = _decoder(encoding)
    line = 1
    start = True
    for chunk in _chunks(path):
        if start:
            _check_kind(path, chunk, encoding)
        before = decoder.getstate()
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError:
            decoder.setstate(before)
            raise UserError(_undecodable(path, decoder, chunk, line, encoding)) from None
        yield text.removeprefix("\ufeff") if start else text
        line += text.count("\n")
        start = False


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    """A decoder of a text encoding; some codecs of Python turn bytes into bytes."""
    try:
        with suppress(UnicodeError):  # a known encoding, in which this byte is no text
            b"x".decode(encoding)
        return codecs.getincrementaldecoder(encoding)()
    except (LookupError, ValueError):
        raise UserError(
            f"data.encoding: got {encoding!r}, expected the name of a text encoding such as utf-8, cp1252, latin-1 or "
            "utf-16"
        ) from None


def _chunks(path: Path) -> Iterator[bytes]:
    """The unpacked bytes, and an empty piece at their end."""
    zipped = path.suffix.lower() == ".gz"
    with opened(path) as file:
        if zipped and file.peek(2)[:2] not in (b"", b"\x1f\x8b"):
            raise UserError(f"{path} is not gzipped; take .gz off its name, or pack it")
        source = gzip.GzipFile(fileobj=file) if zipped else file
        try:
            while chunk := source.read(CHUNK):
                yield chunk
        except EOFError:
            raise UserError(f"{path} is cut short: its gzip data have no end; copy or download it again") from None
        except (zlib.error, OSError) as error:
            raise UserError(f"{path} cannot be read to its end: {error}; copy or download it again") from None
        yield b""


def _check_kind(path: Path, start: bytes, encoding: str) -> None:
    """Recognises what is not text, and text whose first bytes say that the encoding is another."""
    for magic, remedy in OTHER_KINDS.items():
        if start.startswith(magic):
            raise UserError(f"{path} {remedy}")
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if marked and not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        raise UserError(
            f"{path} is {marked.upper()}, and was read as {encoding}; set data.encoding: {marked}, or save it as UTF-8"
        )


def _undecodable(path: Path, decoder: codecs.IncrementalDecoder, chunk: bytes, line: int, encoding: str) -> str:
    """The message about a chunk that cannot be decoded; the place is found byte by byte."""
    fault = "cannot be decoded"
    try:
        for byte in chunk:
            line += decoder.decode(bytes([byte])).count("\n")
        decoder.decode(b"", final=not chunk)
    except UnicodeDecodeError as error:
        fault = f"the byte 0x{error.object[error.start]:02x} is not {encoding}"
    except UnicodeError as error:
        fault = f"this is not {encoding} ({error})"
    others = [name for name in ("utf-8", "cp1252", "latin-1", "utf-16") if name != encoding.lower()]
    return (
        f"{path}:{line}: {fault}; save the file as UTF-8, or set data.encoding to the encoding it has, such as "
        f"{', '.join(others[:-1])} or {others[-1]}"
    )
