"""`scfm.tl.annotate`: names for cells, after a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scfm import counts, evaluation, models
from scfm.annotation import Annotation, Annotator, Reading, shipped
from scfm.annotation._annotation import smoothed
from scfm.annotation._annotator import FALSE_REJECTION, MIN_GENES, Tree
from scfm.annotation._expression import Orthologues
from scfm.annotation._prompt import named_by_model
from scfm.annotation._store import is_annotator
from scfm.errors import ConfigError
from scfm.get._annotation import COLUMNS, UNS, proba_slot
from scfm.get._slots import key_of, plain
from scfm.tl._annotate_tuned import tuned_annotator
from scfm.tl._embed import _check_target

DEFAULT_KEY = "scfm"
PROMPT = "prompt"
FINETUNE = "finetune"
NEIGHBORS = "neighbors"
N_BOOT = 200
Reference: TypeAlias = AnnData | Annotator | str | Path | None


def annotate(
    adata: AnnData,
    reference: Reference = None,
    *,
    label_key: str | None = None,
    model: str | Path | models.FoundationModel = "scfm-mini",
    method: str = "auto",
    batch_key: str | None = None,
    labels: Sequence[str] | None = None,
    reject: bool = True,
    false_rejection: float = FALSE_REJECTION,
    tolerance: float | None = None,
    min_genes: int = MIN_GENES,
    ontology: Tree = None,
    smooth: str | None = None,
    use_rep: str | Literal[False] | None = None,
    tuning: Mapping[str, Any] | None = None,
    key_added: str | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_key: str | None = None,
    gene_matching: Literal["resolve", "published"] = "resolve",
    orthologues: Orthologues = None,
    context: Mapping[str, Any] | None = None,
    reference_reading: Reading | None = None,
    device: str | None = None,
    seed: int = 0,
    copy: bool = False,
    progress: bool = True,
) -> AnnData | None:
    """Name cells after a reference, with calibrated confidence, and ``"unknown"`` where it has no such cell.

    A cell's name depends on that cell and the reference alone, unless ``smooth`` is asked for.

    Parameters
    ----------
    adata
        The cells, with raw counts somewhere; in memory or backed. Only read, except for the slots written at the end.
    reference
        Cells with labels (an AnnData or a file), or an annotator (`scfm.annotation.Annotator`, or the file of one).
        None: the annotator of human blood and immune cells that ships with scfm.
    label_key
        Column of ``obs`` of the reference.
    model
        Embeds the cells of both; with ``method="prompt"`` it names them.
    method
        ``"auto"``: whatever does best on held-out cells of the reference; ``"linear"``, ``"stack"``, ``"knn"``, or one
        classifier (`scfm.annotation.METHODS`); ``"finetune"``: the model is tuned on three fifths of the reference, and
        the others calibrate; ``"prompt"``: no reference, the model names cells itself.
    batch_key
        Column of ``obs`` of the reference with donors or batches: whole groups are held out.
    labels
        Only these names are possible.
    reject
        Whether a cell may be ``"unknown"``.
    false_rejection
        Share of cells of known types that may be rejected, if they are measured like the reference.
    tolerance
        No cell with a lower novelty is rejected, however well the reference's own classes are told apart; 0 exhausts
        ``false_rejection``, larger values spare cells of other assays and let more new types pass. None: 0.85, or what
        the annotator says.
    min_genes
        Cells that express fewer of the reference's genes are unknown.
    ontology
        Parents by label, or an OBO file (Cell Ontology) whose terms the labels name: a cell that cannot be told to be
        one subtype gets the name of the type.
    smooth
        A column of ``obs`` with clusters, or ``"neighbors"`` (``obsp["connectivities"]``): each cell gets the majority
        label there.
    use_rep
        Slot of ``.obsm`` with vectors that both have; None: those that `scfm.tl.embed` wrote with this model, else they
        are computed; False: they are computed.
    tuning
        With ``method="finetune"``: further arguments of `scfm.tl.finetune`, such as ``{"method": "lora"}``.
    key_added
        Name of the slots; None: ``"scfm"``, if nothing of another origin stands there.
    layer, use_raw, gene_key, gene_matching, orthologues, context
        Of ``adata``, see `scfm.tl.embed`.
    reference_reading
        The same of the reference (`scfm.annotation.Reading`); None: found.
    device
        See `scfm.tl.embed`.
    seed
        Of folds and samples.
    copy
        Return a copy instead of writing into ``adata``.
    progress
        Show progress bars.

    Returns
    -------
    None or the copy. Written:

    - ``.obs["<key>_label"]`` (categorical), ``"<key>_score"`` (calibrated probability), ``"<key>_margin"`` (to the next
      class), ``"<key>_novelty"`` and ``"<key>_reason"`` (why a cell is unknown); with ``smooth`` also ``"<key>_vote"``;
    - ``.obsm["<key>_proba"]`` (n_obs, K); with names in `scfm.get.annotation`;
    - ``.uns["scfm_annotation"]["<key>"]``: classes, method, thresholds, scores on held-out cells of the reference.

    Raises
    ------
    ConfigError, CountsError, GeneMatchError, CheckpointError
        Before the long work, if something does not fit.

    Examples
    --------
    >>> import scanpy as sc, scfm
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> reference, query = adata[::2].copy(), adata[1::2].copy()
    >>> scfm.tl.annotate(query, reference, label_key="bulk_labels", method="expression-linear", progress=False)
    >>> query.obs["scfm_label"].cat.categories[-1]
    'unknown'
    """
    _check_target(adata, copy=copy)
    key = _key(adata, key_added)
    groups = _groups(adata, smooth)
    reading = Reading(layer, use_raw, gene_key, gene_matching, orthologues, context)
    if tuning is not None and method != FINETUNE:
        raise ConfigError(f"tuning= belongs to method='finetune', not to {method!r}")
    if method == PROMPT:
        if reference is not None:
            raise ConfigError("method='prompt' asks the model alone; leave out the reference, or choose another method")
        loaded = model if isinstance(model, models.FoundationModel) else models.load(model)
        loaded = loaded.for_context(context).to(device)
        asked = None if labels is None else [*labels]
        found = named_by_model(adata, loaded, labels=asked, reject=reject, reading=reading, progress=progress)
        evaluated: dict[str, Any] = {}
    else:
        if method == FINETUNE and open_annotator(reference) is None and label_key is not None:
            annotator, model = tuned_annotator(
                reference,  # type: ignore[arg-type]
                label_key,
                model,
                batch_key=batch_key,
                tuning=tuning,
                reading=reference_reading or Reading(),
                device=device,
                seed=seed,
                progress=progress,
            )
            use_rep = False
        else:
            annotator = _annotator(
                adata,
                reference,
                label_key,
                model,
                method,
                batch_key,
                use_rep,
                reading,
                reference_reading,
                device,
                seed,
                progress,
            )
        found = annotator.annotate(
            adata,
            labels=labels,
            reject=reject,
            false_rejection=false_rejection,
            tolerance=tolerance,
            min_genes=min_genes,
            ontology=ontology,
            use_rep=use_rep,
            model=model if isinstance(model, models.FoundationModel) and annotator.space is not None else None,
            reading=reading,
            device=device,
            progress=progress,
        )
        evaluated = held_out_scores(annotator)
    vote = None
    if groups is not None:
        found, vote = smoothed(found, groups)
    target = adata.copy() if copy else adata
    write_annotation(target, key, found, evaluated, vote, None if smooth is None else adata.obs.get(smooth))
    return target if copy else None


def _annotator(
    adata: AnnData,
    reference: Reference,
    label_key: str | None,
    model: str | Path | models.FoundationModel,
    method: str,
    batch_key: str | None,
    use_rep: str | Literal[False] | None,
    reading: Reading,
    reference_reading: Reading | None,
    device: str | None,
    seed: int,
    progress: bool,
) -> Annotator:
    fitted = open_annotator(reference)
    if fitted is not None:
        if label_key is not None or batch_key is not None or method != "auto":
            raise ConfigError(
                "the reference is fitted already; label_key=, batch_key= and method= belong to a reference of cells"
            )
        return fitted
    if label_key is None:
        raise ConfigError("say with label_key= which column of obs of the reference holds the labels")
    source = counts.find(adata, layer=reading.layer, use_raw=reading.use_raw) if adata.n_obs else None
    return Annotator.fit(
        reference,  # type: ignore[arg-type]
        label_key,
        model=model,
        method=method,
        batch_key=batch_key,
        use_rep=use_rep,
        query_var=None if source is None else source.var,
        query_reading=reading,
        reading=reference_reading,
        device=device,
        seed=seed,
        progress=progress,
    )


def open_annotator(reference: Reference) -> Annotator | None:
    """The annotator that is meant: one that is there, one in a file, the shipped one; None: these are cells."""
    if reference is None:
        return shipped()
    if isinstance(reference, Annotator):
        return reference
    if isinstance(reference, str | Path) and is_annotator(Path(reference)):
        return Annotator.load(reference)
    return None


def _key(adata: AnnData, key_added: str | None) -> str:
    key = key_of(key_added or DEFAULT_KEY)
    there = [c for c in (f"{key}_{name}" for name in COLUMNS) if c in adata.obs]
    if key_added is None and there and key not in adata.uns.get(UNS, {}):
        raise ConfigError(
            f"obs holds {', '.join(map(repr, there))}, which scfm did not write; pass key_added= to choose another name"
        )
    return key


def _groups(adata: AnnData, smooth: str | None) -> NDArray[Any] | csr_matrix | None:
    """Clusters or graph for the majority vote."""
    if smooth is None:
        return None
    if smooth in adata.obs:
        return adata.obs[smooth].astype(str).to_numpy()
    if smooth == NEIGHBORS:
        if "connectivities" not in adata.obsp:
            raise ConfigError("smooth='neighbors' needs obsp['connectivities']; run sc.pp.neighbors(adata) first")
        return csr_matrix(adata.obsp["connectivities"])
    raise ConfigError(f"smooth={smooth!r} is no column of obs; name one with clusters, or 'neighbors'")


def held_out_scores(annotator: Annotator) -> dict[str, Any]:
    """Scores on held-out cells of the reference, as plain types; those of the annotator's card where it has no cells."""
    if annotator.held_out is None:
        return dict(annotator.about.get("evaluation", {}))
    codes, proba = annotator.held_out
    names = np.asarray(annotator.classes)
    scores = evaluation.annotation_scores(
        names[codes], names[proba.argmax(axis=1)], proba, annotator.classes, n_boot=N_BOOT
    )
    return scores.to_dict()


def write_annotation(
    adata: AnnData,
    key: str,
    found: Annotation,
    evaluated: Mapping[str, Any],
    vote: NDArray[np.float32] | None = None,
    clusters: pd.Series | None = None,
) -> None:
    """Write the slots; those of an earlier run under the same key go."""
    frame = found.to_frame(adata.obs_names)
    for name in COLUMNS:
        adata.obs[f"{key}_{name}"] = frame[name].array
    column = f"{key}_vote"
    if vote is not None:
        adata.obs[column] = vote
    elif column in adata.obs:
        del adata.obs[column]
    adata.obsm[proba_slot(key)] = found.proba
    thresholds = found.facts.get("thresholds", {})
    facts = {
        **{k: v for k, v in found.facts.items() if k != "thresholds"},
        "classes": list(found.classes),
        "thresholds": np.array([thresholds.get(name, np.inf) for name in found.classes]),
        "n_unknown": int((found.labels == "unknown").sum()),
        "evaluation": dict(evaluated),
    }
    if vote is not None and clusters is not None:
        shares = pd.Series(vote, index=clusters.astype(str).to_numpy()).groupby(level=0).first()
        facts["clusters"] = {"name": [*map(str, shares.index)], "vote": shares.to_numpy()}
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), key: plain(facts)}
