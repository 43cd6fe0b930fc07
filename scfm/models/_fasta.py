"""Which sequences are there? FASTA files and dictionaries, with the genes that headers name."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scfm.errors import TokenizerError

GENE_ID = re.compile(r"(?:\bgene:|\[gene_id=|\bgene_id=)([^\s\]]+)")
GENE_SYMBOL = re.compile(r"(?:\bgene_symbol:|\bGN=|\[gene=|\bgene_name=)([^\s\]]+)")
"""How Ensembl, UniProt, NCBI and GENCODE-like headers name the gene of a sequence."""


@dataclass(frozen=True)
class Sequence:
    """A protein, transcript or piece of DNA.

    Parameters
    ----------
    name
        First word of the header.
    letters
        Upper case, without white space; a stop at the end is left out.
    gene_id, gene_symbol
        As the header names them; empty where it does not.
    """

    name: str
    letters: str
    gene_id: str = ""
    gene_symbol: str = ""


def read_sequences(source: str | Path | Mapping[str, str]) -> list[Sequence]:
    """Sequences in their order.

    Parameters
    ----------
    source
        A FASTA file (also gzipped), or letters by name.

    Raises
    ------
    TokenizerError
        If there are none, the file is no FASTA file, a name occurs twice, or a sequence is empty or no text.
    """
    if isinstance(source, Mapping):
        found = [Sequence(str(name), _letters(str(name), letters)) for name, letters in source.items()]
        where = "the dictionary"
    elif isinstance(source, str | Path):
        found, where = [*_of_fasta(Path(source).expanduser())], str(source)
    else:
        raise TokenizerError(
            f"sequences are read from a FASTA file or a dictionary by name, not from a {type(source).__name__}"
        )
    if not found:
        raise TokenizerError(f"{where} holds no sequence")
    twice = [name for name, n in Counter(s.name for s in found).items() if n > 1]
    if twice:
        raise TokenizerError(
            f"{where} holds {len(twice):,} names twice ({', '.join(twice[:3])}); every name must be unique"
        )
    empty = [s.name for s in found if not s.letters]
    if empty:
        raise TokenizerError(f"{where}: {len(empty):,} sequences are empty ({', '.join(empty[:3])}); leave them out")
    return found


def _letters(name: str, letters: Any) -> str:
    if not isinstance(letters, str):
        raise TokenizerError(f"the sequence {name!r} is {type(letters).__name__}, not text")
    return "".join(letters.split()).upper().removesuffix("*")


def _of_fasta(path: Path) -> Iterator[Sequence]:
    if not path.is_file():
        raise TokenizerError(f"there is no FASTA file {path}; give a file, or a dictionary of letters by name")
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    header: str | None = None
    lines: list[str] = []
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.startswith(">"):
                    if header is not None:
                        yield _sequence(header, lines)
                    header, lines = line[1:].strip(), []
                    if not header:
                        raise TokenizerError(f"{path}, line {number}: a header without a name")
                elif header is not None:
                    lines.append(line)
                elif line.strip():
                    raise TokenizerError(f"{path} is no FASTA file: its first line does not begin with '>'")
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise TokenizerError(f"{path} cannot be read as FASTA ({error}); is it complete?") from error
    if header is not None:
        yield _sequence(header, lines)


def _sequence(header: str, lines: list[str]) -> Sequence:
    name, _, rest = header.partition(" ")
    gene_id, symbol = GENE_ID.search(rest), GENE_SYMBOL.search(rest)
    return Sequence(name, _letters(name, "".join(lines)), gene_id[1] if gene_id else "", symbol[1] if symbol else "")
