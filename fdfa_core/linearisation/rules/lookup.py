"""The rule of embeddings: rows of a table, looked up by integers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fdfa_core.linearisation.maps import Map, rule


@rule(nn.Embedding)
class EmbeddingMap(Map):
    """Output = rows of the weight. The row at `padding_idx` counts as a constant, as torch's reverse mode has it.

    Torch's forward mode lets that row's tangent pass, so that both would see different functions.
    """

    parametric = stands_in = True

    @staticmethod
    def serves(module):
        return not module.scale_grad_by_freq

    def __init__(self, module, x, context):
        self.index, self.shape, self.name = x, module.weight.shape, context.names[module.weight]
        weight = module.weight.detach()
        if module.max_norm is not None:  # torch shortens rows for good; here only a step that trains does
            weight = weight if context.update_buffers else weight.clone()
            torch.embedding_renorm_(weight, x.contiguous(), module.max_norm, module.norm_type)
        self.output = F.embedding(x, weight)
        self.trained = None if module.padding_idx is None else (x != module.padding_idx).unsqueeze(-1)

    def push(self, tangent, parameters):
        if parameters is None:
            return None
        v = parameters[self.name]  # (*lead, rows, width)
        out = F.embedding(self.index, v) if v.dim() == 2 else v[:, self.index]
        return out if self.trained is None else out * self.trained

    def pull(self, signal, need_input):
        signal = signal if self.trained is None else signal * self.trained
        lead = signal.shape[: signal.dim() - self.index.dim() - 1]
        table = signal.new_zeros(*lead, *self.shape)
        rows = signal.reshape(*lead, -1, self.shape[1])
        return {self.name: table.index_add_(len(lead), self.index.flatten(), rows)}, None

    def back(self, signal):
        return torch.zeros((), device=signal.device)  # integers have no gradient; nobody reads it
