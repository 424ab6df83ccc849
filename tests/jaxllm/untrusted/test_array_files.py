"""Archives that unpack to far more than their size are refused before they are unpacked."""

from io import BytesIO

import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.untrusted.array_files import check_archive


def archive(array):
    stream = BytesIO()
    np.savez_compressed(stream, inputs=array)
    stream.seek(0)
    return stream


def test_usual_archives_are_read_after_the_check():
    for array in (np.arange(9.0), np.zeros(1000)):
        stream = archive(array)
        check_archive(stream)
        np.testing.assert_array_equal(np.load(stream)["inputs"], array)


def test_an_archive_of_zeros_is_refused():
    with pytest.raises(UserError, match=r"more than 20 times the .* numpy\.savez"):
        check_archive(archive(np.zeros(9 << 20)))
