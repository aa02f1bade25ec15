"""`sak predict`: images of any size, folders and videos, drawn, kept as arrays, resumed; unreadable ones listed."""

from __future__ import annotations

import json
import os
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.prediction.drawing import KEY_MIN_PX, KEY_PX
from sak_core.miniature.rooms.scene import render_scene
from sak_core.student.network import StudentOutput
from sak_core.student.pretrained import Student
from sak_core.student.tiling import OVERLAP, predict_raw, tile_starts
from tests.conftest import answer, refusal, sak

TASKS = ("semseg", "parts", "saliency", "depth", "normals", "boundary")
SIZES = {"a/one": (96, 96), "a/two": (60, 200), "tall": (333, 97)}


def scene(index: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(render_scene(3, index, size).image)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "a").mkdir()
    for index, (name, size) in enumerate(SIZES.items()):
        scene(index, size).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


@pytest.fixture(scope="module")
def predicted(trained: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "predictions"
    done = sak("predict", photos, "--model", trained, "--out", out, "--raw", "--json")
    result = json.loads(done.stdout)
    assert result["predicted"] == 3 and result["already_there"] == 0
    assert [entry["picture"] for entry in result["unreadable"]] == [str(photos / "broken.jpg")]
    assert result["images_per_s"] > 0 and result["model_s_per_image"] > 0
    assert "images/s" in done.stderr and "broken.jpg" in done.stderr
    return out


def test_every_image_and_task_has_its_picture(predicted: Path) -> None:
    found = {path.relative_to(predicted).as_posix() for path in predicted.rglob("*") if path.is_file()}
    expected = {f"{task}/{name}.png" for task in TASKS for name in SIZES} | {f"raw/{name}.npz" for name in SIZES}
    assert found == expected | {"contact-sheet.png", "predictions.json"}
    for name, (height, width) in SIZES.items():
        for task in ("saliency", "boundary"):
            assert Image.open(predicted / task / f"{name}.png").size == (width, height)
        for task in ("semseg", "parts", "depth", "normals"):
            drawn = Image.open(predicted / task / f"{name}.png")
            factor = -(-320 // min(height, width))
            assert drawn.size == (factor * width + KEY_PX, factor * height)
    sheet = np.asarray(Image.open(predicted / "contact-sheet.png"))
    assert sheet.shape[0] > 3 * 200 and sheet.shape[1] > 7 * 200 and sheet.std() > 20


def test_raw_arrays_and_pictures_are_the_students(predicted: Path, trained: Path, photos: Path, tmp_path: Path) -> None:
    sak("export", trained, tmp_path / "model")
    student = Student.from_pretrained(tmp_path / "model")
    for name, (height, width) in SIZES.items():
        raw = np.load(predicted / "raw" / f"{name}.npz")
        expected = student(Image.open(photos / f"{name}.png"))
        for task in TASKS:
            assert raw[task].shape[:2] == (height, width)
            np.testing.assert_allclose(raw[task], expected[task], rtol=1e-3, atol=1e-3)
        strength = np.asarray(Image.open(predicted / "boundary" / f"{name}.png"))[..., 0]
        np.testing.assert_array_equal(strength, (raw["boundary"] * 255).round().astype(np.uint8))


def test_it_goes_on_where_it_stopped(trained: Path, photos: Path, predicted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in predicted.rglob("*.png") if path.parent != predicted}
    gone = predicted / "depth" / "tall.png"
    gone.unlink()
    arguments = ["predict", photos, "--model", trained, "--out", predicted, "--raw", "--json"]
    planned = json.loads(sak(*arguments, "--dry-run").stdout)
    assert planned["images"] == 4 and planned["already_there"] == 2 and not gone.exists()
    result = json.loads(sak(*arguments).stdout)
    assert result["predicted"] == 1 and result["already_there"] == 2
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if before[path] == after[path]} == {p for p in before if p.stem != "tall"}
    assert "tile: 192 against 64" in refusal(*arguments, "--tile", "64")
    anew = json.loads(sak(*arguments, "--overwrite").stdout)
    assert anew["predicted"] == 3


def test_a_picture_that_changed_under_its_name_is_predicted_anew(trained: Path, tmp_path: Path) -> None:
    """Contents decide: another folder's file of the same name, size and time, and not a copy of the same content."""
    first, second, copied = tmp_path / "first", tmp_path / "second", tmp_path / "copied"
    for number, folder in enumerate((first, second)):
        folder.mkdir()
        scene(number, (40, 48)).save(folder / "x.png", compress_level=0)
        scene(2, (40, 48)).save(folder / "same.png", compress_level=0)
        for path in folder.iterdir():
            os.utime(path, ns=(10**18, 10**18))
    shutil.copytree(second, copied)

    def run(folder: Path, *extra: str) -> dict[str, int]:
        command = ["predict", folder, "--model", trained, "--out", tmp_path / "out", "--raw", "--json", *extra]
        found: dict[str, int] = json.loads(sak(*command).stdout)
        return found

    assert run(first)["predicted"] == 2
    before = np.load(tmp_path / "out/raw/x.npz")["depth"]
    assert run(first, "--dry-run")["already_there"] == 2
    assert run(second, "--dry-run")["already_there"] == 1
    assert (lambda told: (told["predicted"], told["already_there"]))(run(second)) == (1, 1)
    anew = np.load(tmp_path / "out/raw/x.npz")["depth"]
    assert not np.array_equal(before, anew)
    assert run(copied)["already_there"] == 2


def test_equal_names_keep_their_suffix(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    scene(0, (32, 32)).save(folder / "x.png")
    scene(1, (32, 32)).save(folder / "x.webp", lossless=True)
    scene(1, (32, 32)).save(folder / "y.gif")
    told = sak("predict", folder, "--model", trained, "--out", tmp_path / "out").stderr
    assert {path.name for path in (tmp_path / "out" / "depth").iterdir()} == {"x-png.png", "x-webp.png"}
    assert "left alone: 1 .gif" in told  # a folder's other files are not passed over in silence
    (tmp_path / "other").mkdir()
    scene(1, (32, 32)).save(tmp_path / "other" / "x.png")
    said = refusal(
        "predict", folder / "x.png", tmp_path / "other" / "x.png", "--model", trained, "--out", tmp_path / "o",
    )  # fmt: skip
    assert str(tmp_path / "other" / "x.png") in said
    for path in (tmp_path / "clip.mp4", tmp_path / "other" / "clip.mp4"):
        path.write_bytes(b"video")
    said = refusal(
        "predict", tmp_path / "clip.mp4", tmp_path / "other" / "clip.mp4", "--model", trained, "--out", tmp_path / "o",
    )  # fmt: skip
    assert str(tmp_path / "other" / "clip.mp4") in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    said = refusal("predict", folder, "--model", trained, "--out", tmp_path / "full")
    assert "holds other files" in said
    assert "no such file" in refusal("predict", tmp_path / "none.png", "--model", trained, "--out", tmp_path / "o")


def test_odd_pictures(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd names" / "größe 大"
    folder.mkdir(parents=True)
    room = scene(0, (96, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise, as phones held upright write it
    room.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.WEBP", lossless=True, exif=exif)
    room.save(folder / "plain.PNG")
    room.resize((1, 1)).save(folder / "dot.png")
    room.resize((3000, 9)).save(folder / "strip.png")
    see_through = room.convert("RGBA")
    see_through.putalpha(0)
    see_through.save(folder / "see-through.png")
    Image.new("RGB", (96, 96), "white").save(folder / "white.png")
    grey = np.asarray(room.convert("L"))
    Image.fromarray(grey).save(folder / "grey8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "grey16.png")
    room.save(os.fsdecode(bytes(folder) + b"/latin-\xe9.png"))
    out = tmp_path / "out"
    result = answer("predict", tmp_path / "odd names", "--model", trained, "--out", out, "--raw")
    assert result["predicted"] == 9 and result["unreadable"] == []
    for one, other in (
        ("turned", "plain"),
        ("see-through", "white"),
        ("grey16", "grey8"),
        ("latin-\\xe9", "plain"),
    ):
        pair = [np.load(out / "raw" / "größe 大" / f"{name}.npz") for name in (one, other)]
        for task in TASKS:
            np.testing.assert_allclose(pair[0][task], pair[1][task], rtol=1e-3, atol=1e-3)
    for name, shape in (("dot", (1, 1)), ("strip", (9, 3000))):
        assert np.load(out / "raw" / "größe 大" / f"{name}.npz")["depth"].shape == shape
    # a strip is not blown up, and its key is whole beside it
    assert Image.open(out / "semseg" / "größe 大" / "strip.png").size == (3000 + KEY_PX, KEY_MIN_PX)


def test_a_sheet_of_kept_pictures_is_the_sheet_of_new_ones(
    trained: Path, photos: Path, predicted: Path, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(predicted, tmp_path / "again"))
    sak("predict", photos, "--model", trained, "--out", again, "--raw")
    new, kept = (np.asarray(Image.open(out / "contact-sheet.png")).astype(int) for out in (predicted, again))
    assert np.abs(new - kept).mean() < 2  # small pictures were kept enlarged


def write_video(path: Path, frames: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(frames):
            picture = np.full((64, 96, 3), 40 * index, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_a_videos_frames(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    write_video(tmp_path / "clip.mp4", 5)
    out = tmp_path / "out"
    done = sak("predict", tmp_path / "clip.mp4", "--model", trained, "--out", out, "--every", "2", "--json")
    assert json.loads(done.stdout)["predicted"] == 3
    assert "3/3 images" in done.stderr
    names = {path.name for path in (out / "depth" / "clip").iterdir()}
    assert names == {"000000.png", "000002.png", "000004.png"}
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:200])
    said = refusal("predict", tmp_path / "bad.mp4", "--model", trained, "--out", tmp_path / "o")
    assert "cannot be read as a video" in said


TURNS = {  # the display matrix of a phone's clip (a, b, c, d) -> how a person turns its frames
    "portrait": ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
    "upside-down": ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
    "other-portrait": ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
}


def write_turned_video(path: Path, picture: Image.Image, matrix: tuple[int, int, int, int]) -> None:
    """A clip of one frame whose track header has a display matrix (ISO 14496-12, 8.3.2; x' = ax + cy, y' = bx + dy)."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *picture.size, "yuv420p", 4_000_000
        for packet in [*stream.encode(av.VideoFrame.from_image(picture)), *stream.encode()]:
            container.mux(packet)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # after the box's name, version 0
    a, b, c, d = (65536 * entry for entry in matrix)
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def test_a_phones_turned_clips_come_out_upright(trained: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    sources = []
    for name, (matrix, turn) in TURNS.items():
        write_turned_video(tmp_path / f"{name}.mp4", scene(0, (64, 96)), matrix)
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            stored = next(container.decode(video=0)).to_image()
        assert stored.size == (96, 64)
        stored.transpose(turn).save(tmp_path / f"{name}-by-hand.png")
        sources += [tmp_path / f"{name}.mp4", tmp_path / f"{name}-by-hand.png"]
    sak("predict", *sources, "--model", trained, "--out", tmp_path / "out", "--raw")
    for name in TURNS:
        found = np.load(tmp_path / "out" / "raw" / name / "000000.npz")
        expected = np.load(tmp_path / "out" / "raw" / f"{name}-by-hand.npz")
        assert found["depth"].shape == ((64, 96) if name == "upside-down" else (96, 64))
        for task in TASKS:
            np.testing.assert_allclose(found[task], expected[task], rtol=1e-3, atol=1e-3)


def test_frames_are_decoded_in_order_and_upright(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from pipeline.prediction.sources import open_sources

    write_video(tmp_path / "clip.mp4", 6)
    (source,) = open_sources([tmp_path / "clip.mp4"])
    assert source.count == 6
    for _ in range(2):
        frames = [picture.read() for picture in source.pictures()]
        assert [round(float(frame.mean()) / 40) for frame in frames] == [0, 1, 2, 3, 4, 5]
        assert frames[0].shape == (64, 96, 3)


def test_videos_without_pyav_are_an_error_that_says_so(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"video")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['av'] = None\n")
    said = refusal(
        "predict", tmp_path / "clip.mp4", "--model", trained, "--out", tmp_path / "out",
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert "pip install 'sak[video]'" in said


@given(st.integers(1, 2000), st.integers(1, 300))
def test_tiles_cover_a_side_with_enough_overlap(length: int, tile: int) -> None:
    starts = tile_starts(length, tile)
    assert starts[0] == 0 and starts[-1] + min(tile, length) == length
    for first, second in pairwise(starts):
        assert first < second or tile * (1 - OVERLAP) < 1
        assert first + tile - second >= int(tile * OVERLAP)


class Pixelwise(torch.nn.Module):
    """Stands for a student whose outputs depend on nothing but a pixel's own colour."""

    fixed_size = None

    class stem:
        patch = multiple = 8

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> StudentOutput:
        assert images.shape[2] % 8 == 0 and images.shape[3] % 8 == 0
        self.seen.append(tuple(images.shape))
        return StudentOutput([], {}, {"a": images * self.scale, "b": images[:, :1] ** 2}, {})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=3),
    st.integers(1, 5).map(lambda n: 8 * n),
    st.integers(1, 5),
)
@torch.inference_mode()
def test_tiles_blend_to_what_the_whole_gives(sizes: list[tuple[int, int]], tile: int, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator) for size in sizes]
    student = Pixelwise()
    for image, found in zip(images, predict_raw(student, images, tile, batch_size), strict=True):  # type: ignore[arg-type]
        expected = image.permute(2, 0, 1).float() / 127.5 - 1
        torch.testing.assert_close(found["a"], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["b"], expected[:1] ** 2, rtol=1e-4, atol=1e-4)
    assert all(batch <= batch_size and max(height, width) <= tile for batch, _, height, width in student.seen)
