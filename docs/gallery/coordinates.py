"""
Coordinates: pixels before and after
====================================

Some pixels of an image are almost always black, others take every gray level, so no step size of a chain suits all of
them. :class:`ebm_lightning.Quantiles` and :class:`ebm_lightning.NormalScores` map each pixel to a normal variable.
The map is fitted to the training data and inverted exactly.
"""

import matplotlib.pyplot as plt
import torch

from ebm_lightning import Compose, NormalScores, Quantiles
from ebm_lightning.data import Digits

data = Digits()
data.setup()
x = torch.stack([data.train[i][0] for i in range(len(data.train))])
coordinates = Compose([Quantiles(data.support, num_levels=17), NormalScores((1, 8, 8))]).fit(x)
u = coordinates(x)
print(f"largest error of x -> u -> x: {(coordinates.inv(u) - x).abs().max():.1e}")

# %%
# Three pixels: at the edge of the digit, nearly always black; in between; and in the middle.
pixels = {"edge": (0, 1), "between": (1, 2), "middle": (3, 4)}
figure, axes = plt.subplots(2, 3, figsize=(9, 4.4), layout="constrained")
for column, (name, (i, j)) in enumerate(pixels.items()):
    for ax, values, label in zip(axes[:, column], (x, u), ("x", "u = T(x)"), strict=True):
        ax.hist(values[:, 0, i, j], 40, density=True)
        ax.set(title=f"{name}: std {values[:, 0, i, j].std():.2f}", xlabel=label)
plt.show()

# %%
# The reference density in x is a product of histograms. Its draws have the right gray levels and no shape: the energy
# of a model in these coordinates learns the rest.
noise = coordinates.inv(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
uniform = data.support.sample(8, generator=torch.Generator().manual_seed(0))
rows = {"digits": x[:8], "reference in coordinates": noise, "uniform reference": uniform}
figure, axes = plt.subplots(3, 8, figsize=(8, 3.4), layout="constrained")
for row, (title, images) in zip(axes, rows.items(), strict=True):
    for ax, image in zip(row, images, strict=True):
        ax.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
        ax.axis("off")
    row[0].set_title(title, loc="left", fontsize=9)
plt.show()
