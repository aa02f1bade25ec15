"""Initial weights, as published: linear layers from a truncated normal of std 0.02, biases 0; the rest as
torch does.
"""

from torch import nn


def init_linear(layer: nn.Linear) -> nn.Linear:
    """Initialises `layer` in place and returns it."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
