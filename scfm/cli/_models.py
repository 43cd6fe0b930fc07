"""The models as a table, and one of them in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scfm.cli._shell import columns, short
from scfm.errors import ConfigError


def table_text() -> str:
    """Every registered model, one line each."""
    from scfm import models

    table = models.list()
    cards = models.cards()
    rows = [("NAME", "FAMILY", "PARAMETERS", "CONTEXT", "SPECIES", "WEIGHTS")]
    for name, row in table.iterrows():
        where = "here" if row["here"] else "from the hub" if cards[str(name)].hub else "by hand"
        rows.append(
            (str(name), row["family"], _size(row["parameters"]), _number(row["context"]), row["species"], where)
        )
    end = "here: on this machine. from the hub: fetched when first used. by hand: `scfm models NAME` says what to put where."
    return f"{columns(rows)}\n\n{end}"


def _size(n: Any) -> str:
    return "" if n != n or n is None or str(n) == "<NA>" else f"{n / 1e6:,.1f} M"


def _number(n: Any) -> str:
    return "" if str(n) in ("<NA>", "nan", "None") else f"{n:,}"


def card_text(name: str) -> str:
    """Everything that is known of a model.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    from scfm import models

    known = models.cards()
    if name not in known:
        raise ConfigError(f"no model {name!r} is registered; there are {', '.join(known)}")
    facts = known[name].to_dict()
    facts.pop("details")
    hub = facts.pop("hub")
    if hub:
        facts["hub"] = "/".join(part for part in hub if part)
    sums, sizes = facts.pop("checksums"), facts.pop("files")
    facts["files"] = {
        file: ", ".join(
            filter(
                None,
                (f"{sizes[file]:,} bytes" if sizes.get(file) else "", f"SHA-256 {sums[file]}" if file in sums else ""),
            )
        )
        for file in dict.fromkeys((*sizes, *sums))
    }
    if sizes:
        facts["put them into" if not hub else "or put them into"] = short(models.home() / name)
    return "\n".join(_lines(facts))


def _lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    shown = {key: value for key, value in facts.items() if value not in (None, "", (), {}, [])}
    width = max((len(key) for key in shown), default=0)
    for key, value in shown.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}"
            yield from _lines({k: v or "needed" for k, v in value.items()}, indent + "  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{indent}{key:{width}}  {text}"
