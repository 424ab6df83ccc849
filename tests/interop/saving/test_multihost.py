"""One process leads, and what fails in it fails; names are nobody else's."""

import pytest

from jaxllm.interop.saving.multihost import agreed, common_name, leads


def test_the_only_process_leads():
    assert leads()


@pytest.mark.parametrize("together", [False, True])
def test_an_error_is_the_process_own(together):
    with pytest.raises(OSError, match="no space"), agreed(together):
        raise OSError("no space")
    with agreed(together):
        pass


@pytest.mark.parametrize("together", [False, True])
def test_no_two_attempts_have_one_name(together):
    names = {common_name(together) for _ in range(3)}
    assert len(names) == 3
    assert all(len(name) == 32 for name in names)
