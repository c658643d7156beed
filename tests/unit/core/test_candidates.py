"""Models in the order of their turns."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llmux.core.candidates import CandidateQueue


def test_the_earliest_is_first_and_equals_keep_the_order_of_entry():
    turns = CandidateQueue()
    for model, at in (("c", 5.0), ("a", 7.0), ("b", 5.0)):
        turns.place(model, at)
    assert list(turns) == ["c", "b", "a"]
    assert turns.first() == ("c", 5.0)
    turns.remove("c")
    assert turns.first() == ("b", 5.0)
    assert "c" not in turns
    assert turns.overdue_at("a") == 7.0


def test_an_empty_order_has_no_first():
    turns = CandidateQueue()
    turns.remove("a")
    assert turns.first() is None
    assert len(turns) == 0


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 5))), max_size=50))
def test_it_equals_a_sorted_list(steps):
    turns, plain = CandidateQueue(), {}
    for model, at in steps:
        if at is None:
            turns.remove(model)
            plain.pop(model, None)
        else:
            turns.place(model, float(at))
            plain[model] = float(at)
        first = turns.first()
        assert (first is None) == (not plain)
        assert first is None or first[1] == min(plain.values())
        assert first is None or next(iter(turns)) == first[0]
        assert {name: turns.overdue_at(name) for name in turns} == plain
