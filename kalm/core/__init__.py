"""The ground floor: names, errors, rollouts, durable files, provenance. Imports nothing of kalm above it."""
