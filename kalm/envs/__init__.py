"""The worlds, a package each; importing one registers its Gymnasium environment, without importing a simulator."""
