"""Labels meet by name; likeness is told and never acted on."""

from toolkit.models import label_changes


def test_each_label_is_carried_new_or_dropped_in_its_own_order() -> None:
    changes = label_changes(("a", "b", "c"), ("c", "d", "a"))
    assert (changes.carried, changes.new, changes.dropped, changes.similar) == (("c", "a"), ("d",), ("b",), ())
    assert changes.sentence() == "2 carried over (c, a); 1 new (d); 1 dropped (b)"
    assert changes.hint() == ""


def test_labels_written_in_two_ways_are_told_and_not_matched() -> None:
    changes = label_changes(("Micro crack", "ok", "?"), ("micro_crack", "OK ", "!"))
    assert changes.carried == ()
    assert changes.similar == (("Micro crack", "micro_crack"), ("ok", "OK "))
    assert "'Micro crack' and 'micro_crack'" in changes.hint()
