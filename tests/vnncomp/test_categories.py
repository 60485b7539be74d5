"""Settings by category: the bundled file is valid, and mistakes in such a file are said clearly."""

from __future__ import annotations

import pytest

from vnncomp import __main__ as competition
from vnncomp.categories import category_settings
from zonoplug.errors import SettingError
from zonoplug.examples import digits_holds, digits_model
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.verify.settings import Settings

GOOD = '[acasxu]\nreason = "measured"\nmethod = "zonotope+crown"\nwithout = ["inner-attack"]\nseed = 3\n'


def test_the_bundled_file_is_valid_and_leaves_unknown_categories_alone():
    assert category_settings("a category that nobody knows") == {}
    for name in ("acasxu", "mnist_fc", "cora"):
        found = category_settings(name)
        Settings(**found)
        BoundMethod.parse(found.get("method", "zonotope"))


@pytest.mark.parametrize("category", ["acasxu", "2024_acasxu"])
def test_a_categorys_settings(tmp_path, category):
    path = tmp_path / "categories.toml"
    path.write_text(GOOD)
    assert category_settings(category, path) == {"method": "zonotope+crown", "without": ["inner-attack"], "seed": 3}
    assert category_settings("acasxu_2023", path) == {}


MISTAKES = {
    "no TOML": ("[acasxu\n", "is not TOML"),
    "no table": ('acasxu = "fast"\n', "is no table"),
    "an unknown setting": ('[a]\nreason = "x"\nmethd = "zonotope"\n', "Did you mean 'method'"),
    "an unknown component": ('[a]\nreason = "x"\nwithout = ["atack"]\n', "Did you mean 'attack'"),
    "an unknown branching rule": ('[a]\nreason = "x"\nbranching = "widst"\n', "Did you mean 'widest'"),
    "components that are no names": ('[a]\nreason = "x"\nwithout = [1]\n', "names of components"),
    "another type": ('[a]\nreason = "x"\nseed = "1"\n', "must be a int"),
    "a boolean": ('[a]\nreason = "x"\nseed = true\n', "must be a int"),
    "no reason": ("[a]\nseed = 1\n", "has no reason"),
    "an empty reason": ('[a]\nreason = ""\n', "has no reason"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_anywhere_is_an_error_for_every_category(tmp_path, name):
    text, said = MISTAKES[name]
    path = tmp_path / "categories.toml"
    path.write_text(text)
    with pytest.raises(SettingError, match=said) as caught:
        category_settings("another", path)
    assert "categories.toml" in str(caught.value)


def test_a_file_that_is_absent(tmp_path):
    with pytest.raises(SettingError, match="cannot be read"):
        category_settings("acasxu", tmp_path / "categories.toml")


def test_settings_reach_the_worker(tmp_path, monkeypatch):
    """What the file says of a category is in the request; a mistake in it becomes an error in the results file."""
    asked = []

    def run_job(request, limit):
        asked.append(request["settings"])
        return {"verdict": "unsat", "notes": []}

    monkeypatch.setattr(competition, "run_job", run_job)
    monkeypatch.setattr(competition, "category_settings", lambda name: {"seed": 7} if name == "digits" else {})
    results = tmp_path / "results.txt"
    for category in ("digits", "other"):
        words = ["v1", category, str(digits_model()), str(digits_holds()), str(results), "60000"]
        assert competition.main(words) == 0
    assert [settings.get("seed", 0) for settings in asked] == [7, 0]

    def broken(_):
        raise SettingError("categories.toml, category 'x': has no reason.")

    monkeypatch.setattr(competition, "category_settings", broken)
    assert competition.main(words) == 2
    assert results.read_text() == "error\n"
