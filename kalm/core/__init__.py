"""The ground floor: names, specs, errors, rollouts, durable files, provenance. Imports nothing of kalm above it."""
