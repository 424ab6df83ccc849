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
    ("settings", "run", "message"),
    [
        ({"to": "peft"}, {}, "optimizer.lora is not set"),
        ({"dtype": "bfloat16"}, {"is_lora": True}, "set export.to='hf'"),
        ({"every": 2}, {"is_remote": True}, "export.every=2 needs a local output"),
    ],
)
def test_settings_that_do_not_fit_the_run_are_refused(settings, run, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(**settings).check(**{"is_lora": False, "is_remote": False, **run})


def test_the_format_follows_what_is_trained():
    assert (ExportConfig().format(True), ExportConfig().format(False)) == ("peft", "hf")
    assert ExportConfig(to="hf").format(True) == "hf"
