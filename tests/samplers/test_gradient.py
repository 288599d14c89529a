import torch

from ebm_lightning.energies import JointEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.samplers import value_and_gradient
from ebm_lightning.supports import Box


def test_gradients_below_the_range_of_float16_do_not_underflow(seed):
    """Kills: no scaling (gradients of 1e-8 are 0), no unscaling, a scale that overflows and is not reduced."""
    box = Box(-1, 1, (4,))
    x = box.sample(64)
    for size in (1e-7, 1.0, 1e3):
        net = MLP(4, 3, (8,))
        net.layers[-1].weight.data *= size  # the head runs in float32, the layers before it in float16
        energy = JointEnergy(net, box)
        exact = value_and_gradient(energy, x)[1]
        with torch.autocast("cpu", dtype=torch.float16):
            half = value_and_gradient(energy, x)[1]
        assert half.dtype == torch.float32
        assert (half - exact).norm() < 0.02 * exact.norm(), size
