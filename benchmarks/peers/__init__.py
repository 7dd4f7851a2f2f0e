"""One module per program that `speed.py` can measure; `base` says what it may offer."""
