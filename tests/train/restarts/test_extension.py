"""Messages about the learning rate of an extended run."""

import optax

from jaxllm.train.restarts.extension import describe_extension


def test_an_extension_is_described_by_its_rates():
    before, after = (optax.linear_schedule(1.0, 0.0, steps) for steps in (10, 20))
    said = describe_extension(before, after, 10, 20)
    assert said.startswith("extended from 10 to 20 steps")
    assert said.endswith("it ended at 0.1, is 0.5 in the next step and 0.05 in the last")
