#!/usr/bin/env bash
# The whole line once: three data sets -> self-atomic energies -> one network -> three model files -> ASE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${PYTHON:-python}
"$python" -c "import aimnet2mult" 2>/dev/null || {
    echo "error: '$python' cannot import aimnet2mult; install the package and activate its environment first" >&2
    exit 2
}

echo "== 1. Self-atomic energies"
for fidelity in 0 1 2; do
    "$python" -m aimnet2mult.training.calc_sae \
        "output/subsets/fid${fidelity}_subset.h5" "output/subsets/sae_fid${fidelity}.yaml"
done

echo "== 2. Training, and compiling of every fidelity (D3BJ with pbe0 on fidelity 0)"
"$python" -m aimnet2mult.training config/train.yaml "$@"

echo "== 3. A compiled model as plain TorchScript"
"$python" - <<'PYTHON'
import torch

# Load compiled model
model = torch.jit.load('output/compiled/model_fid0.jpt')

# Prepare input
data = {
    'coord': torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]),  # (batch, atoms, 3)
    'numbers': torch.tensor([[6, 1]]),  # (batch, atoms)
    'charge': torch.tensor([0.0]),  # (batch,)
}

# Run inference
with torch.no_grad():
    result = model(data)

print(f"Energy: {result['energy'].item():.4f} eV")
print(f"Charges: {result['charges']}")
PYTHON

echo "== 4. ASE: optimisation and molecular dynamics of a molecule outside the data"
"$python" use_in_ase.py output/compiled/model_fid0.jpt

echo "== 5. Errors on molecules that were never seen in training"
"$python" - <<'PYTHON'
import csv

with open('output/errors.csv', encoding='utf-8') as table:
    head, *rows = csv.reader(table)
rows = [head, *(row for row in rows if row[0] == 'test')]
widths = [max(len(cell) for cell in column) for column in zip(*rows)]
for row in rows:
    print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
PYTHON
echo "Pictures:"
ls -1 "$PWD"/output/plots/*.png
