"""Settings of exports that are refused, and what is written by default."""

import pytest

from jaxllm.train.settings.export import ExportConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "export.every=0 is less than 1"),
        ({"keep": 0}, "export.keep=0 is less than 1"),
        ({"to": "gguf"}, "export.to='gguf' is not one of hf, peft"),
    ],
)
def test_invalid_settings_are_reported(changes, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(**changes)


@pytest.mark.parametrize(
    ("settings", "is_lora", "message"),
    [
        ({"to": "peft"}, False, "optimizer.lora is not set"),
        ({"dtype": "bfloat16"}, True, "set export.to='hf'"),
    ],
)
def test_settings_that_do_not_fit_the_run_are_refused(settings, is_lora, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(**settings).check(is_lora)


def test_the_format_follows_what_is_trained():
    assert (ExportConfig().format(True), ExportConfig().format(False)) == ("peft", "hf")
    assert ExportConfig(to="hf").format(True) == "hf"
