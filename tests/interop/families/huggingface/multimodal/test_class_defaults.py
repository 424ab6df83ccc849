"""Sizes that a text config omits are those of transformers' config class."""

import pytest
from transformers import CONFIG_MAPPING

from jaxllm.interop.families.huggingface.multimodal.class_defaults import CLASS_DEFAULTS


@pytest.mark.parametrize("model_type", CLASS_DEFAULTS)
def test_they_are_those_of_transformers(model_type):
    config = CONFIG_MAPPING[model_type]()
    given = dict(CLASS_DEFAULTS[model_type])
    assert given.pop("rope_theta", None) in (None, config.rope_parameters.get("rope_theta"))
    assert given == {name: getattr(config, name) for name in given}
