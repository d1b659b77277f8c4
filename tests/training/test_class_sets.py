"""Joining the classes of several domains."""

from training.class_sets import ClassSets


def test_a_class_of_several_domains_is_one_name_whatever_its_case():
    sets = ClassSets.of({"pets": ["cat", "Newt"], "ponds": ["newt", "frog"], "zoo": ["frog", "cat", "owl"]}, [2, 1, 3])
    assert sets.names == ("cat", "Newt", "frog", "owl")
    assert [places.tolist() for places in sets.student] == [[0, 1], [1, 2], [2, 0, 3]]


def test_the_teacher_has_the_classes_of_every_domain_one_after_the_other():
    sets = ClassSets.of({"pets": ["cat", "newt"], "ponds": ["newt", "frog"]}, [2, 1])
    assert [places.tolist() for places in sets.teacher] == [[0, 1], [2, 3]]


def test_images_belong_to_the_domains_in_order():
    assert ClassSets.of({"a": ["x"], "b": ["y"], "c": ["z"]}, [2, 0, 1]).domain_N.tolist() == [0, 0, 2]
