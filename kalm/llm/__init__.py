"""The grounded language model: backbones, grounding and imagination."""
