"""The kernel's side of FUSE: what a request is, byte by byte, and what answers it.

The protocol is that of Linux' include/uapi/linux/fuse.h, version 7.31 and later, little-endian machines. `Requests`
takes what was read of /dev/fuse and gives what is to be written to it. The kernel keeps names and attributes for as
long as it likes: nobody but it changes them. It never asks for locks, which it then keeps itself, and writes pages
through at once, but for those that were stored to through a map.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from random import Random

import msgspec

from counterfoil.faultydisk.faults import Faults, Operation
from counterfoil.faultydisk.tree import PAGE_BYTES, Directory, File, Inode, Tree

WRITE_BYTES_MAX = 1024 * 1024
REQUEST_BYTES_MAX = WRITE_BYTES_MAX + 16 * 1024

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTRIBUTES_VALID = struct.Struct("<QII")
_SET = struct.Struct("<IIQQQQQQIIIIIIII")
_READ = struct.Struct("<QQIIQII")
_FALLOCATE = struct.Struct("<QQQII")
_STATFS = struct.Struct("<QQQQQIIII24x")
_ENTRY_OF_DIRECTORY = struct.Struct("<QQII")

_VALID_SECONDS = 3600
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE, _SET_MTIME, _SET_MTIME_NOW = 1, 2, 4, 8, 32, 256
_RENAME_NOREPLACE = 1
_KEEP_SIZE = 1
# Asynchronous reads, large writes, directory operations side by side, many pages a request, no opening of directories.
_FLAGS = 1 << 0 | 1 << 5 | 1 << 18 | 1 << 22 | 1 << 24

_INIT, _FORGET, _BATCH_FORGET, _INTERRUPT = 26, 2, 42, 36
_SILENT = (_FORGET, _BATCH_FORGET, _INTERRUPT)


class Request(msgspec.Struct, frozen=True):
    """What the kernel asks."""

    opcode: int
    unique: int
    node: int
    body: bytes


class Requests:
    """Answers requests by a tree, where no fault befalls them."""

    def __init__(self, tree: Tree, faults: Faults, seed: int) -> None:
        self.tree = tree
        self.operation_count = 0
        """Operations done that change or flush something."""
        self._faults = faults
        self._chance = Random(seed)
        self._answers: dict[int, Callable[[Request], bytes]] = {
            1: self._lookup,
            _FORGET: self._forget,
            3: self._get_attributes,
            4: self._set_attributes,
            8: self._make_node,
            9: self._make_directory,
            10: self._unlink,
            11: self._remove_directory,
            12: self._rename,
            13: self._link,
            15: self._read,
            16: self._write,
            17: self._statfs,
            18: _nothing,
            20: self._flush,
            _INIT: self._init,
            28: self._read_directory,
            29: _nothing,
            30: self._flush_directory,
            38: _nothing,
            _BATCH_FORGET: self._batch_forget,
            43: self._fallocate,
            45: self._rename_how,
        }
        self._operations = {
            4: Operation.TRUNCATE,
            8: Operation.CREATE,
            9: Operation.CREATE,
            10: Operation.REMOVE,
            11: Operation.REMOVE,
            12: Operation.RENAME,
            13: Operation.CREATE,
            16: Operation.WRITE,
            20: Operation.FLUSH,
            30: Operation.FLUSH_DIRECTORY,
            43: Operation.WRITE,
            45: Operation.RENAME,
        }

    @staticmethod
    def parse(data: bytes) -> Request:
        """What was read of /dev/fuse."""
        _, opcode, unique, node, *_ = _IN.unpack_from(data)
        return Request(opcode, unique, node, data[_IN.size :])

    def operation(self, request: Request) -> Operation | None:
        """What kind of operation a request is; None when it changes and flushes nothing."""
        if request.opcode == 4 and not _SET.unpack_from(request.body)[0] & _SET_SIZE:
            return None
        return self._operations.get(request.opcode)

    def meet_faults(self, request: Request) -> tuple[int, float]:
        """The errno and delay that befall a request."""
        operation = self.operation(request)
        if operation is None:
            return 0, 0.0
        path = self._inode(request.node).path
        if operation in (Operation.CREATE, Operation.REMOVE):
            path = f"{path}/{os.fsdecode(_name_of(request))}"
        elif operation is Operation.RENAME:
            path = f"{path}/{os.fsdecode(request.body[(8 if request.opcode == 12 else 16) :].split(bytes(1))[1])}"
        return self._faults.meet(operation, path)

    def answer(self, request: Request, fault: int = 0) -> bytes | None:
        """Do a request, or let it fail with the errno `fault`; what to write to /dev/fuse, None: nothing."""
        answer = self._answers.get(request.opcode)
        number, body = 0, b""
        try:
            if self.operation(request) is not None:
                self.operation_count += 1
            if fault:
                self._fail(request)
                raise OSError(fault, "")
            if answer is None:
                raise OSError(errno.ENOSYS, "")
            body = answer(request)
        except OSError as error:
            number = error.errno or errno.EIO
        if request.opcode in _SILENT:
            return None
        return _OUT.pack(_OUT.size + len(body), -number, request.unique) + body

    def _fail(self, request: Request) -> None:
        """What a failing operation does all the same."""
        inode = self._inode(request.node)
        if request.opcode == 20 and isinstance(inode, File):
            inode.fail_to_flush(self._chance)

    def _inode(self, number: int) -> Inode:
        inode = self.tree.known.get(number)
        if inode is None:
            raise OSError(errno.ESTALE, "")
        return inode

    def _directory(self, number: int) -> Directory:
        inode = self._inode(number)
        if not isinstance(inode, Directory):
            raise OSError(errno.ENOTDIR, "")
        return inode

    def _file(self, number: int) -> File:
        inode = self._inode(number)
        if not isinstance(inode, File):
            raise OSError(errno.EISDIR, "")
        return inode

    def _init(self, request: Request) -> bytes:
        major, _, read_ahead, flags = struct.unpack_from("<IIII", request.body)
        pages = WRITE_BYTES_MAX // PAGE_BYTES
        return _INIT_OUT.pack(major, 31, read_ahead, flags & _FLAGS, 64, 48, WRITE_BYTES_MAX, 1, pages, 0, 0)

    # Names

    def _lookup(self, request: Request) -> bytes:
        return self._told(self.tree.lookup(self._directory(request.node), request.body.rstrip(b"\0")))

    def _make_node(self, request: Request) -> bytes:
        (mode,) = struct.unpack_from("<I", request.body)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, "")
        return self._told(self.tree.make(self._directory(request.node), _name_of(request), mode))

    def _make_directory(self, request: Request) -> bytes:
        (mode,) = struct.unpack_from("<I", request.body)
        made = self.tree.make(self._directory(request.node), _name_of(request), stat.S_IFDIR | mode)
        return self._told(made)

    def _link(self, request: Request) -> bytes:
        (number,) = struct.unpack_from("<Q", request.body)
        inode = self._inode(number)
        self.tree.link(inode, self._directory(request.node), _name_of(request))
        return self._told(inode)

    def _unlink(self, request: Request) -> bytes:
        self.tree.remove(self._directory(request.node), _name_of(request), is_directory=False)
        return b""

    def _remove_directory(self, request: Request) -> bytes:
        self.tree.remove(self._directory(request.node), _name_of(request), is_directory=True)
        return b""

    def _rename(self, request: Request) -> bytes:
        return self._rename_to(request, 8, 0)

    def _rename_how(self, request: Request) -> bytes:
        _, flags = struct.unpack_from("<QI", request.body)
        if flags & ~_RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "")
        return self._rename_to(request, 16, flags)

    def _rename_to(self, request: Request, names_at: int, flags: int) -> bytes:
        (target,) = struct.unpack_from("<Q", request.body)
        name, new_name = request.body[names_at:].split(b"\0")[:2]
        source, to = self._directory(request.node), self._directory(target)
        self.tree.rename(source, name, to, new_name, replaces=not flags & _RENAME_NOREPLACE)
        return b""

    def _read_directory(self, request: Request) -> bytes:
        _, offset, size, *_ = _READ.unpack_from(request.body)
        directory = self._directory(request.node)
        found = bytearray()
        for place, (name, inode) in enumerate(list(directory.entries.items())[offset:], start=offset + 1):
            packed = _ENTRY_OF_DIRECTORY.pack(inode.number, place, len(name), inode.mode >> 12) + name
            packed += bytes(-len(packed) % 8)
            if len(found) + len(packed) > size:
                break
            found += packed
        return bytes(found)

    def _forget(self, request: Request) -> bytes:
        self.tree.forget(request.node, *struct.unpack_from("<Q", request.body))
        return b""

    def _batch_forget(self, request: Request) -> bytes:
        (count,) = struct.unpack_from("<I", request.body)
        for number, lookups in struct.iter_unpack("<QQ", request.body[8 : 8 + 16 * count]):
            self.tree.forget(number, lookups)
        return b""

    # Attributes and bytes

    def _get_attributes(self, request: Request) -> bytes:
        return _ATTRIBUTES_VALID.pack(_VALID_SECONDS, 0, 0) + _attributes(self._inode(request.node))

    def _set_attributes(self, request: Request) -> bytes:
        valid, _, _, size, _, _, mtime, _, _, mtime_ns, _, mode, _, uid, gid, _ = _SET.unpack_from(request.body)
        inode = self._inode(request.node)
        if valid & _SET_SIZE:
            self.tree.truncate(self._file(request.node), size)
        if valid & _SET_MODE:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(mode)
        if valid & _SET_UID:
            inode.uid = uid
        if valid & _SET_GID:
            inode.gid = gid
        if valid & _SET_MTIME and not valid & _SET_MTIME_NOW:
            inode.modified_ns = mtime * 1_000_000_000 + mtime_ns
        return self._get_attributes(request)

    def _read(self, request: Request) -> bytes:
        _, offset, size, *_ = _READ.unpack_from(request.body)
        return bytes(self._file(request.node).data[offset : offset + size])

    def _write(self, request: Request) -> bytes:
        _, offset, size, *_ = _READ.unpack_from(request.body)
        data = request.body[_READ.size : _READ.size + size]
        return struct.pack("<II", self.tree.write(self._file(request.node), offset, data), 0)

    def _fallocate(self, request: Request) -> bytes:
        _, offset, size, mode, _ = _FALLOCATE.unpack_from(request.body)
        if mode & ~_KEEP_SIZE:
            raise OSError(errno.EOPNOTSUPP, "")
        file = self._file(request.node)
        if not mode and offset + size > file.size:
            self.tree.truncate(file, offset + size)
        return b""

    def _flush(self, request: Request) -> bytes:
        self._file(request.node).flush()
        return b""

    def _flush_directory(self, request: Request) -> bytes:
        self.tree.flush_directory(self._directory(request.node))
        return b""

    def _statfs(self, request: Request) -> bytes:
        free = self.tree.free_bytes // PAGE_BYTES
        total = (self.tree.used_bytes + self.tree.free_bytes) // PAGE_BYTES
        return _STATFS.pack(total, free, free, 1 << 20, 1 << 20, PAGE_BYTES, 255, PAGE_BYTES, 0)

    def _told(self, inode: Inode) -> bytes:
        self.tree.know(inode)
        return _ENTRY.pack(inode.number, 0, _VALID_SECONDS, _VALID_SECONDS, 0, 0) + _attributes(inode)


def _nothing(request: Request) -> bytes:
    return b""


def _name_of(request: Request) -> bytes:
    """The name of an entry that is made or removed."""
    start = {8: 16, 9: 8, 13: 8}.get(request.opcode, 0)
    return request.body[start:].split(b"\0", 1)[0]


def _attributes(inode: Inode) -> bytes:
    seconds, ns = divmod(inode.modified_ns, 1_000_000_000)
    links = 2 if isinstance(inode, Directory) else inode.link_count
    return _ATTRIBUTES.pack(
        inode.number, inode.size, -(-inode.size // SECTOR), seconds, seconds, seconds, ns, ns, ns,
        inode.mode, links, inode.uid, inode.gid, 0, PAGE_BYTES, 0,
    )  # fmt: skip


SECTOR = 512
