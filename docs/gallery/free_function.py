"""
What a classifier does not know: the function h(x)
==================================================

Adding any function h(x) to every logit leaves the softmax unchanged, so cross-entropy does not determine it. But it
changes E(x) by -h(x), and so the density that the same logits define. This is why a JEM has a generative term, and why
a support states a reference density.
"""

import matplotlib.pyplot as plt
import torch

from ebm_lightning import Box, JointEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.partition import quadrature
from ebm_lightning.partition.exact import grid

torch.manual_seed(1)
box, network = Box(-3, 3, (2,)), MLP(2, 3, (32,))
x, y = box.sample(500), torch.randint(3, (500,))


class Plus(torch.nn.Module):
    """The logits of a network plus h(x)."""

    def __init__(self, network, h):
        super().__init__()
        self.network, self.h = network, h

    def forward(self, x):
        return self.network(x) + self.h(x)[:, None]


functions = {
    "h = 0": lambda x: 0 * x[:, 0],
    "h = -|x|²/2": lambda x: -x.square().sum(1) / 2,
    "h = 3 sin(2 x₁)": lambda x: 3 * torch.sin(2 * x[:, 0]),
}

# %%
# Predictions and the gradient of the cross-entropy are the same for every h; the densities are not.
points = grid(box, 150)
figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
for ax, (name, h) in zip(axes, functions.items(), strict=True):
    network.zero_grad()
    logits = Plus(network, h)(x)
    loss = torch.nn.functional.cross_entropy(logits, y)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    energy = JointEnergy(Plus(network, h), box)
    log_z = float(quadrature(energy, box))
    print(f"{name:16} cross-entropy {loss:.5f}, norm of its gradient {gradient:.5f}, log Z {log_z:.2f}")
    with torch.no_grad():
        p = (-energy(points) - log_z).exp()
    ax.imshow(p.view(150, 150).T, origin="lower", extent=(-3, 3, -3, 3), cmap="magma")
    ax.set_title(f"p(x) with {name}")
plt.show()
