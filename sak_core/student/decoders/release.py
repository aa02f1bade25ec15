"""Names of the authors' releases of InvPT and MLoRE, for state dicts that are read and written.

The releases number in places what is called by its task here, and keep parameters that nothing uses; the rest is a
renaming. Names here are those of a `StudentNetwork` with a stem alone: `stem.vit.`, `final_norm.`, `decoder.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sak_core.weights.tensor_files import Misfit, check_state

_STEM = {r"stem\.vit\.": "backbone.", r"final_norm\.": "backbone.norm."}
_INVPT = "multi_task_decoder."
_STAGE = rf"{_INVPT}invpt.invpt_stages."


@dataclass(frozen=True)
class Release:
    """How a release calls things.

    Attributes:
        names: beginnings of names here (patterns) and of the release's; `{k}` is the number of the task that the
            pattern calls t.
        chunked: a pattern of the release's names whose tensors are cut into the tasks' parts here, in order.
        unused: a pattern of what the release keeps and never uses.
    """

    names: Mapping[str, str]
    unused: str
    chunked: str = r"(?!)"

    @property
    def is_numbered(self) -> bool:
        """Whether the order of tasks decides what a name stands for."""
        return any("{k}" in theirs for theirs in self.names.values())

    def name(self, ours: str, tasks: Sequence[str]) -> tuple[str, int | None]:
        """What the release calls the entry `ours`, and the part's number where the entry there is cut up.

        Args:
            tasks: in the order by which the release numbers them.

        Raises:
            ValueError: it has no such entry.
        """
        for pattern, theirs in self.names.items():
            if found := re.match(pattern, ours):
                task = found.groupdict().get("t")
                number = tasks.index(task) if task else None
                there = found.expand(theirs.replace("{k}", "\0")).replace("\0", str(number)) + ours[found.end() :]
                return there, number if re.fullmatch(self.chunked, there) else None
        raise ValueError(f"the release has nothing like {ours}")


RELEASES = {
    "invpt": Release(
        names={
            **_STEM,
            r"decoder\.skips\.0\.": f"{_INVPT}scale_embed.1.",
            r"decoder\.skips\.1\.": f"{_INVPT}scale_embed.0.",
            r"decoder\.preliminary\.(?P<t>[^.]+)\.(\d)\.0\.": rf"{_INVPT}preliminary_decoder.\1.\2.conv.",
            r"decoder\.preliminary\.(?P<t>[^.]+)\.(\d)\.1\.": rf"{_INVPT}preliminary_decoder.\1.\2.bn1.",
            r"decoder\.initial\.": f"{_INVPT}intermediate_head.",
            r"decoder\.mixing\.([^.]+)\.": rf"{_INVPT}invpt.mix_proj.\1.0.",
            r"decoder\.stages\.(\d)\.grow\.(?P<t>[^.]+)\.0\.": rf"{_STAGE}\1.patch_embed.{{k}}.proj.1.",
            r"decoder\.stages\.(\d)\.grow\.(?P<t>[^.]+)\.1\.": rf"{_STAGE}\1.patch_embed.{{k}}.proj.2.",
            r"decoder\.stages\.(\d)\.grow\.(?P<t>[^.]+)\.3\.": rf"{_STAGE}\1.patch_embed.{{k}}.proj.4.",
            r"decoder\.stages\.(\d)\.grow\.(?P<t>[^.]+)\.4\.": rf"{_STAGE}\1.patch_embed.{{k}}.proj.5.",
            r"decoder\.stages\.(\d)\.norm(\d)\.": rf"{_STAGE}\1.blocks.0.norm\2.",
            r"decoder\.stages\.(\d)\.mlp\.0\.": rf"{_STAGE}\1.blocks.0.mlp.fc1.",
            r"decoder\.stages\.(\d)\.mlp\.2\.": rf"{_STAGE}\1.blocks.0.mlp.fc2.",
            r"decoder\.stages\.(\d)\.attention\.queries\.(?P<t>[^.]+)\.0\.": (
                rf"{_STAGE}\1.blocks.0.attn.conv_proj_q.{{k}}.conv."
            ),
            r"decoder\.stages\.(\d)\.attention\.queries\.(?P<t>[^.]+)\.1\.": (
                rf"{_STAGE}\1.blocks.0.attn.conv_proj_q.{{k}}.bn."
            ),
            r"decoder\.stages\.(\d)\.attention\.([qkv])\.": rf"{_STAGE}\1.blocks.0.attn.proj_\2.",
            r"decoder\.stages\.(\d)\.attention\.out\.": rf"{_STAGE}\1.blocks.0.attn.proj.",
            r"decoder\.stages\.(\d)\.attention\.fuse\.": rf"{_STAGE}\1.blocks.0.attn.fuse_attn.",
            r"decoder\.norms\.(\d)\.of\.(?P<t>[^.]+)\.": rf"{_INVPT}invpt.norm_mts.\1.",
            r"decoder\.widen\.0\.(?P<t>[^.]+)\.": f"{_INVPT}invpt.redu_chan.1.{{k}}.",
            r"decoder\.widen\.1\.(?P<t>[^.]+)\.": f"{_INVPT}invpt.redu_chan.2.{{k}}.",
            r"decoder\.last\.([^.]+)\.": rf"{_INVPT}invpt.mt_proj.\1.",
            r"decoder\.heads\.([^.]+)\.": r"heads.\1.linear_pred.",
        },
        chunked=r"multi_task_decoder\.invpt\.norm_mts\.\d\..*",
        unused=(
            r"multi_task_decoder\.(scale_embed\.2|invpt\.redu_chan\.0\.\d+|invpt\.norm_mt|"
            r"invpt\.invpt_stages\.0\.blocks\.0\.attn\.fuse_attn)\.(weight|bias)"
        ),
    ),
    "mlore": Release(
        names={
            **_STEM,
            r"decoder\.enter\.": "backbone.fea_fuse.",
            r"decoder\.masks\.": "backbone.task_mask.",
            r"decoder\.last\.([^.]+)\.": r"heads.\1.mt_proj.",
            r"decoder\.heads\.([^.]+)\.": r"heads.\1.linear_pred.",
            **{
                rf"decoder\.{ours}\.(\d+)\.{part}": rf"backbone.{theirs}.\1.{name}"
                for ours, theirs in (("first", "MLoRE_1"), ("second", "MLoRE_2"))
                for part, name in (
                    (r"enter\.", "conv1."),
                    (r"routers\.([^.]+)\.channels\.", r"router_1.\2.0.conv1."),
                    (r"routers\.([^.]+)\.channels_norm\.", r"router_1.\2.0.ln."),
                    (r"routers\.([^.]+)\.channels_out\.", r"router_1.\2.0.conv3."),
                    (r"routers\.([^.]+)\.positions\.", r"router_1.\2.0.convsp."),
                    (r"routers\.([^.]+)\.positions_norm\.", r"router_1.\2.0.ln_sp."),
                    (r"routers\.([^.]+)\.positions_out\.", r"router_1.\2.0.conv2."),
                    (r"routers\.([^.]+)\.gates\.", r"router_1.\2.1."),
                    (r"experts\.(\d+)\.down\.", r"lora_list_1.\2.W."),
                    (r"experts\.(\d+)\.up\.", r"lora_list_1.\2.M."),
                    (r"own\.([^.]+)\.down\.", r"conv2.\2.W."),
                    (r"own\.([^.]+)\.up\.", r"conv2.\2.M."),
                    (r"shared\.", "share_conv."),
                    (r"mixture_norms\.", "bn_all."),
                    (r"norms\.", "bn."),
                    (r"leave\.", "conv3."),
                )
            },
        },
        unused=r"(backbone\.)?(q_fuse\.[^.]+|classify_route_[12]|aux_heads)\..*",
    ),
}
"""The releases by the decoder's name."""


def read_release(
    decoder: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor], tasks: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The entries `own` (names here) from a release's state dict, and the names there that nothing uses.

    Args:
        tasks: in the student's order.

    Raises:
        Misfit: entries are missing, left over or of another shape, each named as the release does; or the release
            numbers parts by another order of the tasks.
    """
    release = RELEASES[decoder]
    unused = [name for name in state if re.fullmatch(release.unused, name)]
    wanted = write_release(decoder, own, tasks)
    used = {name: value for name, value in state.items() if name not in unused}
    check_state(wanted, used, f"the checkpoint of {decoder} does not fit")
    theirs = task_order(used, tasks)
    if release.is_numbered and theirs != list(tasks):
        raise Misfit(
            f"the checkpoint's tasks are in the order {', '.join(theirs)}, the student's in {', '.join(tasks)}; parts "
            "are numbered by it, so build the student with the checkpoint's order",
            wanted,
            (),
        )
    found = {}
    for name in own:
        there, number = release.name(name, tasks)
        found[name] = used[there] if number is None else used[there].chunk(len(tasks))[number]
    return found, unused


def write_release(decoder: str, own: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """The entries `own` under the release's names, without those that the release keeps and never uses."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name, value in own.items():
        there, number = RELEASES[decoder].name(name, tasks)
        parts.setdefault(there, {})[number or 0] = value
    return {
        there: torch.cat([found[number] for number in sorted(found)]) if len(found) > 1 else found[0]
        for there, found in parts.items()
    }


def task_order(state: Mapping[str, Tensor], tasks: Sequence[str]) -> list[str]:
    """The order in which a release's state dict names its heads' tasks; `tasks` where it is only the alphabet's, which
    safetensors files put on all names."""
    found = list(dict.fromkeys(name.split(".")[1] for name in state if name.startswith("heads.")))
    return list(tasks) if found == sorted(tasks) else found
