"""Optimise ethyl methyl ether, which is in none of the data sets, and follow it for 1 ps at constant energy."""

import sys

import numpy as np
from ase import units
from ase.build import molecule
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from aimnet2mult import AIMNet2MultCalculator

atoms = molecule("CH3CH2OCH3")
atoms.calc = AIMNet2MultCalculator(sys.argv[1])

optimizer = BFGS(atoms, logfile=None)
converged = optimizer.run(fmax=0.01, steps=300)
print(f"BFGS: {optimizer.nsteps} steps, converged: {converged}, energy {atoms.get_potential_energy():.4f} eV")
print(f"C-O bonds: {atoms.get_distance(0, 1):.3f} and {atoms.get_distance(0, 2):.3f} Å")

# Maxwell-Boltzmann momenta of 300 K without overall motion
width = np.sqrt(atoms.get_masses() * units.kB * 300.0)[:, None]
atoms.set_momenta(width * np.random.default_rng(1).normal(size=atoms.positions.shape))
Stationary(atoms)
ZeroRotation(atoms)
dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
time, energy = [], []
for step in range(201):  # 200 x 10 steps of 0.5 fs = 1 ps
    if step > 0:
        dynamics.run(10)
    time.append(0.005 * step)
    energy.append(1000.0 * atoms.get_total_energy() / len(atoms))
drift = np.polyfit(time, energy, 1)[0]
print(f"NVE, 1 ps: drift {drift:+.3f} meV/atom/ps, spread of the total energy {np.std(energy):.3f} meV/atom")
