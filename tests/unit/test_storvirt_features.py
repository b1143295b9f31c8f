"""Which features, object sizes and stripes go together."""

import pytest

from storvirt import features
from storvirt.features import DEFAULT, Layout, difference
from tenancy.errors import InvalidRequest

MIB = 1 << 20


def test_nothing_asked_is_the_default_layout() -> None:
    found = features.layout(None, None, None, (), ())

    assert found.features == features.DEFAULT
    assert (found.order, found.stripe_unit_bytes, found.stripe_count) == (None, None, None)


def test_an_object_size_is_given_to_librbd_as_its_logarithm() -> None:
    assert features.layout(MIB, 64 << 10, 4, (), ()).order == 20


@pytest.mark.parametrize("size", [0, 1 << 11, 1 << 26, 3 * MIB, MIB + 512])
def test_an_object_size_that_is_no_power_of_two_in_range_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequest, match="object size"):
        features.layout(size, None, None, (), ())


@pytest.mark.parametrize(
    ("unit", "count", "words"),
    [
        (64 << 10, None, "needs both"),
        (None, 4, "needs both"),
        (100, 4, "does not divide"),
        (8 * MIB, 4, "does not divide"),
        (64 << 10, 0, "stripe count 0"),
    ],
)
def test_stripes_that_do_not_fit_are_refused(
    unit: int | None, count: int | None, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        features.layout(None, unit, count, (), ())


@pytest.mark.parametrize(
    ("on", "off", "words"),
    [
        (["journaling"], [], "not offered"),
        (["striping"], [], "not offered"),
        (["fast-diff"], ["fast-diff"], "at once"),
        ([], ["layering"], "layering can't be off"),
        ([], ["exclusive-lock"], "object-map needs exclusive-lock"),
        ([], ["object-map"], "fast-diff needs object-map"),
    ],
)
def test_features_that_do_not_go_together_are_refused(
    on: list[str], off: list[str], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        features.resolve(features.DEFAULT, on, off)


def test_what_relies_on_a_feature_goes_off_with_it_if_both_are_named() -> None:
    off = ["exclusive-lock", "object-map", "fast-diff"]

    assert features.resolve(features.DEFAULT, [], off) == {"layering", "deep-flatten"}


def test_only_what_differs_is_switched() -> None:
    present = {"layering", "exclusive-lock", "object-map"}

    assert features.switch(present, ["object-map", "fast-diff"], ["deep-flatten"]) == (
        {"fast-diff"},
        set(),
    )


def test_deep_flatten_is_not_given_to_an_image_that_exists() -> None:
    with pytest.raises(InvalidRequest, match="new images only"):
        features.switch({"layering"}, ["deep-flatten"], [])


def test_bits_and_names_are_each_others_inverse() -> None:
    layout = features.Layout()

    assert frozenset(features.names(layout.bits)) == layout.features


LIBRBDS = Layout(object_size_bytes=4 << 20, stripe_unit_bytes=4 << 20, stripe_count=1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Layout(), None),
        (Layout(object_size_bytes=4 << 20), None),
        (Layout(object_size_bytes=8 << 20), "objects of 4MiB, not 8MiB"),
        (
            Layout(stripe_unit_bytes=1 << 16, stripe_count=4),
            "stripes of 4MiB over one object, not stripes of 64KiB over 4 objects",
        ),
        (Layout(features=DEFAULT - {"fast-diff"}), "feature fast-diff on"),
    ],
)
def test_an_image_that_lies_otherwise_than_asked_is_told_from_one_that_does_not(
    asked: Layout, said: str | None
) -> None:
    assert difference(asked, LIBRBDS, LIBRBDS, also_features=True) == said


def test_what_librbd_chooses_is_what_is_asked_by_saying_nothing() -> None:
    other = Layout(object_size_bytes=1 << 20, stripe_unit_bytes=1 << 20, stripe_count=1)

    assert difference(Layout(), other, other, also_features=False) is None
    assert (
        difference(Layout(object_size_bytes=1 << 20), other, LIBRBDS, also_features=False) is None
    )


def test_features_that_were_switched_since_make_no_other_layout() -> None:
    asked = Layout(features=DEFAULT - {"fast-diff"})

    assert difference(asked, LIBRBDS, LIBRBDS, also_features=False) is None
