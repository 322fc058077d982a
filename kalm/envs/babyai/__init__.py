"""BabyAI: rooms of coloured things, and goals that are about them (TEDUO's first domain)."""
