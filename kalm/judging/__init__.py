"""Judges: who says whether a goal is met, and how sure; labels are what they wrote."""
