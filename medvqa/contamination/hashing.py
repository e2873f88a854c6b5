"""Image sources -> their hashes: read once, by several threads, from the cache where it knows."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from medvqa.config.errors import UserError
from medvqa.contamination.hash_cache import HashCache
from medvqa.contamination.picture_hash import perceptual_hashes
from medvqa.data.example import Fingerprinted, ImageSource


@dataclass(frozen=True)
class HashedPicture:
    """What the gate knows of one picture.

    Attributes:
        hashes: See `perceptual_hashes`; empty for a picture without contrast.
        error: Why it cannot be read; then there are no hashes.
    """

    name: str
    sha256: bytes
    hashes: bytes
    error: str | None = None


def hash_pictures(
    sources: Sequence[ImageSource], cache: HashCache, *, mirrored: bool
) -> Iterator[HashedPicture]:
    """Yield one result per source, in order; a picture that cannot be read yields its error."""
    # Decoding and scaling leave the interpreter's lock, so threads use all cores.
    with _threads() as pool:
        yield from pool.map(lambda source: _hash(source, cache, mirrored=mirrored), sources)


def contents_sha256(sources: Sequence[ImageSource], cache: HashCache) -> str:
    """Return a hash over the bytes of the pictures, in order; one that cannot be read has none."""
    with _threads() as pool:
        parts = pool.map(lambda source: _content(source, cache), sources)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)))


def _content(source: ImageSource, cache: HashCache) -> bytes:
    fingerprint = source.fingerprint() if isinstance(source, Fingerprinted) else None
    known = None if fingerprint is None else cache.sha256(fingerprint)
    if known is not None:
        return known
    try:
        sha256 = hashlib.sha256(source.read()).digest()
    except UserError:  # the check of the pictures names it
        return bytes(32)
    cache.keep_file(fingerprint, sha256)
    return sha256


def _hash(source: ImageSource, cache: HashCache, *, mirrored: bool) -> HashedPicture:
    # Taken before reading: a file that changes meanwhile has another one next time.
    fingerprint = source.fingerprint() if isinstance(source, Fingerprinted) else None
    if fingerprint is not None:
        known = cache.sha256(fingerprint)
        hashes = None if known is None else cache.hashes(known, mirrored=mirrored)
        if known is not None and hashes is not None:
            return HashedPicture(source.name, known, hashes)
    try:
        data = source.read()
        sha256 = hashlib.sha256(data).digest()
        hashes = cache.hashes(sha256, mirrored=mirrored)
        if hashes is None:
            hashes = perceptual_hashes(source.name, data, mirrored=mirrored)
    except UserError as error:
        return HashedPicture(source.name, b"", b"", str(error))
    cache.keep_file(fingerprint, sha256)
    cache.keep_hashes(sha256, hashes, mirrored=mirrored)
    return HashedPicture(source.name, sha256, hashes)
