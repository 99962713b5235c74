"""The text of an answer that arrives token by token."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from experts.engine.sampling import Cutting, cut


class GrowingText:
    """Tokens in, text out, as far as it is certain: whole characters, and no beginning of a stop text.

    The results of all calls, joined, are the text of all tokens up to the first stop text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens: list[int] = []
        self._cutting = Cutting(stop)
        self._shown = 0  # characters
        self._before, self._read = 0, 0  # in tokens: where decoding begins, and how far the text is known

    def add(self, token: int) -> str:
        self.tokens.append(token)
        known = self._decode(self.tokens[self._before : self._read])
        more = self._decode(self.tokens[self._before :])
        if len(more) <= len(known) or more.endswith("\ufffd"):  # part of a character
            return ""
        self._before, self._read = self._read, len(self.tokens)
        return self._counted(self._cutting.add(more[len(known) :]))

    def end(self) -> str:
        """What is left of the text when no more tokens come."""
        return self._counted(self.whole[self._shown :])

    @property
    def whole(self) -> str:
        return cut(self._decode(self.tokens), self.stop)

    def _counted(self, text: str) -> str:
        self._shown += len(text)
        return text

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
