"""control.sock: orders to a running pipeline, from its owner alone, whatever a client does."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterfoil.errors import PipelineUnreachable
from counterfoil.ledger import Cause, ResentRow, Seq
from counterfoil.pipeline import control
from counterfoil.pipeline.control import LINE_BYTES_MAX, SOCKET_NAME, ControlClient, ControlServer
from counterfoil.pipeline.orders import ROWS_AN_ORDER_MAX, Answer, Done, DropDead, Order, SendAgain
from counterfoil.positions import DirectoryId, FramePosition, RowPosition, SegmentNumber

PATIENCE_SECONDS = 120.0
POSITION = RowPosition(FramePosition(DirectoryId(b"writer-1"), SegmentNumber(3), 64), 7)


class Pipeline:
    """Takes orders and remembers them."""

    def __init__(self, directory: Path) -> None:
        self.orders: list[Order] = []
        self.stop = threading.Event()
        self.server = ControlServer(directory, self.take)
        self.thread = threading.Thread(target=self.server.run, args=(self.stop,))

    def take(self, order: Order) -> Answer:
        self.orders.append(order)
        return Done(len(self.orders))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A data directory whose path is longer than the name of a socket may be."""
    path = tmp_path / ("d" * 100)
    path.mkdir()
    return path


@pytest.fixture
def pipeline(directory: Path) -> Iterator[Pipeline]:
    """One that listens; over the socket of an earlier life that was killed."""
    (directory / SOCKET_NAME).touch()
    running = Pipeline(directory)
    running.thread.start()
    yield running
    running.stop.set()
    running.thread.join(PATIENCE_SECONDS)
    assert not (directory / SOCKET_NAME).exists()


def connected(directory: Path) -> ControlClient:
    """A client, as soon as somebody listens."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_SECONDS * 100)):
        client = ControlClient.connect(directory)
        if client is not None:
            return client
        pause.wait(0.01)
    raise AssertionError("nobody listens")


def taken_in(directory: Path) -> ControlClient:
    """A client whose order was taken: places of those that went become free in their own time."""
    while True:
        client = connected(directory)
        try:
            assert isinstance(client.submit(DropDead("lake", (1,))), Done)
        except PipelineUnreachable:
            client.close()
        else:
            return client


def raw(directory: Path) -> socket.socket:
    connected(directory).close()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with control._address(directory) as address:
        connection.connect(address)
    connection.settimeout(PATIENCE_SECONDS)
    return connection


def test_an_order_arrives_as_it_was_given(directory: Path, pipeline: Pipeline) -> None:
    """One answer an order, in order, also for the largest one; the socket is its owner's alone."""
    largest = tuple(ResentRow(Seq(2**62), Seq(2**62), POSITION, "s" * 63) for _ in range(ROWS_AN_ORDER_MAX))
    orders: list[Order] = [
        SendAgain("lake", Cause.RETRY, (ResentRow(Seq(1), Seq(2), None, "web"),), 99),
        SendAgain("lake", Cause.REPLAY, largest),
        DropDead("hook", (1, 2, 3)),
    ]
    client = connected(directory)
    assert [client.submit(order) for order in orders] == [Done(1), Done(2), Done(3)]
    client.close()
    assert pipeline.orders == orders
    assert stat.S_IMODE((directory / SOCKET_NAME).stat().st_mode) == 0o600


def test_nobody_listens(directory: Path) -> None:
    """Where no pipeline runs there is no client, whether an earlier one left its socket or not."""
    assert ControlClient.connect(directory) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left, control._address(directory) as address:
        left.bind(address)
    assert ControlClient.connect(directory) is None


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"type":"erase_all"}', b"\xff\xfe", b'{"type":"drop_dead"}'])
def test_what_is_no_order_is_refused(directory: Path, pipeline: Pipeline, line: bytes) -> None:
    """It is answered, and the next order on the same line is taken."""
    with raw(directory) as client:
        client.sendall(line + b"\n")
        assert b'"refused"' in client.recv(1000)
        client.sendall(b'{"type":"drop_dead","destination":"lake","seqs":[1]}\n')
        assert b'"done"' in client.recv(1000)
    assert pipeline.orders == [DropDead("lake", (1,))]


def test_a_line_without_end_is_cut_off(directory: Path, pipeline: Pipeline) -> None:
    """No more than LINE_BYTES_MAX is kept of it."""
    with raw(directory) as client:
        client.sendall(b" " * (LINE_BYTES_MAX + 1))
        assert b'"refused"' in client.recv(1000)
        assert client.recv(1000) == b""
    assert pipeline.orders == []


def test_clients_that_hang_are_few_and_are_let_go(
    directory: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says nothing is closed after a while, and makes room; more than CLIENTS_MAX are turned away."""
    monkeypatch.setattr(control, "IDLE_SECONDS", 0.3)
    for hanging in [raw(directory) for _ in range(3)]:
        assert hanging.recv(1) == b""
        hanging.close()
    monkeypatch.setattr(control, "IDLE_SECONDS", PATIENCE_SECONDS)
    served = [taken_in(directory) for _ in range(control.CLIENTS_MAX)]
    assert isinstance(served[0].submit(DropDead("lake", (1,))), Done)
    with raw(directory) as one_more:
        assert one_more.recv(1) == b""
    for client in served:
        client.close()
