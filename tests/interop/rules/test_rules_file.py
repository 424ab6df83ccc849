"""Rules files: run once, importing beside themselves, with faults named by file and line."""

import re
from types import SimpleNamespace

import pytest

from jaxllm.errors import CheckpointError
from jaxllm.interop.rules.rules_file import RulesError, naming_faults, read_rules


def test_a_file_gives_its_attributes_and_imports_what_is_beside_it(tmp_path):
    (tmp_path / "beside_rules.py").write_text("SIZE = 7\n")
    file = tmp_path / "mine.py"
    file.write_text("from beside_rules import SIZE\nrules = [SIZE]\n")
    source = read_rules(str(file))
    assert (source.name, source.given) == ("mine.py", file)
    assert source.get("rules", None) == [7]
    assert source.get("tied", {}) == {}


def test_a_file_runs_again_only_when_its_text_changes(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("rules = [object()]\n")
    first = read_rules(file).get("rules", None)
    assert read_rules(file).get("rules", None) is first
    file.write_text("rules = [object(), 2]\n")
    assert read_rules(file).get("rules", None) != first


def test_an_object_gives_its_attributes():
    given = SimpleNamespace(rules=[1])
    source = read_rules(given)
    assert (source.name, source.given, source.get("rules", None)) == ("rules", given, [1])


def test_faults_name_the_file_and_the_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("x = 1\ny = 1 / 0\n")
    with pytest.raises(RulesError, match=re.escape(f"{file}, line 2: ZeroDivisionError")):
        read_rules(file)
    file.write_text("def f(\n")
    with pytest.raises(RulesError, match=re.escape(f"{file}, line 1: SyntaxError")):
        read_rules(file)
    with pytest.raises(RulesError, match=r"^mine: wrong$"), naming_faults("mine", "mine"):
        raise ValueError("wrong")


def test_what_is_no_file_of_text_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        read_rules(tmp_path)
    (tmp_path / "mine.py").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        read_rules(tmp_path / "mine.py")
