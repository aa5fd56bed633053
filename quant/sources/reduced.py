"""A checkpoint whose vocabulary is reduced to the token ids that its model learned.

    token_ids.json   their list, R ids in ascending order
    *.safetensors    Hugging Face's layout, but embedding and unembedding have R + 1 rows: row r is that of
                     token_ids[r], the last one stands for every other id

It is read as if all rows were there: a small model of a large vocabulary takes a hundredth of the space.
"""

from pathlib import Path

import numpy as np

from quant.errors import QuantError
from quant.format.hf_names import EMBEDDING, UNEMBEDDING, Shape
from quant.format.json_file import read_json
from quant.format.numbers import Weights
from quant.format.safetensors import DAMAGED
from quant.sources.huggingface import HuggingFaceSource

TOKEN_IDS = "token_ids.json"
REDUCED = (EMBEDDING, UNEMBEDDING)


class ReducedSource(HuggingFaceSource):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self._path = folder / TOKEN_IDS
        try:
            self._token_ids = np.array(_read_token_ids(self._path, self.config.vocab), np.int64)
        except BaseException:
            self.close()
            raise

    @property
    def paths(self) -> list[Path]:
        return [self._path, *super().paths]

    def stored_shape(self, name: str) -> Shape:
        shape = super().stored_shape(name)
        return (len(self._token_ids) + 1, *shape[1:]) if name in REDUCED else shape

    def rows(self, name: str, start: int, stop: int) -> Weights:
        if name not in REDUCED:
            return super().rows(name, start, stop)
        last = len(self._token_ids)
        wanted = np.arange(start, stop)
        places = np.searchsorted(self._token_ids, wanted)
        known = np.append(self._token_ids, -1)[places] == wanted
        return self.read(self.locate(name)[0], 0, last + 1)[np.where(known, places, last)]


def _read_token_ids(path: Path, vocab: int) -> list[int]:
    """Raises: QuantError for a file that isn't a list of ids below `vocab` in ascending order."""
    try:
        token_ids = read_json(path)
    except OSError as error:
        raise QuantError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise QuantError(f"{path}: not JSON ({error}); {DAMAGED}") from None
    if (
        not isinstance(token_ids, list)
        or any(type(token) is not int for token in token_ids)
        or any(a >= b for a, b in zip([-1, *token_ids], [*token_ids, vocab], strict=True))
    ):
        raise QuantError(f"{path}: not a list of token ids below {vocab:,} in ascending order; {DAMAGED}")
    return token_ids
