"""Decoders that see all tasks at once, in place of a head a task; a new one is a file here and a row in `DECODERS`."""

from sak_core.student.decoders.base import Decoded, JointDecoder, Levels
from sak_core.student.decoders.invpt import InvPT, InvPTConfig
from sak_core.student.decoders.mlore import MLoRE, MLoREConfig

DecoderConfig = InvPTConfig | MLoREConfig
DECODERS: dict[str, type[DecoderConfig]] = {"invpt": InvPTConfig, "mlore": MLoREConfig}
"""The sizes of each decoder, by its name; `build` of a configuration gives the decoder."""

__all__ = [
    "DECODERS",
    "Decoded",
    "DecoderConfig",
    "InvPT",
    "InvPTConfig",
    "JointDecoder",
    "Levels",
    "MLoRE",
    "MLoREConfig",
]
