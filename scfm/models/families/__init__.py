"""One file per published system."""

from scfm.models._family import Family
from scfm.models.families import geneformer, nicheformer, scbert, scfoundation, scgpt, scmulan, uce

FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        geneformer.FAMILY,
        scgpt.FAMILY,
        nicheformer.FAMILY,
        scbert.FAMILY,
        uce.FAMILY,
        scfoundation.FAMILY,
        scmulan.FAMILY,
    )
}
"""Every family that can be read, by name."""
