"""Pickles are read as Python's unpickler reads them, but always in linear time."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.interop.formats.pytorch.pickle_reader import PickleError, Record, StateDict, read

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(-9, 9), inner, max_size=4)
    ),
    max_leaves=12,
)


class Thing(Record):
    """A record that keeps its state."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


KNOWN = {("somewhere", "Thing"): Thing, ("collections", "OrderedDict"): StateDict, ("a", "b"): "b"}


def load(data: bytes) -> object:
    return read(data, lambda module, name: KNOWN[module, name], lambda number: ("stored", number))


@pytest.mark.parametrize("protocol", range(6))
@settings(max_examples=30, deadline=None)
@given(value=VALUES)
def test_plain_values_are_read_as_python_reads_them(protocol, value):
    assert repr(load(pickle.dumps(value, protocol))) == repr(value)


@pytest.mark.parametrize("protocol", [2, 4])
def test_shared_and_recursive_values_keep_their_identity(protocol):
    shared = [1]
    value = {"a": shared, "b": shared}
    value["self"] = value
    found = load(pickle.dumps(value, protocol))
    assert found["a"] is found["b"]
    assert found["self"] is found


def test_bytes_and_sets_are_read():
    for value in (b"raw", bytearray(b"raw"), {1, "a"}, frozenset({2}), set()):
        assert load(pickle.dumps(value, 5)) == value


def test_calls_become_records():
    thing = load(b"\x80\x02csomewhere\nThing\nK\x01K\x02\x86R}X\x01\x00\x00\x00xK\x03sb.")
    assert type(thing) is Thing
    assert thing.arguments == (1, 2)
    assert thing.state == {"x": 3}
    assert load(b"\x80\x02csomewhere\nThing\n)\x81.").arguments == ()
    pairs = load(b"\x80\x02ccollections\nOrderedDict\n]](K\x01K\x02ea\x85R.")
    assert (type(pairs), pairs) == (StateDict, {1: 2})
    assert load(b"\x80\x02K\x07Q.") == ("stored", 7)


DOUBLED = b")" + b"2\x86" * 40  # a tuple of a pair of a pair ...: 2 ** 40 values in 80 bytes
DEEP = b")" + b"\x85" * 200_000


@pytest.mark.cases(3)
@pytest.mark.parametrize("tuples", [DOUBLED, DEEP], ids=["doubled", "deep"])
@pytest.mark.parametrize(
    "use",
    [
        *(b"}(%bNu.", b"}%bNs.", b"(%bNd.", b"\x8f(%b\x90.", b"(%b\x91."),
        b"ccollections\nOrderedDict\n]](%bNea\x85R.",
    ],
)
def test_tuples_are_not_hashed(use, tuples):
    with pytest.raises(PickleError, match="a tuple is the key of a dictionary"):
        load(b"\x80\x04" + use.replace(b"%b", tuples))


@pytest.mark.parametrize("tuples", [DOUBLED, DEEP], ids=["doubled", "deep"])
def test_tuples_are_values(tuples):
    assert isinstance(load(b"\x80\x02" + tuples + b"."), tuple)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02a.", "nothing is on the stack at byte 2"),
        (b"\x80\x02u.", "nothing is on the stack"),
        (b"\x80\x02h\x07.", "nothing is remembered as 7"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "integer too large at byte 3"),
        (b"L" + b"9" * 30 + b"L\n.", "integer too large"),
        (b"\x80\x02(Nd.", "a key of a dictionary has no value"),
        (b"\x80\x02}Na.", "a dict stands where a list must"),
        (b"\x80\x02]NNs.", "a list stands where a dict must"),
        (b"\x80\x02N)R.", "a NoneType is called"),
        (b"\x80\x02ca\nb\n)R.", "a str is called"),
        (b"\x80\x02]}b.", "a list is given attributes"),
        (b"\x80\x02\x82\x01.", "EXT1 is not an opcode of state dicts"),
        (b"(iposix\nsystem\n.", "INST is not an opcode"),
        (b"S'\\o'\n0a.", "nothing is on the stack"),
    ],
)
def test_damaged_pickles_are_described(data, message):
    with pytest.raises(PickleError, match=message):
        load(data)
