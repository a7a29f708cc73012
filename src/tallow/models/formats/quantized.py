"""How quantized weights lie in a model directory.

`config.json` has a section `quantization_config` that names the quantized modules; the weights file holds
`<module>.codes` and `<module>.scales` under our names for them, and everything else under the hub's names. Bits and
group size of each module follow from its inputs and its tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from tallow.errors import DataError
from tallow.kernels.quantized import QuantizedWeight
from tallow.models.decoder import Decoder, Embedding
from tallow.models.families import TensorMap
from tallow.models.quantization import quantized_modules, replace_weight

SECTION = "quantization_config"
METHOD = "tallow"


def quantization_config(model: Decoder) -> dict[str, Any]:
    """The section of `config.json`; empty for a model that is not quantized.

    `bits` and `group_size` are those of most of the modules, `embedding_bits` those of the token embedding.
    """
    weights = {name: module.weight for name, module in quantized_modules(model).items()}
    if not weights:
        return {}
    ((bits, group_size), _), *_ = Counter((weight.bits, weight.group_size) for weight in weights.values()).most_common()
    return {
        SECTION: {
            "quant_method": METHOD,
            "bits": bits,
            "group_size": group_size,
            "embedding_bits": weights["embed"].bits if "embed" in weights else None,
            "modules": list(weights),
        }
    }


def quantized_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the quantized modules, from the values of `config.json`.

    Raises:
        DataError: The weights are quantized in another tool's format, or the section is broken.
    """
    section = config.get(SECTION)
    if section is None:
        return []
    method = section.get("quant_method") if isinstance(section, dict) else None
    if method != METHOD:
        raise DataError(
            f"the model is quantized by {method!r}, which is not supported",
            "take the unquantized model and compress it with tallow",
        )
    names = section.get("modules")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{SECTION} in config.json does not name its modules", "restore it or compress the model anew")
    return names


def quantized_tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Codes and scales, by the names that they are stored under."""
    for name, module in quantized_modules(model).items():
        yield f"{name}.codes", module.codes
        yield f"{name}.scales", module.scales


def unquantized(tensor_maps: Iterable[TensorMap], parameters: Container[str]) -> Iterator[TensorMap]:
    """The maps of those tensors that are stored as floating point.

    Where the hub fuses several of our parameters in one tensor and only some of them are quantized, the
    others (those in `parameters`) are stored one by one under our names.
    """
    for tensor_map in tensor_maps:
        if all(name in parameters for name in tensor_map.ours):
            yield tensor_map
        else:
            yield from (TensorMap(name, (name,)) for name in tensor_map.ours if name in parameters)


def replace_stored(model: Decoder, name: str, read: Callable[[str], Tensor]) -> None:
    """Put a quantized module, its weight read from the stored tensors, in the place of the module `name`.

    Raises:
        DataError: A tensor is missing, or they do not fit the model.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear | Embedding):
        raise DataError(f"{SECTION} in config.json names {name!r}, which the model does not have", "restore the model")
    rows, columns = module.weight.shape
    codes, scales = read(f"{name}.codes"), read(f"{name}.scales")
    group_size = columns // scales.shape[1] if scales.dim() == 2 and scales.shape[1] else 0
    bits = codes.shape[1] * 8 // columns if codes.dim() == 2 else 0
    weight = QuantizedWeight(codes, scales, bits, group_size)
    if (weight.out_features, weight.in_features) != (rows, columns):
        raise DataError(
            f"the codes of {name} are of a weight {weight.out_features} × {weight.in_features}, "
            f"but config.json says {rows} × {columns}",
            "config.json and the weights are not of the same model",
        )
    replace_weight(model, name, weight)
