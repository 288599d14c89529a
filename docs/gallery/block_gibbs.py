"""
An RBM by block Gibbs sampling, next to exact values
====================================================

The classification RBM is a joint energy model whose hidden units are summed out in closed form. Chains draw the
hidden units given pixels and label, then pixels and label given the hidden units, without a step size. With six pixels
all 64 states can be summed.
"""

import matplotlib.pyplot as plt
import torch

from ebm_lightning import BlockGibbs, ClassificationRBM, exact_log_z
from ebm_lightning.partition.enumeration import binary_states

torch.manual_seed(0)
model = ClassificationRBM(num_visible=6, num_hidden=4, num_classes=3)
for p in model.rbm.parameters():
    torch.nn.init.normal_(p, std=1.0)

# %%
# log Z and the class prior, by summing over all states.
log_z = exact_log_z(model.energy, model.support)
print(f"log Z {log_z.log_z:.4f}; p(y) = {[f'{p:.3f}' for p in log_z.prior.tolist()]}")

# %%
# Histograms of 20 000 chains after 1, 5 and 50 sweeps, started from uniform noise.
states = torch.cat(list(binary_states(6))).float()
with torch.no_grad():
    exact = (-model.energy(states).double() - log_z.log_z).exp()
order, powers = exact.argsort(descending=True), 2 ** torch.arange(6)
codes = (states.long() * powers).sum(1)
start = model.support.sample(20_000, generator=torch.Generator().manual_seed(1))
figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
for ax, sweeps in zip(axes, (1, 5, 50), strict=True):
    x = BlockGibbs(sweeps)(model.energy, start, support=model.support, generator=torch.Generator().manual_seed(2))
    counts = torch.bincount((x.long() * powers).sum(1), minlength=64)
    frequency = counts[codes].double() / len(x)
    distance = 0.5 * (frequency - exact).abs().sum()
    ax.bar(range(64), frequency[order], width=1.0, label="chains")
    ax.plot(range(64), exact[order], "k.", markersize=3, label="exact")
    ax.set(title=f"{sweeps} sweeps: total variation {distance:.3f}", xlabel="state, by probability")
axes[0].legend()
plt.show()
