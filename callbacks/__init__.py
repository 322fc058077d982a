"""Lightning callbacks, one a file; installed and imported as ``kalm.callbacks``."""
