"""
A density in the plane, and its chains
======================================

A small network learns three rings. In two dimensions everything can be checked: the learned density with the true one,
and log Z with quadrature.
"""

import functools

import lightning as L
import matplotlib.pyplot as plt
import torch

from ebm_lightning import JEM, MALA, ReferenceJumps, ReplayBuffer
from ebm_lightning.data import Rings
from ebm_lightning.networks import MLP
from ebm_lightning.partition import quadrature
from ebm_lightning.partition.exact import grid

L.seed_everything(0, verbose=False)
data, epochs = Rings(), 15
model = JEM(
    MLP(2, 3, (96, 96, 96)),
    num_classes=3,
    support=data.support,  # the box [-4, 4]^2
    sampler=ReferenceJumps(MALA(0.01, steps=5), cycles=2),  # exact jumps between the rings, and local steps
    chains=ReplayBuffer(2048, reinit_prob=0.0),
    energy_l2=0.0,  # a penalty would flatten the density
    optimizer=functools.partial(torch.optim.Adam, lr=5e-3),
    lr_scheduler=functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=5e-3, total_steps=32 * epochs),
)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = L.Trainer(max_epochs=epochs, gradient_clip_val=1.0, **quiet)
trainer.fit(model, data)
accuracy = trainer.test(model, data, verbose=False)[0]["test/accuracy"]

# %%
# log Z by quadrature turns energies into log-likelihoods.
x = data.test.tensors[0]
with torch.no_grad():
    log_z = float(quadrature(model.energy, data.support))
    log_p = -model.energy(x) - log_z
print(f"accuracy {accuracy:.3f}, log Z {log_z:.2f}")
print(f"mean log p(x) of test points: model {log_p.mean():.2f}, truth {data.log_prob(x).mean():.2f} nats")

# %%
# New chains start from uniform noise and follow p(x), or p(x|y) if labels are given.
rings = model.sample(1500, y=torch.arange(1500) % 3, steps=500)
points = grid(data.support, 160)
with torch.no_grad():
    densities = {"truth": data.log_prob(points).exp(), "model": (-model.energy(points) - log_z).exp()}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for ax, (title, p) in zip(axes, densities.items(), strict=False):
    ax.imshow(p.view(160, 160).T, origin="lower", extent=(-4, 4, -4, 4), vmin=0, vmax=0.25, cmap="magma")
    ax.set_title(title)
axes[2].scatter(*rings.T, c=torch.arange(1500) % 3, s=2, cmap="viridis")
axes[2].set(title="samples of p(x|y)", xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
plt.show()
