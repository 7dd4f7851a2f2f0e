"""Aliases of `aimnet2mult.training` under the class paths of the settings."""
