"""Files of users: read row by row, checked, and cut into splits."""
