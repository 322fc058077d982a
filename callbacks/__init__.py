"""Lightning callbacks; installed and imported as ``kalm.callbacks``."""
