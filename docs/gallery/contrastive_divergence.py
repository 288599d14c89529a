"""
The bias of contrastive divergence
==================================

CD-k starts chains at the data and runs k sweeps. If the model has a mode far from the data, short chains do not reach
it, and the gradient lacks it. In a small RBM the powers of the transition matrix of a sweep give the expected gradient
of CD-k without sampling, and so its bias.
"""

import matplotlib.pyplot as plt
import torch

from ebm_lightning import ClassificationRBM
from ebm_lightning.partition import sweep_matrix
from ebm_lightning.partition.enumeration import binary_states

torch.manual_seed(0)
model = ClassificationRBM(num_visible=5, num_hidden=4, num_classes=2)
with torch.no_grad():
    for p in model.rbm.parameters():
        p.normal_(std=0.5)
    model.rbm.weight += 1.5  # units agree: a mode with all on, and one with all off
    model.rbm.visible_bias -= 3.0
    model.rbm.hidden_bias -= 3.75
x, y = torch.tensor([[1.0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]), torch.tensor([0, 1])  # data near the first mode


def gradient(p):
    """Gradient of -log p(x, y) if negatives have probabilities ``p`` over (state, label), flattened."""
    negative = (p.sum(1).float() * model.energy(states)).sum()
    loss = model.energy(x, y).mean() - negative
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.rbm.parameters()))])


# %%
# The exact gradient uses the model's own distribution, and CD-k that of chains after k sweeps.
states, sweep = torch.cat(list(binary_states(5))).float(), sweep_matrix(model.rbm)
with torch.no_grad():
    posterior = model(states).double().softmax(1)
    exact = torch.softmax(-model.energy(states).double(), 0)[:, None] * posterior
exact = gradient(exact)
at_data = (states[:, None] == x).all(2).double().mean(1)
uniform = torch.full((32,), 1 / 32, dtype=torch.float64)

figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, start in {"CD-k, from the data": at_data, "short runs, from uniform noise": uniform}.items():
    p, bias = (start[:, None] * posterior).flatten(), []
    for _ in range(300):
        p = p @ sweep
        bias.append(float((gradient(p.view(32, 2)) - exact).norm()))
    ax.loglog(range(1, 301), bias, label=name)
    print(f"{name}: bias {bias[0]:.3f} after 1 sweep, {bias[9]:.3f} after 10, {bias[99]:.4f} after 100")
ax.axhline(float(exact.norm()), color="grey", ls="--", label="norm of the exact gradient")
ax.set(xlabel="k, sweeps", ylabel="norm of the bias")
ax.legend()
plt.show()
