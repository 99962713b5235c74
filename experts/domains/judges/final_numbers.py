r"""Which of the numbers in a text is its answer: one in a `\boxed{}`, else after "the answer is", else the last one."""

from __future__ import annotations

import re

from experts.domains.judges.numbers import TAIL, UNSOLVED, Reading, readings, written_plainly
from experts.domains.judges.writing import BOX, answered

# Calls to GSM8K's calculator, in the middle of a sentence: <<48/2=24>>.
CALCULATION = re.compile(r"<<[^<>]*>>")
DENIED = re.compile(
    r"(?:\b(?:not|cannot|never|rather\s+than|instead\s+of|anything\s+but)|n['’]t)(?:\s+be)?\s+[$*-]{0,4}\Z"
    r"|\bdoubt\b[^.!?\n]{0,20}\Z|[❌✗✘]\s?\Z",
    re.IGNORECASE,
)
# What takes back the number before it: "18 is wrong", "18? No".
DENIED_AFTER = re.compile(
    r"""
    [*_$)\s]{0,4} \? (?!\s*yes\b) | \s?[❌✗✘]
    | \W{0,4} (?:
        (?:(?:no|oh|wait|hmm|but),?\s)? (?:that|this|it)(?:'s|\sis|\swas)\s(?:wrong|incorrect|false|not)\b
        | (?:but\s)? (?:that|this|it|which) (?: \sis | 's | \s(?:seems|looks) )
          \s (?:wrong|incorrect|false|impossible|not\s(?:right|correct|possible)|too\s\w+)\b
        | (?:but\s)? (?:that|this|it|which) \s can(?:['’]t|\s?not) \s be \s (?:right|correct|true)\b
        | \s(?:is|was)(?:n['’]t|\snot)\s(?:it|right|correct|the\b)
        | \s(?:is|was|(?:would|must)\sbe)\s(?:the\s)?(?:wrong|incorrect|false|too\s\w+)\b
      )
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Between two numbers that a text leaves open: "7 apples or maybe 8", "x = 7 or x = 8", "7, but it could be 8".
OPEN = re.compile(
    r"[\s$*_]*[^\W\d]*,?\s*\(?(?:or\b|(?:or\s)?(?:maybe|perhaps|possibly)\b|(?:but|though)\sit\s(?:could|may|might)\s(?:also\s)?be\b)"
    r"\s*(?:[a-z]\s?=\s?)?[$*_-]{0,4}",
    re.IGNORECASE,
)
# The last sentence, if it asks for a number, or whether it is this one.
ASKS = re.compile(r"(?:\d|\bhow\s+(?:many|much)\b|\bwhat\b)[^.!?\n]*\?\W*\Z", re.IGNORECASE)

# Where a text states its answer, and the sentence that does.
STATEMENT = re.compile(
    r"(?:^\W{0,8}|(?<!\bnot )(?<!n't )\b(?:the|my|our)\s)(?:(?:final|correct|right)\s)?answer\b"
    r"(?:\W{0,3}\sis\b|(?=\W{0,3}:))[\s*_]{0,4}:?\s{0,4}"
    r"(?P<sentence>[^\n]*?)(?=[.!?](?:\s|\W*\Z)|\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
# After a statement: words that may take it back.
REVISED = re.compile(
    r"\b(?:no|not|wait|actually|or|but|however|wrong|incorrect|mistake|sorry|correction|rather|instead|should|hmm|oops)\b"
    r"|n['’]t\b",
    re.IGNORECASE,
)
# What may follow an answer at the end of a text: its check, the explanation of a first line that is only a number, an
# offer, a reason, a remark in brackets.
BELOW = re.compile(
    r"""
    (?: \n\W{0,9} (?: (?:let(?:['’]s|\sus)|to|we\scan)\s )? (?:double[-\s])? (?:check|verify|verification)
        (?: \s(?:the|our|my|this|that|it|if|whether)\b [^\n:,]{0,40} )? \W{0,3} (?<=[:,\n*])
      | (?P<first> \A\W*\d[\d.,]*(?:\s\w+){0,2}\W*\n) \W{0,9} (?:[\w'’-]+\s){0,3} (?:explanation|explain|reasoning)\b )
    """,
    re.IGNORECASE | re.VERBOSE,
)
OFFER = re.compile(
    r"(?:(?<=[.!?*\n])\s{0,4}|^)\W{0,3}(?:(?:would|do) you|(?:shall|should|can) I|I hope|is there anything|if you"
    r"|let me know|feel free)\b[^.!?\n]{0,200}[?.!]?\W*\Z",
    re.IGNORECASE | re.MULTILINE,
)
REASON = re.compile(
    r"(?<=[^.!?:;\s])[^\S\n]+(?:because|since)\b(?:(?!,?\s(?:so|thus|hence|therefore|then)\b)(?:[^.!?\n]|\.(?=\d))){0,200}[.!?]?\W*\Z",
    re.IGNORECASE,
)
# What a result is for, in the last sentence: "6 * 5 = 30 miles in 5 days".
GOES_ON = r"(?!\b(?:and|but|so|then|while|plus|which|or|is|are|equals?|gives?|makes?|comes?|round\w*)\b)"
CIRCUMSTANCE = re.compile(
    rf"(?P<result>=\s?[-$€£]{{0,2}}\d(?:[\d.,]*\d)?%?(?:{GOES_ON}[^=,;:.!?\n\d]){{0,60}}?)"
    rf"\s(?:in|for|after|on|from|of|to|with|within|during|per|by)\s(?:{GOES_ON}[^=,;:!?\n]){{0,100}}[.!]?\W*\Z"
)
# Not the operand in "5 (3 + 4)", nor what makes another number of it: "5 (mod 7)", "5 (or 6)".
BRACKETED = re.compile(
    r"""
    \s \( (?! (?:or|maybe|perhaps|possibly|mod|(?:in\s)?base)\b )
    (?: [^()\n]* [A-Za-z%$€£=] | (?<= [a-z.!*]\s\( ) \d[\d.,]*\s?[-+×*/−–] ) [^()\n]* \) \W*\Z
    """,
    re.IGNORECASE | re.VERBOSE,
)
NUMBERED = re.compile(r"\d[^.!?\n]*(?:\.\d[^.!?\n]*)*[.!]?\W*\Z")  # a sentence with a number
CONCLUDED = re.compile(r"\b(?:so|thus|hence|therefore)\b", re.IGNORECASE)
END = 600  # characters in which the end of an answer is looked for


def find_number(text: str, fractions: bool = False) -> str:
    r"""The number that a text gives as its answer, as Python would write it; "" if there is none or it cannot be told.

    The last `\boxed{}` or "the answer is …" has the last say, unless the text then takes it back. Otherwise it is the
    last number, but for those in a final reason, remark or offer, or behind a result ("6 * 5 = 30 miles in 5 days"). A
    number that the text rejects is passed over ("7, not 8"); alternatives that it leaves open and calculations that it
    does not finish give no number ("7 or 8", "7 + 8"). Units are ignored: `50%` is 50, `2 thousand km` is 2e3.

    >>> find_number("5, then -$1,234.50."), find_number("3 / 4 cups", fractions=True)
    ('-1234.50', '3/4')
    >>> find_number("7, not 8"), find_number("7 or 8"), find_number("at 2:30")
    ('7', '', '')
    >>> find_number("Answer: 7 eggs. Check: 7 + 2 = 9"), find_number("7, because 2 + 7 = 9."), find_number("7 (of 9)")
    ('7', '7', '7')
    """
    text = CALCULATION.sub("", answered(text))
    if BOX not in text:
        stated = _stated(text)
        if stated is not None:
            return stated
        text = _without_asides(text)
    text = written_plainly(text)
    if ASKS.search(text[-2 * TAIL :]):
        return ""
    found = list(readings(text, fractions))
    while found and _is_denied(text, found[-1]):
        found.pop()
    if not found or (len(found) > 1 and OPEN.fullmatch(found[-1].before)):
        return ""
    return found[-1].value


def _stated(text: str) -> str | None:
    """The number that opens the last statement of an answer; None if there is none, or if it may be taken back."""
    *_, last = [None, *STATEMENT.finditer(text)]
    if not last or REVISED.search(text, last.end()):
        return None
    return _opening(last["sentence"])


def _without_asides(text: str) -> str:
    """The text without what follows its answer: a check, an offer, a reason, a remark, the circumstances."""
    below = BELOW.search(text)
    if below and not any(words.search(text, below.end()) for words in (REVISED, CONCLUDED)):
        before = below["first"] or text[: below.start()]
        text = before if re.search(r"\d", before) else text
    text = _without_end(without_reason(text), BRACKETED, NUMBERED)
    return text[:-END] + CIRCUMSTANCE.sub(r"\g<result>", text[-END:])


def without_reason(text: str) -> str:
    """The text without an offer and a reason at its end.

    >>> without_reason("It is 7, because 2 + 5 = 7. Let me know if this helps!")
    'It is 7,'
    """
    return _without_end(_without_end(text, OFFER, re.compile(r"\w")), REASON, NUMBERED)


def _without_end(text: str, aside: re.Pattern[str], needs: re.Pattern[str]) -> str:
    """The text without what `aside` finds at its end, if `needs` finds something before that."""
    end = text[-END:]
    found = aside.search(end)
    return text[: len(text) - len(end) + found.start()] if found and needs.search(end[: found.start()]) else text


def _is_denied(text: str, reading: Reading) -> bool:
    return bool(DENIED.search(reading.before) or DENIED_AFTER.match(text, reading.end))


def final_line(text: str, mark: str) -> str:
    """The answer after the last `mark` that is followed by anything on its line, else below it; else the whole text.

    The answer is one line, and may follow a line that only announces it. From `$18 every day for 7 days` only the
    number at the beginning is taken.

    >>> final_line("2 + 2 = 4\\n#### 4 eggs\\nand 7 more\\n####", "####"), final_line("4 eggs", "####")
    ('4', '4 eggs')
    """
    text = CALCULATION.sub("", answered(text))
    parts = [[line.strip(EMPHASIS) for line in part.split("\n")] for part in text.split(mark)[1:]]
    beside = [lines for lines in parts if not ASIDE.fullmatch(lines[0])]
    below = [lines for lines in parts if not lines[0] and any(lines)]
    if not (beside or below):
        return text.replace(mark, "")
    line = next((line for line in (beside or below)[-1] if not HEADING.fullmatch(line)), "")
    opening = _opening(line)
    return line if opening is None else opening


EMPHASIS = " \t\r*_"
# A line that announces the answer below it, or has nothing to read.
HEADING = re.compile(r"(?:(?:the |my )?(?:final |correct )?(?:answer|result|solution)(?: is)?)?\W*", re.IGNORECASE)
# What gives no answer after a mark, such as the heading of a step.
ASIDE = re.compile(
    r"\W*(?:(?:the )?(?:end|done|explanation|reasoning|check|verification|note)\W*|(?:step|part)\s\d.*)?", re.IGNORECASE
)
# What may come before the number that opens a line: a label, signs.
LABEL = re.compile(r"(?:[A-Za-z][A-Za-z ]{0,30}:)?[\s*$£€¥\\(]{0,6}(?:[-–]\s?)?[$£€¥\\]{0,2}")
REMARK = re.compile(r"\([^()]*\)")
# Another number in its place.
OTHER = re.compile(
    r"[^\d=]*(?:\b(?:or|maybe|perhaps|possibly)\b|,\s(?!(?:not|which|since|because|as|i\.?e)\b)|\b(?:and|plus|than)\s\W?(?=\d))[^\d]*\d"
)
EQUALS = re.compile(r".*(?<![<>!])=>?")
SEVERAL = re.compile(r"\b[A-Za-z]\s?=[^=]*(?:,|\bor\b|\band\b)\s*[A-Za-z]\s?=[^=]*\Z")  # x = 7 or x = 8; x = 7, y = 8


def _opening(line: str) -> str | None:
    """The number that opens a line, or the result it works out; "" if it cannot be told, None if no number opens it."""
    line = written_plainly(_without_asides(line))
    if SEVERAL.search(line):
        return ""
    worked_out = EQUALS.match(REMARK.sub(lambda remark: " " * len(remark[0]), line))
    if worked_out and not UNSOLVED.search(worked_out[0]):
        line = line[worked_out.end() :]
    line = re.sub(r"\A\W{0,4}[-–]\s(?=[$\\]{0,2}\d)", "-", line)
    first = next(readings(line, fractions=True), None)
    opens = first is not None and LABEL.fullmatch(line[: first.start])
    if first is None or not opens or _is_denied(line, first) or ASKS.search(line):
        return None
    return "" if OTHER.match(line, first.end) else first.value
