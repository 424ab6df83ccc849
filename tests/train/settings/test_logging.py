"""Settings of a run's log that are refused."""

import pytest

from jaxllm.train.settings.logging import LoggingConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "logging.every=0 is less than 1"),
        ({"tensorboard": "yes"}, "logging.tensorboard='yes' is not"),
        ({"wandb": 3}, "logging.wandb=3 is not"),
    ],
)
def test_invalid_settings_are_reported(changes, message):
    with pytest.raises(ValueError, match=message):
        LoggingConfig(**changes)
