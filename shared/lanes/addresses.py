"""Where views begin in memory, read-only ones too, for which `ctypes` and NumPy have no quick way."""

import ctypes
from collections.abc import Iterable


class _Buffer(ctypes.Structure):
    """Py_buffer of CPython, its first fields; the others are not looked at."""

    _fields_ = (("address", ctypes.c_void_p), ("rest", ctypes.c_byte * 128))


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_int]
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.c_void_p]
_release_buffer.restype = None


def addresses(views: Iterable[memoryview]) -> list[int]:
    """Return the address of the first byte of each view."""
    buffer = _Buffer()
    at = ctypes.addressof(buffer)
    found: list[int] = []
    for view in views:
        _get_buffer(view, at, 0)
        found.append(buffer.address or 0)
        _release_buffer(at)
    return found
