"""A student's predictions for images, folders and videos."""
