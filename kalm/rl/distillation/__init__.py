"""Students: networks that learn from solved plans to carry out instructions (TEDUO, section 3.3)."""
