"""The gate finds what it claims, on hand-made pictures and on VQA-RAD's real ones."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from medvqa.config.contamination import Contamination, ContaminationConfig
from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.contamination.gate import allowed_rows, measure, refusal
from medvqa.contamination.near import MAX_DISTANCE, NearIndex
from medvqa.contamination.overlap import find_overlap
from medvqa.contamination.picture_hash import contents_sha256
from medvqa.data.example import Example
from medvqa.data.image import ImageBytes, ImageFile
from medvqa.data.pool import load_examples
from medvqa.data.storage.cache import Cache

CONFIG = ContaminationConfig()


def picture(seed, size=(300, 240)):
    """Smooth random shapes with some texture, unlike those of another seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def row(name, image, *, question="What is it?", answers=("a",), images=()):
    sources = (ImageBytes(name, image), *images) if isinstance(image, bytes) else (image,)
    return Example(
        id=f"row-{name}",
        images=sources,
        question=question,
        answers=tuple(answers),
        answer_type="open",
        type_origin="rule",
        source="handmade",
        split="train",
        image_ids=tuple(source.name for source in sources),
    )


def overlap(training, evaluation, *, cache, max_distance=CONFIG.max_distance):
    with Cache(cache) as hashes:
        return find_overlap(training, {"test": evaluation}, hashes, max_distance=max_distance)


def vqa_rad(shared, split):
    path = str(shared / "data" / "vqa_rad")
    return load_examples(SourceConfig(name="vqa_rad", path=path, split=split), seed=0)


def test_the_disjoint_split_shares_nothing(shared):
    pool = vqa_rad(shared, "train_disjoint")
    found = measure(CONFIG, pool, {"test": vqa_rad(shared, "test_disjoint")})
    assert (found.sets[0].num_shared, found.sets[0].num_items) == (0, 0)
    assert refusal(CONFIG, found) is None


def test_questions_count_as_items_only_with_the_same_picture_and_answer(tmp_path):
    one, two, other = (encoded(picture(seed)) for seed in (1, 2, 3))
    training = [
        row("one", one, question="Is the liver shown?", answers=["yes"]),
        row("two", two, question="Which organ?", answers=["heart"]),
        row("pair", other, question="The same?", images=(ImageBytes("one again", one),)),
    ]
    evaluation = [
        row("a", one, question="is THE liver shown", answers=["Yes."]),  # the same item
        row("b", one, question="Is the liver shown?", answers=["no"]),  # another answer
        row("c", other, question="Which organ?", answers=["lung", "heart"]),  # text alone
        row("d", encoded(picture(9)), question="Unasked?"),
    ]
    found = overlap(training, evaluation, cache=tmp_path)
    (test,) = found.sets
    assert (test.num_pictures, test.num_shared) == (3, 2)
    assert (test.num_questions_on_shared, test.num_items, test.num_text_repeats) == (3, 1, 1)
    assert found.training_rows == {"row-one", "row-pair"}


def test_blank_pictures_are_compared_by_their_bytes_alone(tmp_path):
    grey, black = (encoded(Image.new("L", (64, 64), tone)) for tone in (90, 0))
    found = overlap([row("grey", grey)], [row("black", black)], cache=tmp_path)
    assert (found.sets[0].num_shared, found.num_blank) == (0, 2)
    found = overlap([row("grey", grey)], [row("copy", grey)], cache=tmp_path)
    assert found.sets[0].num_same_file == 1


def test_the_index_finds_exactly_the_pairs_that_comparing_all_finds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (300, 256), dtype=np.uint8)
    near = np.repeat(bits[:100], 8, axis=0)
    for line, number in zip(near, rng.integers(0, 45, len(near)), strict=True):
        line[rng.choice(256, number, replace=False)] ^= 1
    # The hardest: the bits that differ are spread over all sixteen words, as evenly as can be.
    for line, number in zip(near[::8], [15, 16, 17, 31, 32] * 20, strict=True):
        line[:] = bits[0]
        line[[16 * (n % 16) + n // 16 for n in range(number)]] ^= 1
    stored, queries = (np.packbits(b, axis=1).view(np.uint64) for b in (bits, near))
    distances = (near[:, None] != bits[None]).sum(axis=2)
    for max_distance in (0, 15, 16, MAX_DISTANCE):
        query, index, distance = NearIndex(stored, max_distance=max_distance).search(queries)
        expected = np.argwhere(distances <= max_distance)
        assert sorted(zip(query, index, strict=True)) == [tuple(pair) for pair in expected]
        assert (distance == distances[query, index]).all()


def old_file(path, data):
    """Write a file that was changed so long ago that its fingerprint may be kept."""
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))
    return ImageFile(path)


def test_a_file_that_was_replaced_is_hashed_again_though_size_and_date_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("medvqa.data.image.SETTLED_S", 0.0)
    data = encoded(picture(1), "BMP"), encoded(picture(2), "BMP")
    assert len(data[0]) == len(data[1])
    evaluation = [row("test", data[0])]
    source = old_file(tmp_path / "a.bmp", data[0])
    assert overlap([row("a", source)], evaluation, cache=tmp_path).sets[0].num_shared == 1
    old_file(tmp_path / "a.bmp", data[1])
    assert overlap([row("a", source)], evaluation, cache=tmp_path).sets[0].num_shared == 0


def test_a_file_that_changes_while_it_is_hashed_does_not_lend_its_hashes_to_another(tmp_path):
    first, second = encoded(picture(1)), encoded(picture(2))

    class Changing(ImageBytes):
        def fingerprint(self):
            return "taken before the change"

    with Cache(tmp_path) as cache:
        contents_sha256([Changing("a", first)], cache)
    overlap([row("a", Changing("a", second))], [], cache=tmp_path)
    evaluation = [row("test", second)]
    assert overlap([row("b", first)], evaluation, cache=tmp_path).sets[0].num_shared == 0


def test_a_known_file_is_not_read_again_and_a_new_one_is_not_trusted_yet(tmp_path, monkeypatch):
    source = old_file(tmp_path / "a.png", encoded(picture(1)))
    assert source.fingerprint() is None  # its change time cannot be set back
    monkeypatch.setattr("medvqa.data.image.SETTLED_S", 0.0)
    rows = [row("a", source)], [row("b", encoded(picture(2)))]
    first = overlap(*rows, cache=tmp_path)
    monkeypatch.setattr(ImageFile, "read", lambda self: pytest.fail("read again"))
    assert overlap(*rows, cache=tmp_path).sets == first.sets


def test_a_damaged_cache_costs_a_warning_and_nothing_else(tmp_path, caplog):
    (tmp_path / "cache.sqlite").write_bytes(b"no database at all" * 100)
    same = encoded(picture(1))
    assert overlap([row("a", same)], [row("b", same)], cache=tmp_path).sets[0].num_shared == 1
    assert "cache.sqlite: file is not a database; delete this file" in caplog.text


def test_an_unreadable_picture_is_refused_by_name_and_counted_in_a_report(tmp_path):
    broken = encoded(picture(1), "JPEG")[:400]
    rows = [row("broken", broken), row("good", encoded(picture(2)))]
    found = overlap(rows, [row("test", encoded(picture(3)))], cache=tmp_path)
    with pytest.raises(UserError, match=r"handmade/row-broken: image broken is .* \(1 such"):
        allowed_rows(CONFIG, rows, found, expected=False)
    report = ContaminationConfig(action=Contamination.report)
    assert allowed_rows(report, rows, found, expected=False) == rows


def test_a_pool_that_would_lose_every_row_is_refused(tmp_path):
    rows = [row("a", encoded(picture(1)))]
    found = overlap(rows, rows, cache=tmp_path)
    with pytest.raises(UserError, match="leaves no training row"):
        allowed_rows(ContaminationConfig(action=Contamination.drop), rows, found, expected=False)
