"""Multi-process helpers in a single process: errors pass through, names are unique."""

import pytest

from jaxllm.interop.saving.multihost import fail_together, is_first_process, shared_name


def test_single_process_is_the_first():
    assert is_first_process()


@pytest.mark.parametrize("together", [False, True])
def test_exception_of_this_process_is_raised_unchanged(together):
    with pytest.raises(OSError, match="no space"), fail_together(together):
        raise OSError("no space")
    with fail_together(together):
        pass


@pytest.mark.parametrize("together", [False, True])
def test_shared_names_are_unique(together):
    names = {shared_name(together) for _ in range(3)}
    assert len(names) == 3
    assert all(len(name) == 32 for name in names)
