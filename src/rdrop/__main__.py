"""`python -m rdrop`, the command of the environment whose Python it is."""

from rdrop.cli import main

if __name__ == "__main__":
    main()
