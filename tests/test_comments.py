"""The site's griffe extension: comments beside and above fields and constants become text."""

import importlib.util
import sys

import griffe
import pytest
from pages import ROOT

SOURCE = '''
import dataclasses
from typing import ClassVar, Literal, NamedTuple

from flax import nnx

LIMIT = 3  # of tokens  # in all
# How to sum:
# "one" by one.
Kind = Literal["one", "all"]

# A heading, apart.

BARE = 0
_HIDDEN = 1  # private


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A config.

    Kinds:
        one: the first.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    x_BTD: int  # of shape BTD, in tokens * 2**3 and 2**4
    # Above, on two
    # lines. None: `2 * x_BTD`.
    scale: float | None = None
    name: str = "#"
    sizes: tuple[
        int, ...
    ] = ()  # noqa: E501
    found: dict = dataclasses.field(default_factory=dict)  # by name

    @property
    def longest(self) -> int:  # not a field
        """The longest."""
        return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Special(Config):
    """A special config."""

    extra: int = 1  # of its own


class Pair(NamedTuple):
    """Two numbers."""

    one: int  # the first, in MiB
    other: int = 2


@dataclasses.dataclass
class Written:
    """Has its own list.

    Attributes:
        a: as written.
    """

    a: int  # not this


class Module(nnx.Module):
    """No class of fields."""

    a: int  # no field
'''


@pytest.fixture(scope="module")
def package():
    spec = importlib.util.spec_from_file_location("comments", ROOT / "docs" / "comments.py")
    comments = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(comments)
    extensions = griffe.load_extensions(comments.Comments())
    with griffe.temporary_visited_package(
        "package", {"__init__.py": SOURCE}, extensions=extensions, docstring_parser="google"
    ) as package:
        yield package
    sys.modules.pop("package", None)


def fields(cls: griffe.Class) -> dict[str, str]:
    """The descriptions in the section `Attributes` of a class, by name."""
    sections = [part for part in cls.docstring.parsed if part.kind.value == "attributes"]
    return {item.name: item.description for part in sections for item in part.value}


def test_fields_are_listed_with_their_comments_and_defaults(package):
    assert fields(package["Config"]) == {
        "x_BTD": r"of shape BTD, in tokens \* 2\*\*3 and 2\*\*4. Required.",
        "scale": "Above, on two lines. None: `2 * x_BTD`. Default: `None`.",
        "name": "Default: `'#'`.",
        "sizes": "Default: `()`.",
        "found": "by name. Default: `dict()`.",
    }
    assert package["Config"].docstring.value.startswith("A config.\n\nKinds:\n    one: the first.")


def test_class_variables_are_no_parameters(package):
    parameters = [parameter.name for parameter in package["Config"].parameters]
    assert parameters == ["self", *fields(package["Config"])]


def test_inherited_fields_are_listed_by_the_base_alone(package):
    assert fields(package["Special"]) == {"extra": "of its own. Default: `1`."}


def test_named_tuples_have_fields_too(package):
    assert fields(package["Pair"]) == {
        "one": "the first, in MiB. Required.",
        "other": "Default: `2`.",
    }


def test_written_lists_and_other_classes_stay_as_they_are(package):
    assert fields(package["Written"]) == {"a": "as written."}
    assert package["Module"].docstring.value == "No class of fields."


def test_constants_get_their_comments_as_docstrings(package):
    found = {
        name: attr.docstring and attr.docstring.value for name, attr in package.attributes.items()
    }
    assert found == {
        "LIMIT": "of tokens  # in all",
        "Kind": 'How to sum: "one" by one.',
        "BARE": None,
        "_HIDDEN": "private",
    }
