"""Fields of a model are JSON, nested objects included."""

import dataclasses

from jaxllm.interop.reference.fields import as_fields


@dataclasses.dataclass
class Inner:
    x: int = 1


@dataclasses.dataclass
class Outer:
    inner: Inner
    sizes: tuple[int, ...] = (1, 2)


def test_fields_hold_the_config_and_the_arguments():
    found = as_fields("kind", Outer(Inner(3)), width=4, part=Inner())
    assert found == {
        "model_type": "kind",
        "inner": {"x": 3},
        "sizes": [1, 2],
        "width": 4,
        "part": {"x": 1},
    }


def test_arguments_override_the_config():
    assert as_fields("kind", Inner(1), x=2) == {"model_type": "kind", "x": 2}
