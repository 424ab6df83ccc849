"""The commands `quickstart` and `demo` are on the command line, with their options."""

import pytest

from jaxllm.cli import main


@pytest.mark.parametrize("command", ["quickstart", "demo"])
def test_help_and_wrong_options(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--output FOLDER" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([command, "--steps", "0"])
    assert end.value.code == 2
    assert "'0' is not a whole number" in capsys.readouterr().err
