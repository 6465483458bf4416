"""The reader's end of the ring buffer, on a ring laid out in a memfd."""

import os
import struct

import pytest

from tcptrace.probes.engine.layout import Layout
from tcptrace.probes.engine.ring import Ring, Waiter
from tests.unit.fake_ring import BUSY, DISCARDED, PAGE, FakeRing

LAYOUT = Layout(("number", "name"), "Q12s", 20)  # 20 bytes: 4 of padding up to the next record
STRIDE = 32


def payload(number):
    return struct.pack("=Q12s", number, b"name")


@pytest.fixture
def pair():
    """Makes (fake, ring) and closes both."""
    made = []

    def make(**how):
        fake = FakeRing(LAYOUT.size, **how)
        made.append((fake, Ring(fake.fd, fake.size, LAYOUT)))
        return made[-1]

    yield make
    for fake, ring in made:
        ring.close()
        fake.close()


def numbers(rows):
    return [row[0] for row in rows]


def test_a_batch_is_decoded_in_order(pair):
    fake, ring = pair()
    for number in range(100):
        fake.put(payload(number))
    assert ring.drain() == [(number, b"name".ljust(12, b"\0")) for number in range(100)]
    assert ring.names == ("number", "name")


def test_an_empty_ring_gives_nothing(pair):
    _, ring = pair()
    assert ring.drain() == []


def test_each_record_is_given_once(pair):
    fake, ring = pair()
    fake.put(payload(1))
    assert numbers(ring.drain()) == [1]
    fake.put(payload(2))
    assert numbers(ring.drain()) == [2]
    assert ring.drain() == []


def test_the_position_is_written_back_for_the_kernel(pair):
    fake, ring = pair()
    for number in range(3):
        fake.put(payload(number))
    ring.drain()
    assert fake.consumed() == fake.produced == 3 * STRIDE


def test_a_busy_record_stops_the_batch_until_it_is_finished(pair):
    fake, ring = pair()
    fake.put(payload(1))
    busy = fake.put(payload(2), BUSY)
    fake.put(payload(3))
    assert numbers(ring.drain()) == [1]
    assert fake.consumed() == busy
    assert ring.drain() == []
    fake.set_flags(busy, 0)
    assert numbers(ring.drain()) == [2, 3]


def test_a_discarded_record_is_skipped(pair):
    fake, ring = pair()
    fake.put(payload(1))
    fake.put(payload(2), DISCARDED)
    fake.put(payload(3))
    assert numbers(ring.drain()) == [1, 3]
    assert fake.consumed() == fake.produced


def test_records_across_the_wrap_come_in_one_piece(pair):
    fake, ring = pair(start=1 << 40)
    per_round = fake.size // STRIDE
    seen = []
    for first in range(0, 10 * per_round, 100):  # 100 does not divide the ring: each lap differs
        for number in range(first, first + 100):
            fake.put(payload(number))
        seen += numbers(ring.drain())
    assert seen == list(range(len(seen)))
    assert len(seen) >= 10 * per_round


def test_a_record_that_straddles_the_end_is_read_from_the_second_mapping(pair):
    fake, ring = pair(start=1000 * PAGE - 8)  # its header is the last thing before the end
    fake.put(payload(7))
    assert ring.drain() == [(7, b"name".ljust(12, b"\0"))]


def test_reading_goes_on_where_an_earlier_reader_stopped(pair):
    fake, ring = pair(start=5 * STRIDE)
    fake.put(payload(9))
    assert numbers(ring.drain()) == [9]
    assert fake.consumed() == 6 * STRIDE


def test_a_limit_leaves_the_rest(pair):
    fake, ring = pair()
    for number in range(5):
        fake.put(payload(number))
    assert numbers(ring.drain(limit=3)) == [0, 1, 2]
    assert numbers(ring.drain(limit=3)) == [3, 4]


def test_fill_is_the_share_that_waits(pair):
    fake, ring = pair()
    assert ring.fill() == 0.0
    for number in range(fake.size // STRIDE // 2):
        fake.put(payload(number))
    assert ring.fill() == 0.5
    ring.drain()
    assert ring.fill() == 0.0


def test_a_full_ring_is_read_whole(pair):
    fake, ring = pair(start=3 * STRIDE)
    count = fake.size // STRIDE
    for number in range(count):
        fake.put(payload(number))
    assert ring.fill() == 1.0
    assert numbers(ring.drain()) == list(range(count))


def test_the_waiter_tells_which_descriptor_is_ready_until_it_is_forgotten():
    ring_r, ring_w = os.pipe()
    other_r, other_w = os.pipe()
    waiter = Waiter(ring_r, [other_r])
    assert waiter.wait(0) == set()
    os.write(other_w, b"x")
    assert waiter.wait(1) == {other_r}
    os.write(ring_w, b"x")
    assert waiter.wait(1) == {ring_r, other_r}
    waiter.forget({other_r})
    assert waiter.wait(1) == {ring_r}
    waiter.close()
    for fd in (ring_r, ring_w, other_r, other_w):
        os.close(fd)
