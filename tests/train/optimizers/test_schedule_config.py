"""Settings of schedules that are refused."""

import pytest

from jaxllm.train.optimizers.schedule_config import MultiStepConfig, ScheduleConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cycles": 0}, "optimizer.cycles=0: at least 1"),
        ({"cycles": 2, "decay": "wsd"}, "optimizer.cycles=2: .*more only for decay=cosine, linear"),
        ({"decay": "linear", "decay_steps": 3}, "optimizer.decay_steps=3: only for decay='wsd'"),
        ({"final_div_factor": 0.5}, "optimizer.final_div_factor=0.5 is less than 1"),
        (
            {"final_div_factor": 10.0, "final_learning_rate": 1e-5},
            "either optimizer.final_learning_rate or optimizer.final_div_factor",
        ),
    ],
)
def test_invalid_settings_are_reported(settings, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**settings)


def test_the_drops_are_checked():
    with pytest.raises(ValueError, match=r"optimizer\.multi_step\.milestones"):
        MultiStepConfig(milestones="0.8")
