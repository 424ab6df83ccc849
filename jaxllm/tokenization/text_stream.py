"""Text of tokens as they come: a character of several bytes or tokens is never shown in part."""

from .tokenizer import Tokenizer

INCOMPLETE = "\ufffd"  # in place of bytes that are no character, or not one yet


class TextStream:
    """Decodes tokens one after the other; the pieces together are the text of all of them.

    Only the last few tokens are decoded again, so that a long text costs no more for each token.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        # Tokens before `begin` do not change the text from `end` on; up to `end` it was returned.
        self.begin = self.end = 0

    def add(self, tokens: list[int]) -> str:
        """Returns the text that these tokens complete, which may be none."""
        return "".join(self._add(token) for token in tokens)

    def _add(self, token: int) -> str:
        self.tokens.append(token)
        text = self._rest()
        if not text or text.endswith(INCOMPLETE):
            return ""
        self.begin, self.end = self.end, len(self.tokens)
        return text

    def finish(self) -> str:
        """Returns what is left, of which part may be no character."""
        text = self._rest()
        self.begin = self.end = len(self.tokens)
        return text

    def _rest(self) -> str:
        """Returns the text of the tokens from `end` on, after those before them."""
        known = self.tokenizer.decode(self.tokens[self.begin : self.end])
        return self.tokenizer.decode(self.tokens[self.begin :])[len(known) :]
