"""What a recipe says of its student: stem, heads, decoders of all tasks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.recipes.strict import Strict


class Stem(Strict):
    """The Teacher-Agnostic Stem: a ViT that timm knows by name, or `custom`, given by its dimensions."""

    name: str = Field("vit_base_patch16_384", description="timm's name, or custom")
    weights: str | None = Field(
        None, description="'hub', 'mini-vit' (ships, for rooms), a file or FILE::KEY; untrained when absent or ''"
    )
    patch_size: int | None = Field(None, ge=1, description="px; this and the next three for custom alone")
    width: int | None = Field(None, ge=8)
    depth: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)
    class_token: bool = Field(True, description="false: a ViT without a class token, as MLoRE's authors run it")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth at the last block, growing from 0")


class InvPTOptions(Strict):
    """Sizes of InvPT's decoder, published ones when absent; embed + pred must be a multiple of 8 and of 4 * heads."""

    embed: int = Field(512, ge=1, description="channels of a task's features")
    pred: int = Field(64, ge=1, description="what a task's initial prediction adds to them")
    heads: int = Field(2, ge=1, description="of the attention")


class MLoREOptions(Strict):
    """Sizes of MLoRE's decoder, those published for ViT-B on PASCAL-Context when absent."""

    width: int = Field(640, ge=4)
    ranks: tuple[int, ...] = Field(tuple(range(16, 129, 8)), description="of the experts, one each")
    task_rank: int = Field(64, ge=1, description="of a task's own low-rank convolution")
    top_k: int = Field(9, ge=1, description="experts that an image keeps")
    pre_softmax: bool = Field(
        False, description="leave the other experts out before the softmax (published on NYUD-v2), not after it"
    )


class StudentOptions(Strict):
    """The student's structure; teachers' widths are read from the caches."""

    stem: Stem = Stem()
    levels: tuple[int, ...] | None = Field(None, description="tapped blocks; four evenly spaced when absent")
    adapter: Literal["standard", "none", "lora"] = "standard"
    aligner: bool = Field(True, description="a linear layer from each path to its teacher's width")
    router: Literal["mor", "token", "none"] = "mor"
    head: Literal["sak", "linear", "dpt"] = "sak"
    decoder: Literal["none", "invpt", "mlore"] = Field(
        "none", description="one decoder of all tasks in place of a head a task; the arms invpt and mlore have theirs"
    )
    invpt: InvPTOptions = InvPTOptions()
    mlore: MLoREOptions = MLoREOptions()
    checkpointing: bool = Field(False, description="recompute activations in the backward pass; changes no bit")
