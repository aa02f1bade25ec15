"""A trained student as a folder that others can use: safetensors, configuration, model card; and to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import runs
from pipeline.card import model_card
from pipeline.console import amount, say
from pipeline.errors import UserError
from sak_core.hub import hub_reason
from sak_core.pretrained import CARD, CONFIG, WEIGHTS, PretrainedStudent, from_pretrained, save_pretrained

FILES = (CONFIG, WEIGHTS, CARD)


def export(model: PretrainedStudent, out: Path, model_id: str | None = None) -> dict[str, Any]:
    """Write `model` into the folder `out`, and read it back. Returns the folder, its files and their bytes.

    model_id: what the card tells people to load; the folder's name when absent.
    Raises `UserError` where `out` holds anything but an earlier export.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / CONFIG).is_file())):
        raise UserError(f"{out} is there and is no earlier export; choose another folder")
    card = model_card(model.config, model_id or out.name)
    save_pretrained(model.student, model.config, out)
    runs.write_atomically(out / CARD, card)
    _check(model, out)
    sizes = {name: (out / name).stat().st_size for name in FILES}
    say(f"{out}: {', '.join(f'{name} {amount(size)}' for name, size in sizes.items())}")
    return {"folder": str(out), "files": sizes}


def push(out: Path, model_id: str, public: bool) -> str:
    """Upload the exported folder `out` to the hub as `model_id` ("owner/name") and return its address.

    Uses the token and the endpoint that huggingface_hub is set up with (`hf auth login`, HF_TOKEN, HF_ENDPOINT).
    A new repository is private unless `public`. Raises `UserError` with the hub's reason.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(library_name="sak")
    try:
        address = api.create_repo(model_id, private=not public, exist_ok=True)
        files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
        api.upload_folder(
            repo_id=model_id, folder_path=out, allow_patterns=files, commit_message="Export of a trained student"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"the hub did not take {model_id} ({hub_reason(error)}). The folder {out} is whole; log in with "
            "`hf auth login` (or set HF_TOKEN) and run the same command again"
        ) from None
    say(f"pushed to {address}")
    return str(address)


def _check(model: PretrainedStudent, out: Path) -> None:
    """That what was written reads back as what was exported, bit for bit."""
    import torch

    again = from_pretrained(out).student.state_dict()
    for name, value in model.student.state_dict().items():
        if not torch.equal(value.cpu(), again[name]):
            raise UserError(f"{out}: {name} reads back with other values; is the disk faulty?")
