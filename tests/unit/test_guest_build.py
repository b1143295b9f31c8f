"""What of the lab's guest is decided without starting one."""

import pytest

from lab.guest import kernel_package, load_order, needs_of


def test_modules_are_loaded_after_what_they_need() -> None:
    needs = {"net": ("ring", "failover"), "ring": ("virtio",), "failover": (), "virtio": ()}
    assert load_order(["net", "ring"], needs) == ("virtio", "ring", "failover", "net")


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        (
            b"\x7fELF\0license=GPL\0depends=virtio,virtio_ring\0retpoline=Y\0",
            ("virtio", "virtio_ring"),
        ),
        (b"license=GPL\0depends=\0", ()),
        (b"depends=virtio\0", ("virtio",)),
        (b"softdepends=virtio\0", ()),
    ],
)
def test_needs_of_a_module_are_read_from_it(module: bytes, needs: tuple[str, ...]) -> None:
    assert needs_of(module) == needs


def test_kernel_package_is_the_one_the_meta_package_depends_on() -> None:
    text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n"
    assert kernel_package(text) == "linux-image-6.1.0-56-cloud-amd64"
    assert kernel_package("") is None
