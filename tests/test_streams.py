import torch

from ebm_lightning.streams import make_generator


def test_equal_arguments_give_equal_numbers_and_others_do_not():
    streams = [(0,), (1,), (0, 0), (0, "0"), (0, 0, "chains"), (0, 1, "chains"), (0, 0, "ood")]
    draws = {tuple(torch.rand(3, generator=make_generator(*s)).tolist()) for s in streams + streams}
    assert len(draws) == len(streams)


def test_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    make_generator(0, "anything")
    assert torch.equal(torch.get_rng_state(), before)
