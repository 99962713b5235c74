"""What an answer to "who has more?" says: a name, or a comparison that holds or does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

MORE = r"more|most|greater|greatest|larger|largest|bigger|biggest|higher|highest|(?:times|twice) as (?:many|much)"
FEWER = r"fewer|fewest|less|least|smaller|smallest|lower|lowest"
COMPARED = re.compile(rf"\b(?:(?P<more>{MORE})|{FEWER})\b", re.IGNORECASE)
OF_NUMBERS = re.compile(rf"\d+\s+(?:\w+\s+)?(?:is|are)\s+(?:{MORE}|{FEWER})\s+than\s+\d+", re.IGNORECASE)
NOT = r"(?:\bnot\b|\bcannot\b|n['’]t\b|\bnever\b|\bno\b)"
DENIED = re.compile(rf"{NOT}|\b(?:false|untrue|wrong|incorrect|doubt|deny|neither|unlikely)\b", re.IGNORECASE)
NEITHER = re.compile(r"\b(?:same|equal|equally|both|neither|tie|nobody|everyone)\b", re.IGNORECASE)
QUESTION = re.compile(r"\W*(?:who|which|what|how|does|do|is)\b", re.IGNORECASE)


def names_who(text: str, right: str, other: str, people: Sequence[str], *, fewer: bool = False) -> float:
    """Whether a text says who of two people has more, or fewer.

    It does if it states the comparison the right way round, or names nobody but the right person. Who contradicts
    himself, lists both, or repeats the question has not answered.

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
    if NEITHER.search(text):
        return 0.0
    name = re.compile(rf"\b(?:{'|'.join(map(re.escape, {*people, right, other}))})\b", re.IGNORECASE)
    has_more = (other if fewer else right).casefold()
    stated: set[str | None] = set()  # who is said to have more; None where that cannot be told
    named: set[str] = set()  # without a comparison
    chosen: set[str] = set()  # without a comparison or a number, which only repeats what is known
    for sentence in _assertions(text):
        said = _who_has_more(sentence, name, {right.casefold(), other.casefold()})
        if said:
            stated |= said
            continue
        found = {match[0].casefold() for match in name.finditer(_without_rejected(sentence, name))}
        named |= found
        if len(found) == 1 and not re.search(r"\d", sentence):
            chosen |= found
    if stated:
        return float(stated == {has_more} and chosen <= {right.casefold()})
    return float(named == {right.casefold()})


def _assertions(text: str) -> Iterator[str]:
    """The sentences of a text that are not questions, finished or broken off."""
    for match in re.finditer(r"[^.!?\n;]+([.!?\n;]|\Z)", text):
        if match[1] != "?" and not QUESTION.match(match[0]):
            yield match[0]


def _who_has_more(sentence: str, name: re.Pattern[str], both: set[str]) -> set[str | None]:
    """Whom the comparisons of a sentence give more to; None stands for one that gives it to nobody in particular."""
    winners: set[str | None] = set()
    start = 0
    sentence = OF_NUMBERS.sub("", sentence)
    for compared in COMPARED.finditer(sentence):
        before, after = sentence[start : compared.start()], sentence[compared.end() :]
        start = compared.end()
        subjects = [match[0].casefold() for match in name.finditer(re.sub(rf"{NOT}\s+{name.pattern}", "", before))]
        together = re.search(rf"{name.pattern}\s*(?:and|or|&|/)\s*{name.pattern}[^,:]*\Z", before, re.IGNORECASE)
        than = re.match(rf"[^,]*?\b(?:than|as)\W+({name.pattern})", after, re.IGNORECASE)
        afterwards = re.match(rf"[^,]*?(?:\b(?:is|was)\b|[:=–—-])\W*({name.pattern})", after, re.IGNORECASE)
        subject = subjects[-1] if subjects else None
        if afterwards and not than:
            subject = afterwards[1].casefold()
        if subject is None and than:
            (subject,) = both - {than[1].casefold()} if than[1].casefold() in both else (None,)
        if together or subject not in both or (than and than[1].casefold() == subject):
            winners.add(None)
            continue
        clause = re.split("[,:]", re.sub(rf"{NOT}\s+{name.pattern}", "", before, flags=re.IGNORECASE))[-1]
        more = bool(compared["more"]) != bool(DENIED.search(clause))
        winners.add(subject if more else next(iter(both - {subject})))
    return winners


def _without_rejected(text: str, name: re.Pattern[str]) -> str:
    """The text without the names that it says no to: "Olga, not Leo", "it cannot be Leo", "Leo is wrong"."""
    said_no = rf"{NOT}(?:\s+\w+){{0,3}}?\s+{name.pattern}|{name.pattern}(?:\s+\w+)?(?:\s+|(?=n))(?:{DENIED.pattern})"
    return re.sub(said_no, "", text, flags=re.IGNORECASE)
