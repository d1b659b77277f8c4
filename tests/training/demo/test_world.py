from training.demo.world import (
    BASE_LABELS,
    CLASS_NAMES,
    HELD_OUT,
    HELD_OUT_LABELS,
    N_CLASSES,
    N_SHAPES,
    N_TEXTURES,
    NEW_LABELS,
    PAIRS,
)


def test_every_texture_shape_pair_is_a_class():
    assert len(set(PAIRS)) == len(set(CLASS_NAMES)) == N_CLASSES == N_TEXTURES * N_SHAPES


def test_both_halves_contain_every_texture_and_every_shape():
    for half in (BASE_LABELS, NEW_LABELS):
        pairs = [PAIRS[label] for label in half]
        assert {t for t, _ in pairs} == set(range(N_TEXTURES))
        assert {s for _, s in pairs} == set(range(N_SHAPES))


def test_each_texture_has_one_held_out_pair_in_each_half():
    assert len(HELD_OUT) == 16
    for half in (BASE_LABELS, NEW_LABELS):
        held = [PAIRS[label][0] for label in HELD_OUT_LABELS if label in half]
        assert sorted(held) == list(range(N_TEXTURES))


def test_no_shape_is_held_out_with_every_texture():
    for shape in range(N_SHAPES):
        assert 0 < sum(s == shape for _, s in HELD_OUT) < N_TEXTURES
