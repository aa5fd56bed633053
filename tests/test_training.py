"""The demo model's training, where torch is: `make train-smoke` installs it, `make setup` does not."""

import numpy as np
import pytest

from quant.format.numbers import decode_mxfp4, encode_mxfp4

torch = pytest.importorskip("torch")

from tools.demo_training.rounding import round_mxfp4  # noqa: E402
from tools.demo_training.train import Settings, Training, _rate  # noqa: E402

SMALL = Settings(steps=4, dialogues=4, layers=2, sampled=50)


@pytest.mark.parametrize("size", [1e-3, 0.05, 30.0])
def test_rounding_is_the_quantizers(size):
    weights = torch.randn(3, 64, 40, generator=torch.manual_seed(0)) * size
    weights[0, :32, 0] = 0
    rounded = round_mxfp4(weights)
    for expert, ours in zip(weights.bfloat16().float().numpy(), rounded.numpy(), strict=True):
        decoded = decode_mxfp4(*encode_mxfp4(np.ascontiguousarray(expert.T)))
        np.testing.assert_array_equal(ours.T, decoded)


def test_rounding_passes_gradients_on():
    weights = torch.randn(1, 32, 4, requires_grad=True)
    (round_mxfp4(weights) * 3).sum().backward()
    assert (weights.grad == 3).all()


def test_a_stopped_training_goes_on_as_if_it_had_not(tmp_path):
    def train(folder, stops):
        training = Training(SMALL, tmp_path / folder, lambda line: None, threads=2)
        for _ in range(stops):
            training._learn()
            training.step += 1
        training._save()
        return training

    whole = train("whole", 4)
    train("parts", 2)
    parts = train("parts", 2)
    assert parts.step == whole.step == 4
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, parts.model.state_dict()[name]), name


def test_another_setting_does_not_go_on_with_a_state(tmp_path):
    Training(SMALL, tmp_path, lambda line: None)._save()
    with pytest.raises(SystemExit, match="other settings"):
        Training(Settings(steps=5, dialogues=4, layers=2, sampled=50), tmp_path, lambda line: None)


def test_rates_follow_the_course():
    settings = Settings()
    rates = [_rate(step, settings) for step in range(settings.steps)]
    assert rates[19] == rates[584] == 1
    assert rates[-1] == 0
    assert all(0 <= rate <= 1 for rate in rates)
