"""What teachers' licences together allow, and that no export allows more unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.export.card import model_card
from pipeline.export.model_folder import export
from pipeline.runs.licences import allows_more, strictest, use_of
from sak_core.student.pretrained import Student
from sak_core.student.pretrained_config import PretrainedConfig
from sak_core.teachers import TEACHERS
from tests.students import student

USES = {
    "Apache-2.0": "any use",
    "MIT": "any use",
    "BSD-3-Clause": "any use",
    "DINOv3 License": "any use on conditions",
    "NVIDIA Open Model License": "any use on conditions",
    "CC-BY-4.0": "any use on conditions",
    "CC-BY-NC-4.0": "non-commercial",
    "cc-by-nc-sa-3.0": "non-commercial",
    "NVIDIA Source Code License (non-commercial)": "non-commercial",
    "apple-amlr": "non-commercial",
    "FAIR Noncommercial Research License": "non-commercial",
    "see the model's card": "unknown",
    "unknown": "unknown",
    "its weights' own": "unknown",
    "": "unknown",
}


@pytest.mark.parametrize("licence", USES)
def test_a_licence_is_read_by_its_name(licence: str) -> None:
    assert use_of(licence) == USES[licence]


def test_every_teacher_of_the_table_has_a_licence_that_is_understood() -> None:
    named = {row.licence for row in TEACHERS.values() if row.licence}
    assert {licence for licence in named if use_of(licence) == "unknown"} == set()


def test_the_strictest_decides_and_is_named() -> None:
    terms = strictest([("a", "MIT"), ("b", "CC-BY-NC-4.0"), ("c", "unknown"), ("d", "DINOv3 License")])
    assert (terms.use, terms.by) == ("non-commercial", (("b", "CC-BY-NC-4.0"),))
    assert "non-commercial use alone. Strictest: b (CC-BY-NC-4.0)" in terms.sentence()
    assert strictest([("a", "MIT"), ("c", "whatever")]).use == "unknown"
    assert strictest([]).by == () and "No teacher" in strictest([]).sentence()
    assert allows_more("apache-2.0", terms) and not allows_more("cc-by-nc-4.0", terms)
    assert not allows_more("mit", strictest([]))


def model(licence: str) -> Student:
    network = student()
    teacher = {"name": "a", "library": "timm", "model": "x", "weights": "sha256:1", "licence": licence}
    about = {"run": "r", "made_with": "sak", "arm": "sak", "stem_weights": None, "teachers": [teacher], "data": []}
    told = {**about, "parameters": 1, "seconds": 1.0, "recipe": {"seed": 0}}
    return Student(network.eval(), PretrainedConfig(network.config, (), told))


def test_a_non_commercial_teacher_makes_a_non_commercial_student(tmp_path: Path) -> None:
    made = model("CC-BY-NC-4.0")
    card = model_card(made.config, "me/it")
    assert "license_name: teachers-non-commercial" in card and "non-commercial use alone" in card
    assert export(made, tmp_path / "out")["use"] == "non-commercial"


def test_a_freer_licence_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    made, out, asked = model("CC-BY-NC-4.0"), tmp_path / "out", []
    with pytest.raises(UserError, match=r"non-commercial use alone.*'apache-2.0' allows more.*--yes"):
        export(made, out, licence="apache-2.0")
    with pytest.raises(UserError, match="allows more"):
        export(made, out, licence="apache-2.0", confirm=lambda question: bool(asked.append(question)))
    assert not out.exists() and "Strictest: a (CC-BY-NC-4.0)" in asked[0]
    export(made, out, licence="apache-2.0", confirm=lambda question: True)
    assert "license: apache-2.0" in (out / "README.md").read_text()
    export(model("MIT"), tmp_path / "free", licence="apache-2.0")
