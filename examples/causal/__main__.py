"""`python -m examples.causal`: prints what the interchanges of both networks give."""

from __future__ import annotations

from . import addition, conjunction


def main() -> None:
    """Print both tables."""
    print("The conjunction: P and Q on two neurons turned by 20 degrees")
    for degrees in (0, 10, 20, 30, 45):
        print(f"  exchanged at {degrees:2} degrees: {conjunction.measured(conjunction.turned(degrees))}")
    for seed in range(3):
        print(f"  searched, seed {seed}: {conjunction.searched(seed)[1]}")
        print(f"    a wrong causal model: {conjunction.searched(seed, conjunction.XOR, ['A'])[1]}")
        untrained = conjunction.searched(seed, network=conjunction.Conjunction(seed))[1]
        print(f"    an untrained network: {untrained}")
    print("The sum of three numbers: S1 = X + Y in a layer of 16 neurons")
    for seed in range(3):
        network = addition.trained(seed)
        units, local = addition.best_units(network, 4)
        print(f"  seed {seed}, the best neurons found one by one, {units}: {local}")
        for dimension in (1, 2, 4):
            found = addition.searched(network, addition.SUM, dimension, seed)[1]
            print(f"    searched in {dimension} dimensions: {found}")
        print(f"    a wrong causal model: {addition.searched(network, addition.PREFIX, 4, seed)[1]}")
        print(f"    an untrained network: {addition.searched(addition.trained(seed, 0), addition.SUM, 4, seed)[1]}")


if __name__ == "__main__":
    main()
