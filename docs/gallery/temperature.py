"""
Temperature: a density or the bottom of a valley
================================================

Langevin dynamics with step size :math:`\\epsilon` and noise :math:`s` follows :math:`e^{-E/T}` with
:math:`T = s^2 / 2 \\epsilon`. JEM's settings mean T = 5e-5: chains go to the bottom of the energy and stay there. At
T = 1 they are draws of the density. The picture shows 2000 chains of each kind on the same energy.
"""

import matplotlib.pyplot as plt
import torch

from ebm_lightning import SGLD, Box
from ebm_lightning.partition.exact import grid

box = Box(-3, 3, (2,))


def energy(x):
    """A ring of radius 1.5 with more mass on the right, shape (N,)."""
    return 4 * (x.norm(dim=1) - 1.5).square() - 0.7 * x[:, 0]


# %%
# The sampler says which temperature its numbers imply.
cold = SGLD(step_size=0.02, noise_std=1.4e-3, steps=500)
warm = SGLD.langevin(0.02, steps=500)
print(f"implied temperatures: {cold.implied_temperature:.1e} and {warm.implied_temperature:g}")

# %%
# All chains start from uniform noise.
start = box.sample(2000, generator=torch.Generator().manual_seed(0))
chains = {
    f"T = {sampler.implied_temperature:.0e}": sampler(energy, start, support=box, generator=torch.Generator())
    for sampler in (cold, warm)
}

density = (-energy(grid(box, 200))).exp().view(200, 200).T
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
axes[0].imshow(density, origin="lower", extent=(-3, 3, -3, 3), cmap="magma")
axes[0].set(title="exp(-E)", xlabel="$x_1$", ylabel="$x_2$")
for ax, (title, x) in zip(axes[1:], chains.items(), strict=True):
    ax.plot(*x.T, ".", markersize=2, alpha=0.4)
    ax.set(title=f"chains at {title}", xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xlabel="$x_1$")
plt.show()

# %%
# The energies say the same. Cold chains end where the energy is lowest *along their path*: most find the ring, and
# creep along it. The mean energy of a density is larger than its minimum.
for title, x in chains.items():
    print(f"{title}: mean energy {energy(x).mean():.2f}, lowest {energy(x).min():.2f}")
