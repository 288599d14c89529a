"""
A joint energy model of digits, in few steps
============================================

A shortened version of ``recipes/digits.py``: one network classifies handwritten digits and is a density of them. Chains
move at temperature 1, in coordinates fitted to the data.
"""

import lightning as L
import matplotlib.pyplot as plt
import torch

import ebm_lightning as ebm
from ebm_lightning.data import Digits
from ebm_lightning.networks import ThresholdConvNet

L.seed_everything(0, verbose=False)
shape, data = (1, 8, 8), Digits(augment="affine", separate_batch_size=64)
model = ebm.JEM(
    ThresholdConvNet(shape, 10, width=32, hidden=64),
    num_classes=10,
    support=ebm.Euclidean(shape, reference=ebm.ClassGaussians(ridge=0.05, shrinkage=0.1)),
    coordinates=ebm.Compose([ebm.Quantiles(data.support, num_levels=17, smoothing=8.0), ebm.NormalScores(shape)]),
    sampler=ebm.ReferenceJumps(ebm.MALA(step_size=0.4, steps=5)),
    adaptation=ebm.Adaptation(target=0.6),
    chains=ebm.ReplayBuffer(128, reinit_prob=0.0),
    conditional_weight=10.0,
    energy_l2=0.0,
)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = L.Trainer(max_epochs=25, **quiet)
trainer.fit(model, data)
print(f"accuracy on test images: {trainer.test(model, data, verbose=False)[0]['test/accuracy']:.3f}")

# %%
# log Z by annealing gives log p(x), and so bits per dimension.
estimate = ebm.ais(model.energy, model.support, temperatures=100, num_chains=200, seed=0)
x, y = data.test.tensors
with torch.no_grad():
    nats = -estimate.log_prob(model.energy, x).mean()
bits = (nats - 64 * torch.tensor(2 / 17).log()) / (64 * torch.tensor(2.0).log())
print(f"log Z {estimate.log_z:.2f} +- {estimate.std_err:.2f}, {bits:.2f} bits per dimension")

# %%
# Samples of p(x|y): a column for each class.
samples = model.sample(50, y=torch.arange(50) % 10, steps=100)
figure, axes = plt.subplots(5, 10, figsize=(7, 3.6), layout="constrained")
for ax, image in zip(axes.flat, samples, strict=True):
    ax.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
    ax.axis("off")
plt.show()
