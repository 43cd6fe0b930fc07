"""What can be asked of hidden states and vectors? Named outputs, one class for all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scfm.errors import ConfigError
from scfm.transformer._layers import MLP
from scfm.transformer._specs import HeadSpec


class Head(nn.Module):
    """One named output; see `HeadSpec`."""

    def __init__(self, spec: HeadSpec, rows: int) -> None:
        super().__init__()
        self.spec = spec
        self.mlp = MLP(spec.mlp)
        self.token_mlp = None if spec.token_mlp is None else MLP(spec.token_mlp)
        self.joint = None if spec.joint is None else MLP(spec.joint)
        if spec.feed == "tied":
            self.bias = nn.Parameter(torch.zeros(rows))
        self.forms = nn.ModuleDict(
            {name: nn.Linear(spec.mlp.widths[-1], spec.cell_width, bias=bias) for name, bias in spec.outputs}
        )

    def forward(self, x: Tensor, *, table: Tensor | None = None, cells: Tensor | None = None) -> Tensor:
        """Outputs of (m, d) states or vectors.

        Parameters
        ----------
        x
            (m, d) hidden states, cell vectors, or gene vectors (``pairs``); for ``positions`` whole cells, end to end.
        table
            (V, d) gene table, for a tied head.
        cells
            (m, cell_width) the cell vector of each gene, for ``pairs``.

        Returns
        -------
        (m, outputs); for ``pairs`` (m, number of forms) or the outputs of the joint map; for ``positions`` (cells, outputs).
        """
        if self.token_mlp is not None:
            x = self.token_mlp(x).reshape(-1, self.spec.mlp.widths[0])
        out = self.mlp(x)
        if self.spec.feed == "tied":
            if table is None:
                raise ConfigError("a tied head needs the gene table")
            out = F.linear(out, table, self.bias)
        elif self.spec.feed == "pairs":
            if cells is None:
                raise ConfigError("a head on pairs needs the cell vector of each gene")
            if self.joint is not None:
                out = self.joint(torch.cat((out, cells) if self.spec.gene_first else (cells, out), dim=-1))
            else:
                out = torch.stack([(form(out) * cells).sum(-1) for form in self.forms.values()], dim=-1)
        if self.spec.transform == "softmax":
            return out.softmax(-1)
        return out.sigmoid() if self.spec.transform == "sigmoid" else out
