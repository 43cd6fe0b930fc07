"""`scfm.tl.recommend`: which representation to use here, in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scfm.errors import ConfigError
from scfm.evaluation import RobustnessReport
from scfm.evaluation._baselines import ANCHOR
from scfm.tl._robustness import Data, robustness

CELLS = 2000
SURE = 0.05
CROSS, WITHIN = "kNN transfer", "kNN within"
MEANS = {CROSS: "labels carried between batches", WITHIN: "labels within a batch"}


@dataclass(frozen=True)
class Recommendation:
    """Which representation to use; prints as one line.

    Parameters
    ----------
    representation
        Name in the report.
    sure
        Whether its lead over PCA, or PCA's own, is beyond chance.
    text
        The line.
    report
        Behind it.
    """

    representation: str
    sure: bool
    text: str
    report: RobustnessReport

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def recommend(
    adata: Data, *, batch_key: str | None = "assay", label_key: str = "cell_type", seed: int = 0, **options: Any
) -> Recommendation:
    """Say in one line which representation to use for these cells, and how sure that is.

    Runs `scfm.tl.robustness` on at most 2,000 cells, without alterations. PCA comes first: another representation is
    recommended only where it carries labels over better than PCA by more than chance (Holm-corrected p < 0.05).

    Parameters
    ----------
    adata, batch_key, label_key, seed
        See `scfm.tl.robustness`.
    options
        Further arguments of it, such as ``models``, ``use_rep`` or ``group_key``.

    Returns
    -------
    Recommendation
        Nothing is written into ``adata``.

    Raises
    ------
    ConfigError
        If there is only one label: nothing tells representations apart then.
    """
    usual: dict[str, Any] = {"max_cells": CELLS, "n_subsamples": 1, "stress": (), "n_boot": 1000}
    key = "_recommend"
    try:
        report = robustness(
            adata, batch_key=batch_key, label_key=label_key, seed=seed, key_added=key, **{**usual, **options}
        )
    finally:
        if isinstance(adata, AnnData):
            adata.uns.pop(key, None)
    report.check()
    return _chosen(report)


def _chosen(report: RobustnessReport) -> Recommendation:
    table = report.to_dataframe()
    plain = table[(table["detail"] == "") & (table["kind"] != "control")]
    metric = next((m for m in (CROSS, WITHIN) if ((plain["metric"] == m) & plain["value"].notna()).any()), None)
    if metric is None:
        raise ConfigError("there is one label only, so nothing tells representations apart; name another label_key=")
    rows = plain[plain["metric"] == metric].set_index("embedding")
    anchor = rows.loc[ANCHOR]
    rest = rows.drop(index=ANCHOR)
    ahead = rest[(rest["difference"] > 0) & (rest["p_holm"] < SURE)]
    best = rest.sort_values("value", ascending=False, kind="stable").iloc[0] if len(rest) else None
    n = int(rows["n_cells"].min())
    over = f"{n:,} cells" if report.parameters["over"] == "cells" else f"{report.parameters['n_units']} groups"
    if len(ahead):
        row = ahead.sort_values("value", ascending=False, kind="stable").iloc[0]
        text = (
            f"Use {row.name} here: macro F1 of {MEANS[metric]} {row['value']:.3f} against {anchor['value']:.3f} of {ANCHOR}, "
            f"{_difference(row)} over {over}: sure."
        )
        return Recommendation(str(row.name), True, _said(text, report), report)
    text = f"Use {ANCHOR} here: macro F1 of {MEANS[metric]} {anchor['value']:.3f}"
    if best is None:
        return Recommendation(ANCHOR, False, _said(f"{text}; nothing else was compared.", report), report)
    clear = bool(best["difference_high"] < 0)
    why = "is behind" if best["difference"] < 0 else "is not ahead by more than chance"
    told = f"{text}; {best.name}, the best of the others, {why} ({_difference(best)} over {over}): "
    return Recommendation(ANCHOR, clear, _said(told + ("sure." if clear else "not sure."), report), report)


def _difference(row: pd.Series) -> str:
    p = "" if np.isnan(row["p_holm"]) else f", p = {row['p_holm']:.3f} after Holm"
    return f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]{p}"


def _said(text: str, report: RobustnessReport) -> str:
    return " ".join([*report.confounded, text])
