import pytest
import torch

from ebm_lightning import SGLD, SampleQuality
from ebm_lightning.evaluation.features import Penultimate
from ebm_lightning.networks import ConvNet
from tests.callbacks.helpers import FirstPixels, Grey, image_jem
from tests.helpers import batches, trainer


@pytest.fixture
def loader():
    return batches(n=48, batch_size=20, shape=(1, 8, 8))


def test_fid_of_two_gaussians_matches_the_closed_form(seed):
    """|mu - mu'|^2 + sum (s - s')^2 for diagonal covariances, and a floor near 0."""
    n = 40_000
    real = torch.randn(2 * n, 2).double() * torch.tensor([1.0, 2.0])
    fresh = torch.randn(n, 2).double() * torch.tensor([3.0, 2.0]) + torch.tensor([0.0, 1.5])
    found = SampleQuality(FirstPixels(), label="pixels", samples=n).metrics(real, fresh)
    assert found["fid_pixels"] == pytest.approx(1.5**2 + 2**2, rel=0.05)
    assert found["fid_pixels_floor"] < 1e-3
    assert found["kid_pixels"] > 100 * abs(found["kid_pixels_floor"])
    assert (found["generated"], found["reference"], found["held_out"]) == (n, n, n)


def test_metrics_of_initial_points_do_not_change_the_others(seed):
    real, fresh, sure = torch.randn(400, 2).double(), torch.randn(200, 2).double(), 50 * torch.eye(4).repeat(50, 1)
    logits = {"logits_real": torch.randn(400, 4).double(), "logits_fresh": torch.randn(200, 4).double()}
    callback = SampleQuality(FirstPixels(), label="pixels", samples=200)
    without = callback.metrics(real, fresh, **logits)
    found = callback.metrics(real, fresh, **logits, start=fresh + 3, logits_start=sure.double())
    assert found["fid_pixels_start"] == pytest.approx(2 * 3**2, rel=0.2)
    assert found["is_pixels_start"] == pytest.approx(4, rel=0.05)
    assert {k: v for k, v in found.items() if not k.endswith("_start")} == without


def test_inception_score_is_between_one_and_the_number_of_classes(seed):
    sure = 50 * torch.eye(4).repeat(100, 1).double()
    found = SampleQuality(FirstPixels(), samples=100).metrics(
        torch.randn(800, 2).double(),
        torch.randn(400, 2).double(),
        logits_real=torch.zeros(800, 4).double(),
        logits_fresh=sure,
    )
    assert found["is_classifier"] == pytest.approx(4, rel=0.05)
    assert found["is_classifier_data"] == pytest.approx(1)


def test_logged_names_and_reproducibility(tmp_path, loader):
    net, found = ConvNet((1, 8, 8), 3, 4), []
    for _ in range(2):
        callback = SampleQuality(Penultimate(net), net, "net", steps=3, samples=25, batch_size=10)
        found += trainer(tmp_path, callbacks=[callback]).test(image_jem(), loader, verbose=False)
    names = {"fid_net", "fid_net_floor", "kid_net", "kid_net_std_err", "kid_net_floor", "is_net", "is_net_data"}
    names |= {"fid_net_start", "kid_net_start", "is_net_start"}
    assert {f"samples/{name}" for name in names} <= set(found[0])
    assert not any(name in ("samples/fid", "samples/kid", "samples/is") for name in found[0])
    assert found[0] == found[1]
    assert found[0]["samples/generated"] == 25
    assert net.training


def test_chains_start_at_the_given_distribution(tmp_path, loader):
    """Three batches of chains, and as many separate initial points."""
    starts, initial, net = [], Grey(), ConvNet((1, 8, 8), 3, 4)

    class Spy(SGLD):
        def run(self, energy, x, **arguments):
            starts.append(x)
            return super().run(energy, x, **arguments)

    callback = SampleQuality(Penultimate(net), sampler=Spy(0.1, 0.01, 2), samples=20, initial=initial, batch_size=8)
    trainer(tmp_path, callbacks=[callback]).test(image_jem(), loader, verbose=False)
    assert [len(x) for x in starts] == [8, 8, 4]
    assert all((x == 0.25).all() for x in starts)
    assert initial.labels == [None] * 6


def test_bad_arguments():
    with pytest.raises(ValueError, match="'samples' should be at least 20, got 3"):
        SampleQuality(FirstPixels(), samples=3)
    with pytest.raises(ValueError, match="'limit' should leave at least 40 test images for SampleQuality, got 39"):
        SampleQuality(FirstPixels()).metrics(torch.zeros(39, 2), torch.zeros(20, 2))
