"""NumPy archives: a file of a megabyte can hold zeros that unpack to a thousand times as much."""

import zipfile
from typing import IO

from jaxllm.errors import UserError

MAX_RATIO = 20  # of the unpacked bytes to those of the file
SMALL = 64 << 20  # bytes that may be unpacked in any case


def check_archive(stream: IO[bytes]) -> None:
    """Checks the size of the arrays in an `.npz` file, and rewinds it.

    Raises:
        UserError: unpacked, the arrays are far larger than the file.
        zipfile.BadZipFile: the file is no archive.
    """
    with zipfile.ZipFile(stream) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    size = stream.seek(0, 2)
    stream.seek(0)
    if unpacked > max(SMALL, MAX_RATIO * size):
        raise UserError(
            f"its arrays have {unpacked:,} bytes unpacked, more than {MAX_RATIO} times the "
            f"{size:,} of the file: write it with numpy.savez, which does not compress"
        )
