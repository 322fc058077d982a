"""Losses that more than one algorithm may use: tensors in, one number per transition out."""
