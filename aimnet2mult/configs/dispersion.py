"""The dispersion correction that goes into a compiled potential, as in ``train.yaml`` or on the command line."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from aimnet2mult.configs.settings import Settings


class DispersionSettings(Settings):
    """Dispersion added to one fidelity when it is compiled."""

    method: Literal["none", "d3bj", "d4"] = Field("none", description="none, d3bj or d4")
    functional: str | None = Field(None, description="functional whose damping parameters are used")
    s6: float | None = Field(None, description="own damping parameter")
    s8: float | None = Field(None, description="own damping parameter")
    a1: float | None = Field(None, description="own damping parameter")
    a2: float | None = Field(None, description="own damping parameter, Bohr")
    s9: float | None = Field(None, description="three-body share; null: 0 with d3bj, that of the functional with d4")
    charges: Literal["eeq", "network"] = Field(
        "eeq", description="charges that scale the D4 polarisabilities: electronegativity equilibration, or predicted"
    )
    triple_cutoff: float | None = Field(
        None,
        ge=8.0,
        le=30.0,
        description="reach of the D4 three-body term in Å; null: 21.2, as in the dftd4 package, which is dear in cells",
    )

    @model_validator(mode="after")
    def _consistent(self) -> DispersionSettings:
        given = [name for name, value in self.damping.items() if value is not None]
        if self.functional is not None:
            given.insert(0, "functional")
        if self.method == "none" and given:
            raise ValueError(
                f"method: is none although {given[0]} is given; choose d3bj or d4, or leave {given[0]} out"
            )
        if self.method != "d4" and self.charges != "eeq":
            raise ValueError(f"charges: only d4 scales with charges, not {self.method}; leave charges out")
        if self.method != "d4" and self.triple_cutoff is not None:
            raise ValueError(f"triple_cutoff: is for d4 only, not {self.method}; leave it out")
        return self

    @property
    def damping(self) -> dict[str, float | None]:
        """Own damping parameters by name, None where those of the functional are meant."""
        return {"s6": self.s6, "s8": self.s8, "a1": self.a1, "a2": self.a2, "s9": self.s9}
