"""Filters as the kernel half takes them, and the same decision for rows of the inventory."""

import ipaddress
import struct

import pytest

from tcptrace.probes.engine.constants import TcpState
from tcptrace.probes.filters import PORT_LOCAL, PORT_REMOTE, Filters, prefix_key

ONE = struct.pack("=I", 1)


def networks(*texts):
    return tuple(ipaddress.ip_network(text) for text in texts)


def contents(filters):
    return list(filters.map_contents())


def test_no_filter_switches_nothing_on():
    assert Filters().definitions() == {"TRACE_ALL_OWNERS": 1}
    assert contents(Filters()) == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(by_pid=True), {"TRACE_ALL_OWNERS": 0, "FILTER_PIDS": 1}),
        (Filters(follow=True), {"FOLLOW_CHILDREN": 1}),
        (Filters(comms=frozenset({"x"})), {"FILTER_COMMS": 1}),
        (Filters(ports={80: 3}), {"FILTER_PORTS": 1}),
        (Filters(networks=networks("10.0.0.0/8")), {"FILTER_PREFIXES": 1}),
        (Filters(netns=frozenset({1})), {"FILTER_NETNS": 1}),
        (Filters(cgroups=frozenset({1})), {"FILTER_CGROUPS": 1}),
        (Filters(family=4), {"FILTER_FAMILY": 2}),
        (Filters(family=6), {"FILTER_FAMILY": 10}),
        (Filters(states=frozenset({TcpState.CLOSE_WAIT})), {"FILTER_STATES": 1 << 8}),
        (
            Filters(states=frozenset({TcpState.LISTEN, TcpState.CLOSE})),
            {"FILTER_STATES": 1 << 10 | 1 << 7},
        ),
    ],
)
def test_each_filter_switches_its_own_check_on(filters, expected):
    assert filters.definitions() == {"TRACE_ALL_OWNERS": 1} | expected


def test_sets_go_into_their_maps():
    filters = Filters(
        comms=frozenset({"curl"}),
        ports={443: PORT_REMOTE},
        netns=frozenset({4026531840}),
        cgroups=frozenset({2**40}),
    )
    assert sorted(contents(filters)) == [
        ("wanted_cgroups", struct.pack("=Q", 2**40), ONE),
        ("wanted_comms", b"curl" + b"\0" * 12, ONE),
        ("wanted_netns", struct.pack("=I", 4026531840), ONE),
        ("wanted_ports", struct.pack("=I", 443), struct.pack("=I", PORT_REMOTE)),
    ]


@pytest.mark.parametrize("name", ["fifteen-letters", "sixteen--letters", "ääääääääää"])
def test_a_name_is_cut_as_the_kernel_cuts_it(name):
    """At 15 bytes and a NUL, also in the middle of a letter."""
    ((_, key, _),) = contents(Filters(comms=frozenset({name})))
    assert key == name.encode()[:15] + b"\0"


@pytest.mark.parametrize(
    ("text", "bits", "address"),
    [
        ("10.0.0.0/8", 104, b"\0" * 10 + b"\xff\xff\x0a\0\0\0"),
        ("0.0.0.0/0", 96, b"\0" * 10 + b"\xff\xff\0\0\0\0"),
        ("192.0.2.1/32", 128, b"\0" * 10 + b"\xff\xff\xc0\0\x02\x01"),
        ("2001:db8::/32", 32, bytes.fromhex("20010db8") + b"\0" * 12),
        ("::1/128", 128, b"\0" * 15 + b"\x01"),
    ],
)
def test_a_prefix_is_16_bytes_with_ipv4_mapped(text, bits, address):
    assert prefix_key(ipaddress.ip_network(text)) == struct.pack("=I", bits) + address


def kernel_matches(filters, address):
    """What the kernel's longest-prefix-match trie says of one address."""
    ip = ipaddress.ip_address(address)
    raw = ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed
    for name, key, _ in filters.map_contents():
        assert name == "wanted_prefixes"
        bits, prefix = struct.unpack("=I", key[:4])[0], key[4:]
        kept = 128 - bits
        if int.from_bytes(raw, "big") >> kept == int.from_bytes(prefix, "big") >> kept:
            return True
    return False


@pytest.mark.parametrize(
    "network",
    ["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::1/128", "::/0", "::ffff:10.0.0.0/104"],
)
@pytest.mark.parametrize("address", ["10.1.2.3", "11.0.0.1", "2001:db8::5", "::1", "fe80::1"])
def test_existing_sockets_are_chosen_as_the_kernel_chooses(network, address):
    filters = Filters(networks=networks(network))
    elsewhere = "192.0.2.77" if ":" not in address else "100::77"
    if kernel_matches(filters, elsewhere):
        elsewhere = address
    shown = filters.wants_row(1, 2, address, elsewhere, 3)
    assert shown == kernel_matches(filters, address)


def wants(filters, sport=80, dport=5000, saddr="10.0.0.1", daddr="10.0.0.2", netns=1):
    return filters.wants_row(sport, dport, saddr, daddr, netns)


def test_a_row_must_pass_all_filters():
    filters = Filters(ports={80: PORT_LOCAL}, family=4, netns=frozenset({1}))
    assert wants(filters)
    assert not wants(filters, sport=81)
    assert not wants(filters, netns=2)
    assert not wants(filters, saddr="fd07::1", daddr="fd07::2")


@pytest.mark.parametrize(
    ("side", "local", "remote"),
    [
        (PORT_LOCAL, True, False),
        (PORT_REMOTE, False, True),
        (PORT_LOCAL | PORT_REMOTE, True, True),
    ],
)
def test_a_port_counts_on_the_side_that_was_asked_for(side, local, remote):
    filters = Filters(ports={443: side})
    assert wants(filters, sport=443, dport=1) == local
    assert wants(filters, sport=1, dport=443) == remote
    assert not wants(filters, sport=1, dport=2)


def test_a_network_matches_either_end():
    filters = Filters(networks=networks("10.0.0.2/32"))
    assert wants(filters)
    assert wants(filters, saddr="10.0.0.2", daddr="10.0.0.9")
    assert not wants(filters, daddr="10.0.0.3")


def test_any_of_the_states_will_do():
    filters = Filters(states=frozenset({TcpState.CLOSE_WAIT, TcpState.LISTEN}))
    assert filters.wants_state(TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)
    assert not filters.wants_state(TcpState.ESTABLISHED, TcpState.FIN_WAIT1)
    assert Filters().wants_state(TcpState.CLOSE)
