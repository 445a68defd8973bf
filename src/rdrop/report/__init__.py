"""From a summary to one self-contained page."""
