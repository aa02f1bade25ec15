"""The tables of a recipe: student, losses, loader, optimizer, schedule, boundaries. `Recipe` holds one of each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.recipes.strict import Strict


class Stem(Strict):
    """The Teacher-Agnostic Stem: a ViT that timm knows by name, or `custom`, given by its dimensions. Students without
    paths may have timm's ConvNeXt or Swin."""

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


class Optimizer(Strict):
    """AdamW, or Adam, whose weight decay is part of the gradient."""

    kind: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = Field(None, gt=0, description="largest gradient norm; none when absent")


class Schedule(Strict):
    """Learning rate over steps: linear warm-up, then cosine to `final_lr` or polynomial decay to 0."""

    kind: Literal["cosine", "polynomial", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    warmup_lr: float = Field(1.25e-7, ge=0)
    final_lr: float = Field(0.0, ge=0)
    power: float = Field(0.9, gt=0)


class Loss(Strict):
    """Distillation: `kind` of teachers' features, what is added to it, weights. Its sum with the task losses."""

    kind: Literal["cos+l1", "cos", "l2", "relational"] = "cos+l1"
    relational: float = Field(0.0, ge=0, description="weight of the relational loss beside `kind`")
    level_weights: dict[str, float | tuple[float, ...]] = Field(
        default_factory=dict, description="of a teacher's distillation losses, one for all or one a level"
    )
    match_levels: dict[str, tuple[int, ...]] | None = Field(
        None,
        description="of a teacher's levels, the student's level (0 is the shallowest) that each is compared with; the "
        "nearest in depth when absent, and the same one where there are as many",
    )
    class_tokens: dict[str, float | tuple[float, ...]] = Field(
        default_factory=dict,
        description="teachers whose class token is a further target, with that loss's weight, one for all or one a "
        "level; read from caches made with --prefix",
    )
    balance: Literal["none", "standardize", "phi-s"] = "none"
    drop_teachers: float = Field(0.0, ge=0, le=1, description="probability of dropping a teacher a row, as UNIC does")
    alpha: float = Field(1.0, ge=0, description="weight of the distillation loss beside the task losses")
    task_weights: dict[str, float] = Field(default_factory=dict, description="in place of the tasks' own")
    boundary_positives: float = Field(
        0.95, gt=0, lt=1, description="weight of boundary pixels in the loss of boundaries; others have 1 minus it"
    )
    initial: float = Field(1.0, ge=0, description="factor of the task losses of a decoder's initial predictions")
    expert_balance: float = Field(1e-4, ge=0, description="weight of how unevenly a decoder's experts are taken")
    normalizers: Literal["step", "process"] = Field(
        "step",
        description="losses' pixel counts and class weights: over a step's rows on all processes, or (as published) "
        "over each process's own; a part of an accumulated step always has its own",
    )


class LoaderOptions(Strict):
    """How rows are read from the cache; see `cache.Loader`."""

    shuffle: Literal["exact", "block"] = Field(
        "exact",
        description="order of rows: any after any, or runs of neighbours shuffled through a buffer, for networks and "
        "spinning disks; each process then has blocks of its own",
    )
    buffer_rows: int = Field(512, ge=1, description="rows that block order shuffles among each other, a process")
    direct: bool = Field(
        False,
        description="read the cache past the page cache (O_DIRECT): for a store on a fast disk of this machine that "
        "memory cannot hold; changes no bit",
    )
    stage: str | None = Field(
        None,
        description="folder on a disk of this machine that keeps what is read of caches that lie far away; changes no "
        "bit",
    )
    stage_gb: float = Field(200, gt=0, description="that the stage may take, GB (10^9 bytes), of all runs together")


class Boundary(Strict):
    """How boundaries are scored: as published for the data set unless said."""

    thresholds: int = Field(99, ge=1, description="k / (thresholds + 1), k = 1 .. thresholds")
    max_dist: float | None = Field(
        None, gt=0, description="largest distance of a match, share of the diagonal; absent: 0.0075, on nyud 0.011"
    )
