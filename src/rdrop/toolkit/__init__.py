"""The toolkit behind the command `rdrop`: recipes, runs, statistics and the comparison of arms."""
