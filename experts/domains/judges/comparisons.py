"""What an answer to "who has more?" says: a name, or a comparison that holds or does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from experts.domains.judges.writing import answered

MORE = (
    r"more|most|greater|greatest|larger|largest|bigger|biggest|higher|highest|(?:times|twice) as (?:many|much)"
    r"|exceeds?|outnumbers?|surpass(?:es)?|beats?|ahead|winner"
)
FEWER = r"fewer|fewest|less|least|smaller|smallest|lower|lowest|half as (?:many|much)|trails?|behind|loser"
COMPARED = re.compile(rf"\b(?<!\bat )(?:(?P<more>{MORE})|{FEWER})\b", re.IGNORECASE)
# Comparisons that are not between people: "9 is more than 3", "to find who has more".
OTHERS_COMPARED = re.compile(
    rf"""
    \d{{1,9}} \s (?:\w+\s)? (?:is|are) \s (?:{MORE.replace(" ", "[ ]")}|{FEWER}) \s than \s \d{{1,9}}
    | \b (?:find|see|know|determine|tell|decide) \s (?:out\s)? (?:who|which|whether) \b [^,]*
    """,
    re.IGNORECASE | re.VERBOSE,
)
NOT = r"(?:\bnot\b|\bcannot\b|n['’]t\b|\bnever\b|\bno\b)"
FALSE = r"\b(?:false|untrue|wrong|incorrect)\b"
DENIED = re.compile(rf"{NOT}|{FALSE}|\b(?:doubt|deny|neither|unlikely)\b", re.IGNORECASE)
AS_MANY = re.compile(r"(?:\b\w{0,9}n['’]t|\b(?:\w+\s)?not)\s((?:\w+\s){0,2}?)as\s(?:many|much)\b", re.IGNORECASE)
REASON = re.compile(r"(?<=\w)[\W_]{1,6}(?:because|since)\b[^,]*\Z", re.IGNORECASE)
TAKEN_BACK = re.compile(FALSE, re.IGNORECASE)
SUPPOSED = re.compile(r"\b(?:if|suppose|could|might|should|needs?|lacks?|would(?!\s(?:say|think)))\b", re.IGNORECASE)
NEITHER = re.compile(r"\b(?:same|equal|equally|both|neither|tie|nobody|everyone)\b", re.IGNORECASE)
QUESTION = re.compile(r"\W*(?:who|which|what|how|does|do|is)\b", re.IGNORECASE)
LONGEST = 400  # characters of a sentence that are read


def names_who(text: str, right: str, other: str, people: Sequence[str], *, fewer: bool = False) -> float:
    """Whether a text says who of two people has more, or fewer.

    It does if it states the comparison the right way round, or names nobody but the right person. A text that
    contradicts itself, lists both, supposes, or repeats the question has not answered. A name beside a number ("Leo has
    5") repeats what is known, and counts only if the text says nothing else.

    Args:
        text: What the model wrote.
        right: The right person.
        other: The other one of the two.
        people: All names that may occur.
        fewer: Whether the question was who has fewer.

    >>> names_who("Olga has more coins than Leo.", "Olga", "Leo", ["Leo", "Olga"])
    1.0
    >>> names_who("Leo has more coins than Olga.", "Olga", "Leo", ["Leo", "Olga"])
    0.0
    """
    text = answered(text)
    if NEITHER.search(text):
        return 0.0
    right, other = right.casefold(), other.casefold()
    reader = _reader(right, other, frozenset(people))
    compared: set[str | None] = set()  # who is said to have more; None if that cannot be told
    named: set[str] = set()
    known: set[str] = set()  # named beside a number
    chosen: set[str] = set()  # named alone
    for sentence in _assertions(text):
        if said := reader.who_has_more(sentence):
            compared |= said
            continue
        names = reader.names(reader.without_rejected(sentence))
        if re.search(r"\d", sentence):
            known |= names
            continue
        named |= names
        chosen |= names if len(names) == 1 else set()
    if compared:
        return float(compared == {other if fewer else right} and chosen <= {right})
    return float((named or known) == {right})


@lru_cache
def _reader(right: str, other: str, people: frozenset[str]) -> _Reader:
    return _Reader(rf"\b(?:{'|'.join(map(re.escape, sorted({*people, right, other})))})\b", frozenset({right, other}))


def _assertions(text: str) -> Iterator[str]:
    """The sentences of a text that are not questions, complete or broken off, with single spaces."""
    for match in re.finditer(r"[^.!?\n;]+([.!?\n;]|\Z)", text):
        if match[1] != "?" and not QUESTION.match(match[0]):
            # "Leo does not have as many" says that he has fewer.
            yield " ".join(AS_MANY.sub(r" \1has fewer", REASON.sub("", match[0])).split())


@dataclass(frozen=True)
class _Reader:
    """Reads sentences about two people."""

    name: str
    """A pattern for anybody's name."""
    both: frozenset[str]
    """The two people, in lower case."""

    def names(self, text: str) -> set[str]:
        return {match[0].casefold() for match in self._compiled(self.name).finditer(text)}

    def without_rejected(self, text: str) -> str:
        """The text without the names that it rejects: "Olga, not Leo", "it cannot be Leo", "Leo is wrong"."""
        rejected = rf"(?:{NOT}(?:\s\w+){{0,3}}?|\brather than|\binstead of)\s{self.name}"
        denied = rf"{rejected}|{self.name}(?:\s\w+)?(?:\s|(?=n))(?:{DENIED.pattern})"
        return self._compiled(denied).sub("", text)

    def who_has_more(self, sentence: str) -> set[str | None]:
        """The people who have more by a sentence's comparisons; None stands for a comparison that cannot be told."""
        winners: set[str | None] = set()
        sentence = OTHERS_COMPARED.sub("", sentence)
        for sign, words in ((">", "more"), ("<", "fewer")):  # "Olga > Leo"
            amount = r"[^\w<>=]{0,5}(?:\d{1,9})?[^\w<>=]{0,5}"
            sentence = self._compiled(rf"({self.name})(?:['’]s\s\w+)?{amount}{sign}(?={amount}{self.name})").sub(
                rf"\1 has {words} than ", sentence
            )
        start = 0
        for compared in COMPARED.finditer(sentence):
            if len(sentence) > LONGEST or SUPPOSED.search(sentence):
                return {None}
            before, after = sentence[start : compared.start()], sentence[compared.end() :]
            start = compared.end()
            before = self._compiled(rf"{NOT}\s{self.name}").sub("", before)
            winners.add(self._winner(before, bool(compared["more"]), after))
        return winners

    def _winner(self, before: str, more: bool, after: str) -> str | None:
        """Who has more by one comparison, given the text before and after the comparing word."""
        subject = self._subject(before, after)
        if subject is None or TAKEN_BACK.search(after):
            return None
        clause = re.split("[,:]", before)[-1]
        (opponent,) = self.both - {subject}
        return subject if more != bool(DENIED.search(clause)) else opponent

    def _subject(self, before: str, after: str) -> str | None:
        """Whom a comparison is about: the last name before it, or one after "is"; else the one not after "than"."""
        together = rf"{self.name}\s?(?:and|or|&|/)\s?{self.name}[^,:]*\Z"
        if self._compiled(together).search(before):
            return None
        than = self._after(r"\b(?:than|as)(?:\sby)?", after)
        said_to_be = self._after(r"(?:\b(?:is|was|belongs\sto)\b|[:=–—-])", after)
        subject: str | None
        if said_to_be and not than:
            subject = said_to_be
        elif said := [match[0].casefold() for match in self._compiled(self.name).finditer(before)]:
            subject = said[-1]
        else:
            subject = next(iter(self.both - {than}), None) if than in self.both else None
        return subject if subject in self.both and subject != than else None

    def _after(self, word: str, after: str) -> str | None:
        """The name that follows a word, in the clause that follows a comparison."""
        match = self._compiled(rf"[^,]*?{word}\W*({self.name})").match(after)
        return match[1].casefold() if match else None

    @staticmethod
    def _compiled(pattern: str) -> re.Pattern[str]:
        return re.compile(pattern, re.IGNORECASE)  # it caches the latest patterns
