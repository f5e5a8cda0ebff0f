"""Which places a plan names: every name on its own side, the longest first, however it is spelled."""

import unicodedata
from importlib.resources import files

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_int8.lessons.n08.places import places_named

LISTS = yaml.safe_load((files("llama_int8") / "data" / "paris.yaml").read_text(encoding="utf-8"))
SPELLINGS = [
    (spelling, name) for name, others in LISTS["in_paris"].items() for spelling in (name, *others)
]


@pytest.mark.parametrize(("spelling", "name"), SPELLINGS)
def test_every_spelling_is_found_as_its_own_place_in_paris(spelling, name):
    assert places_named(spelling) == ([name], [])
    assert places_named(f"Day 1: see {spelling}, then rest.") == ([name], [])
    assert places_named(spelling.upper()) == places_named(spelling.lower()) == ([name], [])


@pytest.mark.parametrize("name", LISTS["elsewhere"])
def test_every_place_elsewhere_is_found_as_itself_and_not_in_paris(name):
    assert places_named(f"We end at {name}.") == ([], [name])


def test_no_name_stands_twice():
    names = [*LISTS["in_paris"], *LISTS["elsewhere"]]
    assert len(set(names)) == len(names)
    spellings = [spelling for spelling, _ in SPELLINGS] + list(LISTS["elsewhere"])
    assert len(set(spellings)) == len(spellings)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("the Louvre Abu Dhabi", [], ["Louvre Abu Dhabi"]),
        ("the Louvre and the Louvre Abu Dhabi", ["Louvre"], ["Louvre Abu Dhabi"]),
        ("Opéra Bastille", ["Opéra Bastille"], []),
        ("Opéra Bastille at the Bastille", ["Opéra Bastille", "Place de la Bastille"], []),
        ("Notre-Dame de la Garde", [], ["Notre-Dame de la Garde"]),
        ("Centre Pompidou-Metz", [], ["Centre Pompidou-Metz"]),
        ("Catacombs of Rome", [], ["Catacombs of Rome"]),
        # An accent that the list does not have hides nothing.
        ("Notre-Dame Basilica of Montréal", [], ["Notre-Dame Basilica of Montreal"]),
    ],
)
def test_a_longer_name_hides_the_shorter_one_in_it(text, inside, outside):
    assert places_named(text) == (inside, outside)


@pytest.mark.parametrize(
    "text",
    [
        "Musée d'Orsay",
        "musee d’orsay",
        "MUSÉE D'ORSAY",
        unicodedata.normalize("NFD", "Musée d'Orsay"),
        "Musée\n  d'Orsay",
        "the Musée d'Orsay's clock",
    ],
)
def test_accents_case_apostrophes_and_line_breaks_make_no_difference(text):
    assert places_named(text) == (["Musée d'Orsay"], [])


@pytest.mark.parametrize(
    "text", ["Sacré-Cœur", "SACRÉ-CŒUR", "sacre coeur", "Sacré\u2010Cœur", "Sacré\u2011Cœur"]
)
def test_ligatures_and_every_kind_of_hyphen_make_no_difference(text):
    assert places_named(text) == (["Sacré-Cœur"], [])


@pytest.mark.parametrize("text", ["Louvres", "unseine", "maraisian", "Versailleser", "", "Rome"])
def test_a_part_of_a_word_is_no_place(text):
    assert places_named(text) == ([], [])


def test_a_place_that_is_named_often_counts_once_and_names_come_in_alphabetical_order():
    text = "Seine, Louvre, Seine, Tour Eiffel, Eiffel Tower, Stonehenge, Big Ben, Big Ben."
    assert places_named(text) == (["Eiffel Tower", "Louvre", "Seine"], ["Big Ben", "Stonehenge"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(SPELLINGS), max_size=6),
    st.lists(st.sampled_from([*LISTS["elsewhere"]]), max_size=4),
)
def test_a_plan_is_the_sum_of_its_places(inside, outside):
    text = "; ".join([spelling for spelling, _ in inside] + outside)
    assert places_named(text) == (sorted({name for _, name in inside}), sorted(set(outside)))
