"""What a person wrote in cluster.toml stays; what the cluster says comes beside it."""

import tomllib

import pytest

from deploy.cluster.toml_text import Conflict, with_settings

WANTED = {
    "database": {"url": "postgresql://a@db/z", "password_file": "/v/p"},
    "limits": {"request": {"max_steps": 20}},
    "model": {"aliases": ["a", 'b"ü'], "steps": 8},
    "cluster": {"name": "studio"},
}
OWN = """\
# ours
workers = "auto"

[model]            # the large one
steps = 8  # enough

[limits.request]
max_images = 4
"""


def test_empty_file_gets_all_of_it() -> None:
    assert tomllib.loads(with_settings("", WANTED)) == WANTED


def test_what_a_person_wrote_stays() -> None:
    made = with_settings(OWN, WANTED)
    for line in OWN.splitlines():
        assert line in made
    assert tomllib.loads(made) == {
        "workers": "auto",
        **WANTED,
        "limits": {"request": {"max_steps": 20, "max_images": 4}},
    }


def test_repetition_changes_nothing() -> None:
    made = with_settings(OWN, WANTED)
    assert with_settings(made, WANTED) == made


def test_table_with_nothing_in_it_is_not_written() -> None:
    assert with_settings("a = 1\n", {"limits": {"request": {}}, "model": {}}) == "a = 1\n"


def test_other_values_are_refused_by_name() -> None:
    with pytest.raises(Conflict) as refused:
        with_settings('[database]\nurl = "postgresql://b@db/z"\n[cluster]\nname = "x"', WANTED)
    assert refused.value.lines == [
        'database.url: there "postgresql://b@db/z", the cluster\'s "postgresql://a@db/z"',
        'cluster.name: there "x", the cluster\'s "studio"',
    ]


@pytest.mark.parametrize(
    "text",
    [
        'database.password_file = "/v/p"\n',
        'database = { password_file = "/v/p" }\n',
        '[environment]\nA = """\n[database]\n"""\n[model]\nsteps = 8\n[database]\n',
    ],
)
def test_form_that_leaves_no_place_is_left_to_a_person(text: str) -> None:
    with pytest.raises(ValueError, match=r'url = "postgresql://a@db/z"'):
        with_settings(text, WANTED)


def test_several_models_are_tables_of_a_list() -> None:
    models = [{"name": "turbo"}, {"name": "photo", "aliases": ["a", "b"]}]
    wanted = {"models": models, "cluster": {"name": "studio"}}
    made = with_settings('workers = "auto"\n[gallery]\nkeep_days = 8.0', wanted)
    assert tomllib.loads(made) == {"workers": "auto", "gallery": {"keep_days": 8.0}, **wanted}
    assert "[[models]]" in made
    assert with_settings(made, wanted) == made
    with pytest.raises(Conflict, match="models: there"):
        with_settings(made, {"models": models[:1]})
