"""Sentence encoders, prompts and tokenisers: everything between words and vectors."""
