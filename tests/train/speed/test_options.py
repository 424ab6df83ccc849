"""Options of speed: steps to profile, and the peak of a device."""

import pytest

from jaxllm.train.speed.options import SpeedConfig


def test_steps_to_profile_include_both_ends():
    assert list(SpeedConfig(profile="10:12").profiled) == [10, 11, 12]
    assert list(SpeedConfig().profiled) == []


@pytest.mark.parametrize("text", ["10", "12:10", "0:3", "a:b", "1:2:3", "-1:2"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"is not FIRST:LAST, such as 10:15"):
        SpeedConfig(profile=text)


@pytest.mark.parametrize("peak", [0.0, -1.0, float("inf")])
def test_a_peak_is_positive(peak):
    with pytest.raises(ValueError, match=r"speed\.peak_tflops"):
        SpeedConfig(peak_tflops=peak)
