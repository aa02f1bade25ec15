"""A trained student as a folder that others can use: safetensors, configuration, model card; and to the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import runs
from pipeline.console import amount, say
from pipeline.errors import UserError
from pipeline.export.card import model_card, portable_section, terms_of
from pipeline.export.portable import ONNX, PROGRAM, write_onnx, write_program
from pipeline.runs.licences import allows_more
from sak_core.student.pretrained import CARD, CONFIG, Student, save_pretrained
from sak_core.weights.hub import hub_reason


@dataclass(frozen=True)
class Formats:
    """What to write beside the folder's own files: an ONNX file, a `torch.export` program, both for images of `size`
    (H, W) px, the training views' when None.

    Attributes:
        half: weights as fp16, which are read back as fp32.
    """

    onnx: bool = False
    program: bool = False
    size: tuple[int, int] | None = None
    half: bool = False


def export(
    model: Student,
    out: Path,
    formats: Formats = Formats(),
    model_id: str | None = None,
    licence: str | None = None,
    confirm: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    """Write `model` into the folder `out`, and read it back.

    Args:
        model_id: what the card tells people to load; the folder's name when absent.
        licence: of the student; what its teachers' allow together when absent.
        confirm: is asked where it allows more than they do.

    Returns:
        Folder, files' bytes and `formats`' checks.

    Raises:
        UserError: `out` holds anything but an earlier export, a format fails its check, or such a licence is not
            confirmed.
    """
    terms = terms_of(model.config)
    if licence is not None and allows_more(licence, terms):
        question = f"{terms.sentence()} The licence {licence!r} allows more."
        if confirm is None or not confirm(f"{question} Write it on the card all the same?"):
            raise UserError(f"{question} Leave --licence out, or say --yes if you have the right")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / CONFIG).is_file())):
        raise UserError(f"{out} is there and is no earlier export; choose another folder")
    if formats.half:
        model = model.half()
    card = model_card(model.config, model_id or out.name, licence)
    for earlier in (*out.glob(f"{ONNX}*"), *out.glob(PROGRAM)):
        earlier.unlink()  # perhaps of another student
    save_pretrained(model.network, model.config, out)
    model = _read_back(model, out)
    result: dict[str, Any] = {"folder": str(out), "use": terms.use}
    size = formats.size or model.config.student.stem.image_size
    for key, wanted, write in (("onnx", formats.onnx, write_onnx), ("torch_export", formats.program, write_program)):
        if wanted:
            result[key] = write(model, out, size)
            card += portable_section(result[key])
    runs.write_atomically(out / CARD, card)
    result["files"] = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()}
    say(terms.sentence())
    say(f"{out}: {', '.join(f'{name} {amount(num_bytes)}' for name, num_bytes in result['files'].items())}")
    return result


def push(out: Path, model_id: str, public: bool) -> str:
    """Upload the exported folder `out` to the hub as `model_id` ("owner/name") and return its address.

    Uses the token and the endpoint that huggingface_hub is set up with (`hf auth login`, HF_TOKEN, HF_ENDPOINT). A new
    repository is private unless `public`.

    Raises:
        UserError: the hub refuses, or cannot be reached; its reason is given.
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


def _read_back(model: Student, out: Path) -> Student:
    """What was written, read again; `UserError` where it is not what was exported, bit for bit."""
    import torch

    again = Student.from_pretrained(out)
    found = again.network.state_dict()
    for name, value in model.network.state_dict().items():
        if not torch.equal(value.cpu().to(found[name].dtype), found[name]):
            raise UserError(f"{out}: {name} reads back with other values; is the disk faulty?")
    return again
