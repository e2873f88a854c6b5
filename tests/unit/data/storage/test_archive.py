"""Members of ZIP files that cannot be read are one line with the archive's name and the fix."""

import struct
import zipfile

import pytest

from medvqa.config.errors import UserError
from medvqa.data.storage import archive as module
from medvqa.data.storage.archive import ZipImage, open_once


def packed(folder, *, method=None, flag=0, data=b"picture" * 99):
    """Write one member; the method and the flag are claimed in both headers."""
    path = folder / "imgs.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", data)
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark) + place
        flags, stated = struct.unpack_from("<HH", content, at)
        struct.pack_into("<HH", content, at, flags | flag, stated if method is None else method)
    path.write_bytes(content)
    open_once.cache_clear()
    return ZipImage(path, "a.jpg")


@pytest.mark.parametrize(
    "claimed", [{"method": 9}, {"method": 99}, {"flag": 1}], ids=["deflate64", "aes", "encrypted"]
)
def test_a_method_or_a_password_that_python_lacks_names_archive_and_fix(tmp_path, claimed):
    with pytest.raises(UserError, match=r"imgs\.zip:a\.jpg: .*pack it again with plain Deflate"):
        packed(tmp_path, **claimed).read()


def test_a_member_is_never_read_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"imgs\.zip:a\.jpg has more than 100 bytes"):
        packed(tmp_path).read()
    assert packed(tmp_path, data=b"a" * 100).read() == b"a" * 100
