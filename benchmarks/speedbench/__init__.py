"""Parts of `speed.py`. What the programs' environments run (`worker`, `clock`) needs Python, NumPy and ASE only."""
