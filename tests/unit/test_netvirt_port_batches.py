"""Many ports in one transaction, and what commands read of the others, on a real database."""

import pytest

from netvirt import allocate
from netvirt.service import networks, port_batches, ports
from netvirt.service.networks import NetworkRequest
from netvirt.service.ports import PortRequest
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.backends.rpc import Rpc
from tenancy.errors import AlreadyExists, InvalidRequest, QuotaExceeded, Refused
from tenancy.model import Resource


@pytest.fixture(autouse=True)
def red(fabric: Fabric) -> None:
    tenants.create(fabric, "red")
    cidrs = ["10.1.0.0/24", "fd00:1::/64"]
    networks.create(fabric, "red", NetworkRequest(name="front", cidrs=cidrs))


def requests(*names: str) -> list[PortRequest]:
    return [PortRequest(name=name, labels={"of": name}) for name in names]


def used(fabric: Fabric) -> tuple[int, int]:
    usage = tenants.get(fabric, "red").quota
    return usage[Resource.PORTS].used, usage[Resource.ADDRESSES].used


def test_a_batch_is_stored_as_ports_made_one_by_one_would_be(fabric: Fabric) -> None:
    before = ports.create(fabric, "red", "front", PortRequest(name="before"))

    made = port_batches.create_many(fabric, "red", "front", requests("a", "b", "c"))
    after = ports.create(fabric, "red", "front", PortRequest(name="after"))

    everything = sorted([before, *made, after], key=lambda state: state.port.name)
    assert ports.list_all(fabric, "red") == everything
    addresses = [address for state in (before, *made, after) for address in state.port.addresses]
    assert [str(address) for address in addresses[::2]] == [f"10.1.0.{n}" for n in range(2, 7)]
    assert len(set(addresses)) == 10
    assert used(fabric) == (5, 10)


def test_a_batch_of_which_one_exists_is_not_made_at_all(fabric: Fabric) -> None:
    ports.create(fabric, "red", "front", PortRequest(name="b"))

    with pytest.raises(AlreadyExists, match=r"port b of network front exists already.*None of"):
        port_batches.create_many(fabric, "red", "front", requests("a", "b"))
    with pytest.raises(AlreadyExists, match="port a of network front exists already, or is asked"):
        port_batches.create_many(fabric, "red", "front", requests("a", "a"))

    assert used(fabric) == (1, 2)
    assert len(ports.list_all(fabric, "red")) == 1


def test_a_batch_that_the_quota_or_the_network_has_no_room_for_is_not_made(fabric: Fabric) -> None:
    networks.create(fabric, "red", NetworkRequest(name="tiny", cidrs=["10.9.0.0/29"]))
    with pytest.raises(Refused, match=r"port p5: network tiny \(10\.9\.0\.0/29\) has no free"):
        port_batches.create_many(
            fabric, "red", "tiny", requests(*(f"p{number}" for number in range(6)))
        )
    tenants.set_quota(fabric, "red", {Resource.PORTS: 2})
    with pytest.raises(QuotaExceeded, match="quota of ports does not admit 3 more"):
        port_batches.create_many(fabric, "red", "front", requests("a", "b", "c"))

    assert used(fabric) == (0, 0)


def test_a_batch_takes_no_addresses_that_were_chosen_by_hand(fabric: Fabric) -> None:
    """The last of them is the cursor's, the first is behind it and has been chosen before."""
    ports.create(fabric, "red", "front", PortRequest(name="by-hand", addresses=["10.1.0.3"]))

    made = port_batches.create_many(fabric, "red", "front", requests("a", "b"))

    assert [str(state.port.addresses[0]) for state in made] == ["10.1.0.2", "10.1.0.4"]
    chosen = PortRequest(name="c", mac="0a:00:00:00:00:01")
    with pytest.raises(InvalidRequest, match="port c: of many ports made at once all addresses"):
        port_batches.create_many(fabric, "red", "front", [chosen])


def test_an_address_and_a_mac_that_are_taken_are_chosen_anew(fabric: Fabric) -> None:
    """They are not looked for beforehand: the database refuses them, and then they are."""
    network = networks.get(fabric, "red", "front")
    expected = str(allocate.mac(network.id, "web", 0))
    chosen = PortRequest(name="rival", mac=expected, addresses=["10.1.0.2", "fd00:1::2"])
    ports.create(fabric, "red", "front", chosen)

    made = ports.create(fabric, "red", "front", PortRequest(name="web"))

    assert made == ports.get(fabric, "red", "front", "web")
    assert str(made.port.mac) == str(allocate.mac(network.id, "web", 1))
    assert [str(address) for address in made.port.addresses] == ["10.1.0.3", "fd00:1::3"]


def test_what_a_port_costs_to_make_is_read_of_few_rows(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are the rows that the server sends, with 10 other ports and with 100."""
    answered: list[int] = []
    call = Rpc.call

    def counting(self: Rpc, method: str, params: list) -> object:  # type: ignore[type-arg]
        result = call(self, method, params)
        if method == "transact":
            answered[-1] += sum(len(one.get("rows", ())) for one in result if one)
        return result

    def received(name: str) -> int:
        answered.append(0)
        ports.create(fabric, "red", "front", PortRequest(name=name), wait_s=5)
        ports.delete(fabric, "red", "front", name, wait_s=5)
        return answered[-1]

    answered.append(0)
    port_batches.create_many(fabric, "red", "front", requests(*(f"p{n}" for n in range(10))))
    monkeypatch.setattr(Rpc, "call", counting)
    few = received("x")
    monkeypatch.undo()
    port_batches.create_many(fabric, "red", "front", requests(*(f"q{n}" for n in range(90))))
    monkeypatch.setattr(Rpc, "call", counting)

    assert received("y") == few
