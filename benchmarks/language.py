"""Language identification: accuracy by language, and speed of one core, beside py3langid and fastText's own code.

    .venv/bin/python benchmarks/language.py [--model lid.176.ftz] [--udhr udhr2.zip] [--characters N] [--json]

Texts are successive pieces of the Universal Declaration of Human Rights in the languages that both models know, of
about N characters (whole lines, cut where they are longer), the first 40 of each language. A text counts as right where
the first label is its language. Speed is in megabytes of UTF-8 a CPU second, on these texts and on the whole
declarations, of which tallow looks at 3,000 bytes (its default), and at everything. Peers that are not installed are
left out: `pip install py3langid fasttext-predict`. py3langid is asked for every text by itself; it has no other way.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tallow.data.language.identify import LanguageConfig, find_language_model, identify, load_language_model

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MOST_TEXTS = 40

# files of the collection (ISO 639-3, and a script or region) and the code that lid.176 and py3langid give them
CODES = """
afr:af amh:am arb:ar azj_latn:az bel:be ben:bn bos_latn:bs bre:br bul:bg cat:ca ces:cs cmn_hans:zh cym:cy dan:da
deu_1901:de ell_monotonic:el eng:en epo:eo est:et eus:eu fin:fi fra:fr gle:ga glg:gl guj:gu hat_popular:ht
heb:he hin:hi hrv:hr hun:hu hye:hy ind:id isl:is ita:it jav:jv jpn:ja kan:kn kat:ka kaz:kk khk:mn khm:km kir:ky
kor:ko lao:lo lat:la lav:lv lit:lt ltz:lb mal:ml mar:mr mkd:mk mlt:mt nep:ne nld:nl nno:nn nob:no pan:pa
pes_1:fa plt:mg pol:pl por_PT:pt ron:ro rus:ru slk:sk slv:sl spa:es srp_cyrl:sr swe:sv swh:sw tam:ta tgl:tl
tha:th tur:tr uig_arab:ug ukr:uk urd:ur vie:vi wln:wa
"""
LANGUAGES = {name: code for name, _, code in (pair.partition(":") for pair in CODES.split())}
SAME = {"nb": "no"}

Identifier = Callable[[Sequence[str]], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--udhr", type=Path, default=DATA / "langid_udhr" / "udhr2.zip")
    parser.add_argument("--characters", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    shared = DATA / "langid_model" / "lid.176.ftz"
    config = LanguageConfig(model=options.model or (shared if shared.exists() else None))
    identifiers = {"tallow": by_tallow(config), "tallow, everything": by_tallow(everything(config)), **peers(config)}

    declarations = read_declarations(options.udhr)
    texts = {name: cut(text, options.characters)[:MOST_TEXTS] for name, text in declarations.items()}
    result: dict[str, Any] = {"characters": options.characters, "accuracy": {}, "mb_per_s": {}, "mb_per_s_whole": {}}
    for who, ask in identifiers.items():
        ask(["a warm start"])
        result["mb_per_s"][who], found = timed(ask, [text for pieces in texts.values() for text in pieces])
        result["mb_per_s_whole"][who], _ = timed(ask, list(declarations.values()))
        answers = iter(found)
        result["accuracy"][who] = {
            name: sum(SAME.get(answer := next(answers), answer) == LANGUAGES[name] for _ in pieces) / len(pieces)
            for name, pieces in texts.items()
        }
    print(json.dumps(result, indent=2) if options.json else table(result, texts))


def everything(config: LanguageConfig) -> LanguageConfig:
    return config.model_copy(update={"sample_bytes": 1 << 30, "pieces": 1, "letters": 0})


def by_tallow(config: LanguageConfig) -> Identifier:
    model = load_language_model(config)
    return lambda texts: identify(pa.array(texts), model, config)["language"].to_pylist()


def peers(config: LanguageConfig) -> dict[str, Identifier]:
    found: dict[str, Identifier] = {}
    try:
        classify = importlib.import_module("py3langid").classify
        found["py3langid"] = lambda texts: [classify(text)[0] for text in texts]
    except ImportError:
        pass
    try:
        model = importlib.import_module("fasttext").load_model(str(find_language_model(config)))
        found["fastText"] = lambda texts: [model.predict(text.replace("\n", " "))[0][0][9:] for text in texts]
    except ImportError:
        pass
    return found


def read_declarations(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(f"udhr2/{name}.txt").decode() for name in LANGUAGES}


def cut(text: str, characters: int) -> list[str]:
    """Successive pieces of a text of at least so many characters, of whole lines, and of twice as many at most."""
    pieces, piece = list[str](), ""
    for line in text.splitlines():
        piece = f"{piece} {line.strip()}".strip()
        if len(piece) >= characters:
            pieces.append(piece[: 2 * characters])
            piece = ""
    return pieces


def timed(ask: Identifier, texts: Sequence[str]) -> tuple[float, list[str]]:
    """Megabytes a CPU second in the fastest of three rounds, and the answers."""
    seconds, found = list[float](), list[str]()
    for _ in range(3):
        start = time.process_time()
        found = ask(texts)
        seconds.append(time.process_time() - start)
    return sum(len(text.encode()) for text in texts) / 1e6 / min(seconds), found


def table(result: dict[str, Any], texts: dict[str, list[str]]) -> str:
    whos = list(result["accuracy"])
    lines = ["| language | texts | " + " | ".join(whos) + " |", "|---" * (len(whos) + 2) + "|"]
    for name, pieces in texts.items():
        shares = " | ".join(f"{result['accuracy'][who][name]:.3f}" for who in whos)
        lines.append(f"| {name} → {LANGUAGES[name]} | {len(pieces)} | {shares} |")
    means = [sum(result["accuracy"][who].values()) / len(texts) for who in whos]
    lines.append(f"| mean | {sum(map(len, texts.values()))} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
    for key, what in (("mb_per_s", "MB/s, these texts"), ("mb_per_s_whole", "MB/s, whole declarations")):
        lines.append(f"| {what} | | " + " | ".join(f"{result[key][who]:.1f}" for who in whos) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
