"""One process leads, and what fails in it fails; names are nobody else's."""

import pytest

from jaxllm.interop.saving.multihost import fail_together, is_first_process, shared_name


def test_the_only_process_leads():
    assert is_first_process()


@pytest.mark.parametrize("together", [False, True])
def test_an_error_is_the_process_own(together):
    with pytest.raises(OSError, match="no space"), fail_together(together):
        raise OSError("no space")
    with fail_together(together):
        pass


@pytest.mark.parametrize("together", [False, True])
def test_no_two_attempts_have_one_name(together):
    names = {shared_name(together) for _ in range(3)}
    assert len(names) == 3
    assert all(len(name) == 32 for name in names)
