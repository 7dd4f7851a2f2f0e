"""Write `molecules.xyz`, the drug molecules of `speed.py`: SMILES made into one conformer each by RDKit.

    pip install rdkit ase    # in an environment of its own
    python benchmarks/make_molecules.py

Geometries are ETKDG conformers (Riniker, Landrum, J. Chem. Inf. Model. 2015, 55, 2562), relaxed with the MMFF94 force
field. The file is part of the repository, so that every machine measures the same molecules.
"""

from __future__ import annotations

from pathlib import Path

SEED = 1
SMILES = {
    "acetone": "CC(C)=O",
    "glycine": "NCC(=O)O",
    "benzene": "c1ccccc1",
    "phenol": "Oc1ccccc1",
    "alanine": "CC(N)C(=O)O",
    "aniline": "Nc1ccccc1",
    "nicotinamide": "NC(=O)c1cccnc1",
    "adenine": "Nc1ncnc2[nH]cnc12",
    "salicylic acid": "O=C(O)c1ccccc1O",
    "indole": "c1ccc2[nH]ccc2c1",
    "histamine": "NCCc1c[nH]cn1",
    "isoniazid": "NNC(=O)c1ccncc1",
    "vanillin": "COc1cc(C=O)ccc1O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "ascorbic acid": "OC[C@H](O)[C@H]1OC(=O)C(O)=C1O",
    "metronidazole": "Cc1ncc([N+](=O)[O-])n1CCO",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "theophylline": "Cn1c(=O)c2[nH]cnc2n(C)c1=O",
    "dopamine": "NCCc1ccc(O)c(O)c1",
    "phenylalanine": "N[C@@H](Cc1ccccc1)C(=O)O",
    "amphetamine": "CC(N)Cc1ccccc1",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "glucose": "OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O",
    "serotonin": "NCCc1c[nH]c2ccc(O)cc12",
    "levodopa": "N[C@@H](Cc1ccc(O)c(O)c1)C(=O)O",
    "nicotine": "CN1CCC[C@H]1c1cccnc1",
    "adrenaline": "CNC[C@H](O)c1ccc(O)c(O)c1",
    "limonene": "CC(=C)[C@@H]1CCC(C)=CC1",
    "camphor": "CC1(C)C2CCC1(C)C(=O)C2",
    "acyclovir": "Nc1nc2n(COCCO)cnc2c(=O)[nH]1",
    "sulfamethoxazole": "Cc1cc(NS(=O)(=O)c2ccc(N)cc2)no1",
    "phenobarbital": "CCC1(c2ccccc2)C(=O)NC(=O)NC1=O",
    "carbamazepine": "NC(=O)N1c2ccccc2C=Cc2ccccc21",
    "cytarabine": "Nc1ccn([C@@H]2O[C@H](CO)[C@@H](O)[C@@H]2O)c(=O)n1",
    "naproxen": "COc1ccc2cc(ccc2c1)[C@H](C)C(=O)O",
    "phenytoin": "O=C1NC(=O)C(c2ccccc2)(c2ccccc2)N1",
    "menthol": "CC(C)[C@@H]1CC[C@@H](C)C[C@H]1O",
    "ketamine": "CNC1(CCCCC1=O)c1ccccc1Cl",
    "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "diazepam": "CN1c2ccc(Cl)cc2C(=NCC1=O)c1ccccc1",
    "melatonin": "COc1ccc2[nH]cc(CCNC(C)=O)c2c1",
    "bupropion": "CC(NC(C)(C)C)C(=O)c1cccc(Cl)c1",
    "procaine": "CCN(CC)CCOC(=O)c1ccc(N)cc1",
    "sertraline": "CN[C@H]1CC[C@@H](c2ccc(Cl)c(Cl)c2)c2ccccc12",
    "trimethoprim": "COc1cc(Cc2cnc(N)nc2N)cc(OC)c1OC",
    "lidocaine": "CCN(CC)CC(=O)Nc1c(C)cccc1C",
    "pethidine": "CCOC(=O)C1(c2ccccc2)CCN(C)CC1",
    "morphine": "CN1CC[C@]23c4c5ccc(O)c4O[C@H]2[C@@H](O)C=C[C@H]3[C@H]1C5",
    "propranolol": "CC(C)NCC(O)COc1cccc2ccccc12",
    "thiamphenicol": "CS(=O)(=O)c1ccc(cc1)[C@@H](O)[C@@H](CO)NC(=O)C(Cl)Cl",
    "loratadine": "CCOC(=O)N1CCC(=C2c3ccc(Cl)cc3CCc3cccnc32)CC1",
    "paclitaxel": (
        "CC1=C2[C@H](C(=O)[C@@]3([C@H](C[C@@H]4[C@]([C@H]3[C@@H]([C@@](C2(C)C)(C[C@@H]1OC(=O)[C@@H]"
        "([C@H](C5=CC=CC=C5)NC(=O)C6=CC=CC=C6)O)O)OC(=O)C7=CC=CC=C7)(CO4)OC(=O)C)O)C)OC(=O)C"
    ),
}


def main() -> None:
    """Write the file beside this script."""
    lines = []
    for name, smiles in SMILES.items():
        symbols, positions = conformer(smiles)
        lines += [str(len(symbols)), f'Properties=species:S:1:pos:R:3 name="{name}" smiles="{smiles}"']
        lines += [f"{s:2}" + "".join(f"{x:10.4f}" for x in row) for s, row in zip(symbols, positions, strict=True)]
    target = Path(__file__).with_name("molecules.xyz")
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{target}: {len(SMILES)} molecules")


def conformer(smiles: str) -> tuple[list[str], list[list[float]]]:
    """Symbols and positions (N, 3) Å of one relaxed conformer."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if AllChem.EmbedMolecule(molecule, randomSeed=SEED) != 0 or AllChem.MMFFOptimizeMolecule(molecule, maxIters=5000):
        raise SystemExit(f"no relaxed conformer of {smiles}; try another SEED")
    return [a.GetSymbol() for a in molecule.GetAtoms()], molecule.GetConformer().GetPositions().tolist()


if __name__ == "__main__":
    main()
