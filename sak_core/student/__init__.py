"""The student: as it is trained (`network`), and as people load it (`Student`)."""

from sak_core.student.pretrained import Student

__all__ = ["Student"]
