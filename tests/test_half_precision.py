"""A loaded student in fp16, bf16 and fp64: pictures and uint8 go through it as in fp32."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from sak_core.student.heads import HEADS
from sak_core.student.pretrained import PretrainedConfig, Student
from tests import students


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2), (torch.float64, 1e-6)])
@pytest.mark.parametrize("head", HEADS)
def test_a_loaded_student_works_in_other_precisions(dtype, error, head):
    """Pictures and bytes as they are, whole, at another size and in tiles; features come in its own dtype."""
    student = Student(students.student(head=head).eval(), PretrainedConfig(students.config(head=head)))
    pixels = torch.randint(0, 256, (40, 72, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = copy.deepcopy(student).to(dtype)
    for options in ({}, {"size": 48}, {"tile": 32}):
        expected = student(pixels, **options)
        for image in (pixels, pixels.numpy(), Image.fromarray(pixels.numpy())):
            found = other(image, **options)
            for task in ("saliency", "depth", "normals", "boundary"):
                assert found[task].dtype == np.float32
                # the mean: the direction of a normal that is nearly 0 long may be any
                assert np.abs(found[task] - expected[task]).mean() < error * max(1, np.abs(expected[task]).mean())
    for images in (pixels[None], torch.rand(1, 3, 40, 72), torch.rand(1, 3, 40, 72, dtype=dtype)):
        maps = other.features(images)
        assert maps.keys() == {"stem", *students.TEACHERS}
        assert {level.dtype for levels in maps.values() for level in levels} == {dtype}
