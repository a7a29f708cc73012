"""`tiny.bin` was trained and saved by fastText (0.9.2) on four languages' UDHR, a text in the public domain:
softmax, 3 dimensions, 1- and 2-grams of words, n-grams of 2 and 3 characters, 400 buckets."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.language.label_tree import label_tree
from tallow.data.language.model_file import read_label_model
from tallow.errors import DataError
from tallow.kernels.dispatch import Versions, using
from tallow.kernels.text import native
from tallow.kernels.text.labels import Looks, most_probable_labels

TINY = Path(__file__).parent / "tiny.bin"
ALL = Looks(1 << 30, 1, 0)

# what fastText's own `predict` says
OF_TINY = [
    ("everyone has the right to life", ["eng", "cmn"], [0.996237, 0.002624]),
    ("Toute personne a droit", ["fra", "eng"], [0.998249, 0.001658]),
    ("каждый человек имеет право", ["rus", "cmn"], [0.995469, 0.004476]),
    ("人人有权享有生命", ["cmn", "eng"], [0.995372, 0.002464]),
    ("", ["cmn"], [1.0]),
    ("the right of la personne", ["eng", "fra"], [0.870945, 0.128363]),
    ("42 ?!", ["cmn", "rus"], [0.827434, 0.123447]),
]
OF_LID176 = [
    ("All human beings are born free and equal in dignity and rights.", ["en", "id"], [0.982617, 0.001371]),
    ("Все люди рождаются свободными и равными.", ["ru", "hy"], [0.995973, 0.00104]),
    ("人人生而自由,在尊严和权利上一律平等。", ["ja", "ru"], [0.959581, 0.027305]),
    ("تمام افراد بشر آزاد به دنیا می‌آیند", ["fa", "ar"], [0.952313, 0.017485]),
    ("すべての人間は、生まれながらにして自由", ["ja", "ru"], [0.999386, 0.000309]),
    ("Hello, Welt! How geht es dir?", ["de", "es"], [0.801255, 0.041629]),
    ("ok", ["en", "pl"], [0.629765, 0.14195]),
    ("1234 :-)", ["es", "fr"], [0.505774, 0.09539]),
    ("NASA", ["ar", "en"], [0.0877, 0.082842]),
    ("¡Hola! ¿Qué tal estás?", ["es", "gl"], [0.998399, 0.000941]),
    ("naïve café\u00a0здравствуй 世界", ["ja", "uk"], [0.59078, 0.274579]),
]


def check(path: Path, recorded: list[tuple[str, list[str], list[float]]]) -> None:
    model = read_label_model(path)
    labels, probabilities = most_probable_labels(pa.array([text for text, *_ in recorded]), model, ALL)
    names = [[model.labels[label].decode()[9:] for label in row if label >= 0] for row in labels]
    assert names == [expected for _, expected, _ in recorded]
    expected = [[*values, 0.0][:2] for *_, values in recorded]
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("versions", ["fast", "reference"])
def test_a_softmax_model_as_fasttext_does(versions: Versions) -> None:
    with using(versions):
        check(TINY, OF_TINY)


@pytest.mark.shared_data
@pytest.mark.parametrize("versions", ["fast", "reference"])
def test_a_rounded_and_pruned_tree_model_as_fasttext_does(versions: Versions, shared_data: Callable[..., Path]) -> None:
    with using(versions):
        check(shared_data("langid_model", "lid.176.ftz"), OF_LID176)


def rounded_model(width: int = 5, step: int = 2) -> tuple[bytes, np.ndarray]:
    """A `.ftz` with a last part that is shorter than the others, norms, and one bucket kept; and its rows."""
    generator = np.random.default_rng(1)
    head = struct.pack("<2i12id", 793712314, 12, width, 5, 5, 1, 5, 1, 3, 3, 100, 2, 3, 100, 1e-4)
    words = b"".join(
        word + b"\0" + struct.pack("<qb", count, kind)
        for word, count, kind in [(b"aa", 5, 0), (b"__label__x", 3, 1), (b"__label__y", 2, 1)]
    )
    dictionary = struct.pack("<3i2q", 3, 1, 2, 8, 1) + words + struct.pack("<2i", 77, 0)
    parts = -(-width // step)
    last = width - (parts - 1) * step
    codes = generator.integers(0, 256, (2, parts), dtype=np.uint8)
    centroids = generator.normal(size=256 * width).astype("<f4")
    norms, norm_values = generator.integers(0, 256, 2, dtype=np.uint8), generator.normal(size=256).astype("<f4")
    inputs = struct.pack("<?2qi", True, 2, width, codes.size) + codes.tobytes()
    inputs += struct.pack("<4i", width, parts, step, last) + centroids.tobytes() + norms.tobytes()
    inputs += struct.pack("<4i", 1, 1, 1, 1) + norm_values.tobytes()
    outputs = struct.pack("<2q", 2, width) + generator.normal(size=(2, width)).astype("<f4").tobytes()
    rows = [
        np.concatenate(
            [
                centroids[part * 256 * step :][code * size :][:size]
                for part, (code, size) in enumerate(zip(row, sizes, strict=True))
            ]
        )
        for row in codes.tolist()
        for sizes in [[step] * (parts - 1) + [last]]
    ]
    return head + dictionary + b"\1" + inputs + b"\0" + outputs, np.stack(rows) * norm_values[norms][:, None]


def test_rounded_rows(tmp_path: Path) -> None:
    raw, rows = rounded_model()
    (tmp_path / "model.ftz").write_bytes(raw)
    model = read_label_model(tmp_path / "model.ftz")
    np.testing.assert_array_equal(model.inputs.view(np.float32), rows)
    assert model.kept is not None
    assert (model.kept[0].tolist(), model.kept[1].tolist()) == ([77], [0])
    assert model.labels == [b"__label__x", b"__label__y"]


def test_rows_that_would_take_much_memory_are_refused(tmp_path: Path) -> None:
    """One code for each row of 8,192 numbers: as a whole the file is no larger than they say, 1 GB from 8 MB."""
    count, width = 33_000, 8192
    raw, _ = rounded_model(width, width)
    head = raw.index(struct.pack("<?2qi", True, 2, width, 2))
    many = struct.pack("<?2qi", False, count, width, count) + bytes(count)
    (tmp_path / "model.ftz").write_bytes(raw[:head] + many + raw[head + 21 + 2 :])
    with pytest.raises(DataError, match=r"would take 1,081,344,000 bytes in memory") as caught:
        read_label_model(tmp_path / "model.ftz")
    assert str(tmp_path / "model.ftz") in caught.value.message


@pytest.mark.parametrize(("words", "kept"), [(2**31, -1), (0, 2**31)])
def test_tables_of_more_entries_than_can_be_numbered_are_refused(words: int, kept: int) -> None:
    extension = native()
    if extension is None:
        pytest.skip("the references count without end")
    offsets = np.zeros(2, np.int64)
    with pytest.raises(RuntimeError, match="too many entries"):
        extension.LabelModel((0, offsets.ctypes.data, words, 0), (0, 0, kept), 0, (0, 0, 1), 0, (0, 0, 1, 1), 0)


@pytest.mark.parametrize("versions", ["fast", "reference"])
@given(st.data())
def test_hostile_files_are_refused_or_harmless(
    versions: Versions, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(data.draw(st.sampled_from([TINY.read_bytes(), rounded_model()[0]])))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.one_of(st.integers(0, 160), st.integers(0, len(raw) - 8)))
        raw[place : place + 4] = data.draw(
            st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"\xff" * 4, b"\xff\xff\xff\x7f"]))
        )
    path = tmp_path_factory.mktemp("hostile") / "model"
    path.write_bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])
    try:
        model = read_label_model(path)
    except DataError:
        return
    with using(versions):
        labels, probabilities = most_probable_labels(pa.array(["aa the right", "", "人人 有权"]), model, ALL)
    assert (labels < len(model.labels)).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("not a model at all")
    raw = bytearray(TINY.read_bytes())
    raw[32:36] = struct.pack("<i", 4)
    (tmp_path / "ova").write_bytes(raw)
    for name, message in [
        ("empty", "not a fastText model"),
        ("text", "not a fastText model"),
        ("ova", "loss ova"),
        ("none", "does not exist"),
    ]:
        with pytest.raises(DataError, match=message):
            read_label_model(tmp_path / name)


def test_the_tree_joins_the_rarest() -> None:
    assert label_tree(np.array([8, 4, 2, 1])).tolist() == [[3, 2], [4, 1], [5, 0]]
    assert label_tree(np.array([3, 3, 3])).tolist() == [[2, 1], [0, 3]]
    assert label_tree(np.array([1])).shape == (0, 2)
