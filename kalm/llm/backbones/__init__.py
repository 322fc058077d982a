"""Language models underneath: the tiny one, Hugging Face's, and their caches."""
