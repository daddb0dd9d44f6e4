"""A disk that loses its power, fills up, fails and is slow when it is told to: a file system in memory, by FUSE.

What runs on it is the real thing, untouched: whatever it writes, maps, renames or flushes, by whichever library, goes
through the kernel to here. `FaultyDisk` (`disk`) starts it in a process of its own, and says what goes wrong.

    disk        the handle: mount, power off and on, faults, room
    process     the process behind it: one loop over the kernel's requests and the handle's orders
    kernel      the kernel's protocol: requests in, answers out
    tree        files and directories, each as it is now and as it is flushed; what a power cut leaves of them
    faults      which operation fails or waits, and how

What it promises, each with a test in tests/faultydisk/:

    K1. What was flushed outlives every power cut: a file's bytes and length by its own fsync or fdatasync, an entry of
        a directory by the directory's.
    K2. What was not flushed may be gone after a power cut: pages and parts of pages, lengths, entries; each by itself,
        in any order, or all of it. A rename is there or not, never half.
    K3. A flush that fails throws away part of what it was to flush, for good: the next one succeeds without it, as
        on Linux.
    K4. From the moment the power is off nothing is done and nothing answered any more.
    K5. With the same seed and the same operations a power cut leaves the same.

It needs /dev/fuse and the right to mount: root, or CAP_SYS_ADMIN in its own namespace. It speaks the kernel's protocol
itself, so nothing else is needed.
"""
