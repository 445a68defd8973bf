"""Sentences and pairs: vocabularies, encoders, answers, tagged sentences."""
