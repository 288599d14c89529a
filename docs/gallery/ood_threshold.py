"""
Is this input like my data? A threshold for the score
=====================================================

-E(x) is log p(x) up to a constant: larger for inputs that the model finds likelier. A threshold that keeps 95 % of
validation data turns it into a decision, with a known rate of false alarms on data of the same kind.
"""

import lightning as L
import matplotlib.pyplot as plt
import torch

from ebm_lightning import JEM, SGLD, ReplayBuffer
from ebm_lightning.data import Digits
from ebm_lightning.evaluation import OOD_SETS
from ebm_lightning.networks import ConvNet

L.seed_everything(0, verbose=False)
data = Digits()
model = JEM(ConvNet((1, 8, 8), 10), 10, data.support, SGLD.jem(10), ReplayBuffer(1000), data_noise=0.03)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
L.Trainer(max_epochs=25, **quiet).fit(model, data)

# %%
# The threshold comes from validation images, never from images of the other kind.
threshold = model.threshold(data.val_dataloader(), keep=0.95)
x = data.test.tensors[0]
print(f"false alarms on test digits: {model.is_ood(x).float().mean():.3f}, by construction about 0.05")

# %%
# What it detects depends on the input: noise is easy, a mirrored digit is a likely image.
others = {name: OOD_SETS[name](x, data.support, torch.Generator().manual_seed(0)) for name in OOD_SETS}
figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.hist(model.score(x), 40, density=True, color="black", histtype="step", lw=2, label="test digits")
for name, images in others.items():
    detected = model.is_ood(images).float().mean()
    ax.hist(model.score(images), 40, density=True, alpha=0.4, label=f"{name}: {detected:.0%} detected")
ax.axvline(threshold, color="black", ls="--")
ax.set(xlabel="-E(x), nats", ylabel="density")
ax.legend(fontsize=8)
plt.show()
