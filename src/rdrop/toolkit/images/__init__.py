"""Images: their tables and files, transforms, networks."""
