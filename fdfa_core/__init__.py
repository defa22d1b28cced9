"""Backpropagation-free gradient estimators, and training that is measured against the true gradient."""

from fdfa_core.architectures import fully_connected
from fdfa_core.network import Block, BlockNetwork

__all__ = ["Block", "BlockNetwork", "fully_connected"]
