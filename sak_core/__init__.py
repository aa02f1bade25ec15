"""The maths: teachers, student, tasks, losses, metrics, datasets and views. Opens no store."""
