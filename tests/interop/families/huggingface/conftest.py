"""Has pytest explain the assertions of the checks that all families share."""

import pytest

pytest.register_assert_rewrite("decoder_family", "encoder_decoder_family")
