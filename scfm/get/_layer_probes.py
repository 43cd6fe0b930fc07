"""What was read off the layers of a model: the result of `scfm.tl.probe_layers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scfm.errors import ConfigError
from scfm.get._slots import key_of, plain

UNS = "scfm_probe_layers"
TEXTS = ("target", "score", "pooling")


@dataclass(frozen=True, eq=False)
class LayerProbes:
    """Scores of linear probes on every layer; prints as a short text.

    Parameters
    ----------
    table
        One row per target, read-out and layer: ``value`` of ``score`` on held-out cells, the ends ``low`` and ``high`` of its
        bootstrap interval, ``behind`` (how much less than the best layer, with ``behind_low`` and ``behind_high``), and
        ``best_in``, the share of bootstrap replicates in which the layer is the best of its target.
    facts
        Model, layers, cells, folds and groups.
    """

    table: pd.DataFrame
    facts: Mapping[str, Any]

    def best(self, target: str | None = None) -> pd.Series:
        """The row of the best layer of a target (None: the first)."""
        names = list(dict.fromkeys(self.table["target"]))
        if target is not None and target not in names:
            raise ConfigError(f"{target!r} was not probed; there are {', '.join(names)}")
        rows: Any = self.table[self.table["target"] == (names[0] if target is None else target)]
        found: pd.Series = rows.loc[rows["value"].idxmax()]
        return found

    def __repr__(self) -> str:
        facts = self.facts
        lines = [
            f"linear probes of {facts['model']}: {facts['n_layers']} layers, {facts['n_cells']:,} cells, {facts['folds']} folds"
            f" of {facts['group_key'] or 'single cells'}"
        ]
        for target in dict.fromkeys(self.table["target"]):
            row = self.best(target)
            rows: Any = self.table[self.table["target"] == target]
            alike = rows[(rows["behind_low"] <= 0) & (rows.index != row.name)]
            others = ", ".join(
                f"{r.layer}" + (f" {r.pooling}" if rows["pooling"].nunique() > 1 else "") for r in alike.itertuples()
            )
            lines.append(
                f"  {target}: best is layer {row['layer']} ({row['pooling']}), {row['score']} {row['value']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}]; best in {row['best_in']:.0%} of the replicates; not told apart from it: "
                f"{others or 'none'}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As plain types for ``.uns``."""
        columns = {str(name): self.table[name].to_numpy() for name in self.table}
        return {"table": {k: plain(v) for k, v in columns.items()}, "facts": plain(dict(self.facts))}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> LayerProbes:
        """The inverse of `to_dict`, also after an h5ad."""
        table = pd.DataFrame({k: np.asarray(v) for k, v in stored["table"].items()})
        facts = {"group_key": None, **stored["facts"]}
        return cls(table.astype(dict.fromkeys(TEXTS, str)), facts)


def layer_probes(adata: Any, key: str | None = None) -> LayerProbes:
    """What `scfm.tl.probe_layers` found.

    Parameters
    ----------
    adata
        Annotated data.
    key
        ``key_added`` of the call, or the model's name; None: the only one.

    Raises
    ------
    ConfigError
        If there is no such result.
    """
    runs = adata.uns.get(UNS, {})
    if not runs:
        raise ConfigError(f"adata.uns holds no {UNS!r}; run scfm.tl.probe_layers(adata, label_key) first")
    if key is None and len(runs) > 1:
        raise ConfigError(f"there are several results ({', '.join(runs)}); say which with key=")
    found = key_of(key) if key is not None else next(iter(runs))
    if found not in runs:
        raise ConfigError(f"no result {key!r}; there are {', '.join(runs)}")
    return LayerProbes.from_dict(runs[found])
