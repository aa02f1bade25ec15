"""How far the student is from its teachers and its labels."""
