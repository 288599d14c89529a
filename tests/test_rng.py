import torch

from ebm_lightning.rng import make_generator, seed_and_device


def test_equal_streams_give_equal_numbers_and_others_do_not():
    streams = [(0,), (1,), (0, 0), (0, "0"), (0, 0, "chains"), (0, 1, "chains"), (0, 0, "ood")]
    draws = {tuple(torch.rand(3, generator=make_generator(*s)).tolist()) for s in streams + streams}
    assert len(draws) == len(streams)


def test_the_global_random_state_does_not_change():
    before = torch.get_rng_state()
    make_generator(0, "anything")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_is_drawn_from_the_generator_or_the_global_state():
    seeds = [seed_and_device(make_generator(0)) for _ in range(2)]
    assert seeds[0] == seeds[1] == (seeds[0][0], torch.device("cpu"))
    generator = make_generator(0)
    assert seed_and_device(generator) != seed_and_device(generator)
    torch.manual_seed(0)
    first, _ = seed_and_device(None)
    torch.manual_seed(0)
    assert seed_and_device(None)[0] == first != seed_and_device(None)[0]
