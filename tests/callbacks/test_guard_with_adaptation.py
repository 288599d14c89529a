"""A DivergenceGuard keeps its step size apart from the adapted one.

Mutant that this test kills: a backoff that is applied to the adapted step, which a second resume would apply again.
"""

import torch

from ebm_lightning import JEM, MALA, Adaptation, Box, DivergenceGuard, ReplayBuffer
from ebm_lightning.networks import MLP
from tests.helpers import batches, trainer


def test_resuming_twice_does_not_shrink_the_step(tmp_path):
    module = JEM(MLP(2, 3), 3, Box(-1, 1, (2,)), MALA(0.2, 2), ReplayBuffer(40), adaptation=Adaptation(rate=0.5))
    path = None
    for steps in (4, 8, 12):
        runner = trainer(tmp_path, max_steps=steps, callbacks=[DivergenceGuard()])
        runner.fit(module, batches(shape=(2,)), ckpt_path=path)
        path = tmp_path / f"{steps}.ckpt"
        runner.save_checkpoint(path)
        scale, step_size = float(module.adapted_sampler.step_scale), module.sampler.step_size
        module = JEM(MLP(2, 3), 3, Box(-1, 1, (2,)), MALA(0.2, 2), ReplayBuffer(40), adaptation=Adaptation(rate=0.5))
        module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        assert module.sampler.step_size == step_size == 0.2 * scale
