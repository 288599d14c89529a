"""
log Z by annealing, next to quadrature
======================================

Annealed importance sampling (:func:`ebm_lightning.ais`) works in any number of dimensions and states its error. In two
dimensions adaptive quadrature is practically exact, so that the error can be checked.
"""

import matplotlib.pyplot as plt
import torch

from ebm_lightning import Box, JointEnergy, ais
from ebm_lightning.networks import MLP
from ebm_lightning.partition import quadrature

torch.manual_seed(3)
box, network = Box(-4, 4, (2,)), MLP(2, 3, (32, 32))
with torch.no_grad():
    for p in network.parameters():
        p.mul_(2.5)  # steeper than a network before training
energy = JointEnergy(network, box)
exact = float(quadrature(energy, box))

# %%
# Each estimate comes with a standard error and a verdict.
budgets = (10, 20, 50, 100, 200)
estimates = [ais(energy, box, temperatures=t, num_chains=400, seed=t) for t in budgets]
print(f"quadrature: {exact:.4f}")
for t, estimate in zip(budgets, estimates, strict=True):
    verdict = "reliable" if estimate.reliable else estimate.why
    print(f"{t:4d} temperatures: {estimate.log_z:.4f} +- {estimate.std_err:.4f}, {verdict}")

# %%
# The error falls as annealing is made longer, and the 95 % intervals contain the exact value.
figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
low, high = zip(*(estimate.interval() for estimate in estimates), strict=True)
middle = [estimate.log_z for estimate in estimates]
error = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
ax.errorbar(budgets, middle, error, marker="o", ls="", capsize=4, label="ais, 95 % interval")
ax.axhline(exact, color="grey", ls="--", label="quadrature")
ax.set(xlabel="temperatures", ylabel="log Z, nats", xscale="log")
ax.legend()
plt.show()

# %%
# A joint energy also has a log Z for each class, and so a prior p(y) = Z_y / Z of its own.
print("p(y) of the model:", [f"{p:.3f}" for p in estimates[-1].prior.tolist()])
