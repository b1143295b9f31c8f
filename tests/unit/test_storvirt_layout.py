"""Which generation's object serves a byte, checked against a byte-by-byte answer."""

from hypothesis import given
from hypothesis import strategies as st

from storvirt.model import ImagePath, PoolName, TenantName
from storvirt.placement.layout import Layer, Layout, first_served, held, serving

LAYOUTS = [
    Layout(object_bytes=16, stripe_unit=16, stripe_count=1),
    Layout(object_bytes=8, stripe_unit=8, stripe_count=1),
    Layout(object_bytes=16, stripe_unit=4, stripe_count=3),
    Layout(object_bytes=8, stripe_unit=8, stripe_count=2),
]


def layer(layout: Layout, reach_bytes: int, objects: frozenset[int], name: str = "x") -> Layer:
    return Layer(
        path=ImagePath(pool=PoolName("vms"), namespace=TenantName("red"), name=name),
        snapshot=None,
        id=name,
        pool=PoolName("vms"),
        namespace="red",
        prefix=f"rbd_data.{name}",
        layout=layout,
        reach_bytes=reach_bytes,
        objects=objects,
    )


layers_of_images = st.lists(
    st.builds(
        layer,
        st.sampled_from(LAYOUTS),
        st.integers(1, 100),
        st.frozensets(st.integers(0, 12), max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def slowly(layers: list[Layer], offset: int) -> tuple[int, int] | None:
    for depth, one in enumerate(layers):
        if offset >= one.reach_bytes:
            return None
        if one.layout.object_at(offset) in one.objects:
            return depth, one.layout.object_at(offset)
    return None


@given(layout=st.sampled_from(LAYOUTS), number=st.integers(0, 20))
def test_the_ranges_of_an_object_are_those_whose_bytes_it_holds(
    layout: Layout, number: int
) -> None:
    claimed = {o for at, length in layout.ranges(number) for o in range(at, at + length)}

    assert claimed == {o for o in range(2000) if layout.object_at(o) == number}
    assert len(claimed) == layout.object_bytes


@given(layers=layers_of_images, offset=st.integers(0, 90), length=st.integers(1, 60))
def test_a_range_is_served_byte_by_byte_by_the_youngest_generation_that_has_it(
    layers: list[Layer], offset: int, length: int
) -> None:
    found: dict[tuple[int, int], int] = {}
    for piece in serving(layers, offset, length):
        key = (piece.layer, piece.number)
        found[key] = found.get(key, 0) + piece.length
    expected: dict[tuple[int, int], int] = {}
    for one in range(offset, offset + length):
        if key_of := slowly(layers, one):
            expected[key_of] = expected.get(key_of, 0) + 1

    assert found == expected


@given(layers=layers_of_images)
def test_what_an_image_holds_is_what_reading_all_of_it_reaches(layers: list[Layer]) -> None:
    expected: dict[tuple[int, int], int] = {}
    for one in range(layers[0].reach_bytes):
        if key := slowly(layers, one):
            expected[key] = expected.get(key, 0) + 1

    assert held(layers) == expected


def test_a_clone_that_copied_one_object_reads_the_rest_from_its_parent() -> None:
    layout = Layout(object_bytes=8, stripe_unit=8, stripe_count=1)
    clone = layer(layout, 32, frozenset({1}), "clone")
    parent = layer(layout, 24, frozenset({0, 1, 2, 3}), "parent")

    assert held([clone, parent]) == {(0, 1): 8, (1, 0): 8, (1, 2): 8}
    assert first_served([clone, parent]) == (1, 0)
    assert first_served([layer(layout, 8, frozenset())]) == (0, 0)
    assert parent.object_name(2) == "rbd_data.parent.0000000000000002"
