"""How much memory a computation needed."""

from __future__ import annotations


def peak_resident_bytes(reset: bool = False) -> int:
    """The largest resident size of this process since the last reset, in bytes.

    Args:
        reset: forget what was before, and start from the present size. Works on Linux only; elsewhere the peak since
            the process began is returned in any case.
    """
    try:
        if reset:
            with open("/proc/self/clear_refs", "w") as control:
                control.write("5")
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
