"""What lies in a folder of images and labels, and what is wrong with it."""
