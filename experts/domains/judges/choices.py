"""Which of a few choices a text names, by letter or by words, leaving out those that it denies.

A text is cut into clauses. The words of a choice are first replaced by one character that stands for it, so that its
own wording ("not enough light") is not taken for the text's. A clause that denies or asks names nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from experts.domains.judges.writing import answered, without_tags

# Private-use characters stand for the choices; a text's own are removed.
FIRST_MARK = 0xE000
PRIVATE = re.compile(r"[\ue000-\uf8ff]")
MOST_CHOICES = 1000

# What a box holds besides its last closing brace, and what leads to the next one: "A} or \boxed{B}".
NEXT_BOX = r"[^{}\n]* (?:\{[^{}\n]*\}[^{}\n]*){0,3} \} \$?,?\s(?:(?:or|and)\s)?\$? \\boxed\s?\{"
# "B is the answer", at the beginning of a sentence.
VERDICT = r"""
    (?: ^ | (?<=[.!?;]\s) ) \W{0,4} (?:(?:so|thus|hence|therefore|no|actually),?\s)?
    (?:(?:option|choice|answer)\s)? \W{0,2} (?-i: [A-Z\ue000-\uf8ff] ) (?:\W{1,3}[\ue000-\uf8ff])? \W{0,3}
    \s is \s (?:the\s)? (?:only\s)? (?: correct | right | best | answer ) \b
"""
# Where a text takes back what it has said.
REVISION = r"\b (?P<revision> wait | correction | on\ssecond\sthought | scratch\sthat | hold\son ) \b \W"
# Where a text begins to state its answer: the last of these has the last say.
STATEMENT = re.compile(
    rf"""
    \b (?: ans(?:wer)? | (?:correct|right|best)\s(?:option|choice) ) \b
      (?: \s{{1,3}} (?: to | would | should | must | has | letter | option )\b [^.:\n]{{0,60}}? )?
      [*_\s]{{0,9}} (?: : | [-–—=]\s | \bis\b | \bbe\b )
    | ^ \#{{4}} (?= \s )
    | \\boxed\s?\{{ (?: {NEXT_BOX} )*
    | {VERDICT} | {REVISION}
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
# Before a statement: what makes it none, as in "B is not the right answer: …".
UNSTATED = re.compile(
    r"(?:\b(?:not|wrong|incorrect|worst|false)|n't) (?:(?:the|an?) )?(?:(?:correct|right|best) )?\$?\Z", re.IGNORECASE
)
# A first line that only names a choice; and lines after it that are more than an explanation.
FIRST_LINE = re.compile(r"\A\W*[A-Z\ue000-\uf8ff]\W*\n")
GOES_ON = re.compile(
    r"(?m)^[^\w\n\ue000-\uf8ff]*"
    r"(?:[A-Z](?:\s?[\ue000-\uf8ff]|[^\w\s']|$)|[\ue000-\uf8ff](?:[^\w\s]|$)"
    r"|(?i:or|and|no|not|but|actually|rather|maybe|perhaps|also|both)\b)"
)
TICKED = re.compile(r"(?m)^\W{0,6}\[[xX✓]\]|^\W{0,6}☑")
UNTICKED = re.compile(r"(?m)^\W{0,6}(?:\[\s?\]|☐).*\n?")
# Reasons: what follows names other choices without choosing them. One that opens a sentence ends with a comma.
REASON = re.compile(
    r"""
    (?<!\A)(?<![.!?\n]\s)
    (?: \b(?:because|since|due[ ]to|given[ ]that)\b
      | (?:(?<!known[ ])\bas|,[ ]for)[ ] (?!(?:well|is|are|was|were|do|does|has|have)\b)
        (?=[^\n,]*?\b(?:is|are|was|were|has|have)\b)
    ) (?: (?![,.;!][ ](?:so|thus|hence|therefore)\b) [^\n] )*
    | \b(?:because|since)\b [^\n,]*
    """,
    re.IGNORECASE | re.VERBOSE,
)
# What is only granted, at the beginning or the end of a sentence: "Although A is near, …".
CONCESSION = re.compile(
    r"(?:(?<![^\n])|(?<=[.!?]\s))(?:while|although|though|even\sthough)\b[^\n,]*,"
    r"|(?<=[^\n.!?]\s)(?:although|though|even\sthough)\b[^.!?\n]*",
    re.IGNORECASE,
)
# "Let's look at each option:" opens an analysis, of whose items only those with a verdict choose.
ANALYSIS = re.compile(
    r"\b(?:analy[sz]e|assess|break\sdown|consider|evaluate|examine|go\s(?:over|through)|look\sat|review)\s"
    r"(?:all|each|every|the|these)\b[^.:\n]{0,40}\b(?:options?|choices?|answers?|statements?)\b",
    re.IGNORECASE,
)
UNDECIDED = re.compile(
    r"(?m)^[^\w\n\ue000-\uf8ff]*(?:(?i:option|choice)\s)?(?:[A-Z](?:\s?[\ue000-\uf8ff]|[^\w\s'])|[\ue000-\uf8ff])"
    r"(?!.*(?:\b(?i:correct|right|best|answer)\b|[✅✓])).*"
)
# What is said about the other choices, with the list that a colon opens.
OTHERS = re.compile(
    r"\b(?:the\s)?(?:other|remaining)\s(?:\w+\s)?(?:options?|choices?|answers?|ones?)\b(?:[^\n]*:[*_]{0,2}\n.*|[^\n]*)",
    re.IGNORECASE | re.DOTALL,
)
EXPLANATION = re.compile(
    r"[.;|]\s(?:explanation|reason(?:ing)?|rationale|justification)\s?:.*|\n[^\w\n]{0,9}(?:explanation|reason(?:ing)?|rationale|justification|why|let(?:\sme|'s)\sexplain|here(?:'s|\sis)\s(?:why|the\sexplanation))\b.*",
    re.IGNORECASE | re.DOTALL,
)
NO_DENIAL = re.compile(
    r"\b(?:no|without(?:\sa)?)\s+doubt\b|\bnot\s+only\b|\bno,?\s+(?:wait|sorry|actually)\b", re.IGNORECASE
)
ALL_BUT = re.compile(r"\b(?:anything|anywhere|anyone|everything|all|none|nothing)\s+but\b", re.IGNORECASE)
INSTEAD = re.compile(r"\b(?:rather\s+than|instead\s+of|other\s+than|than|over|unlike)\b", re.IGNORECASE)
# Replaces such words, and so opens a clause that names what is not chosen.
REFUSED = "\0"
# A letter or a mark, alone: a comma in a list of them ends no clause, because "not A, B or C" denies all three.
ALONE = r"\W{0,2}[A-Z\ue000-\uf8ff](?:\W{1,3}[\ue000-\uf8ff])?\W{0,2}"
CLAUSE = re.compile(
    rf"""
    [.!] (?= \W | \Z ) | [;?] | (?<= [❌✗✘✅✓] ) ,
    | (?<! [A-Za-z][A-Z] ) (?<= [A-Z\ue000-\uf8ff] ) \s (?= not\s )
    | (?: \s?[–—] | \s-\s ) (?! \s?(?i:no|not|wrong|incorrect|false)\b )
    | (?<! : ) \n
    | \( (?! {ALONE}\) )
    | (?<= \b[Nn]o ) ,
    | , (?! \s? (?:(?:or|and|nor)\s)? {ALONE} (?: [,.;] | \s?\Z | \b(?:or|and|nor)\b )
          | \s(?:or|nor)\s \W{{0,2}}[A-Z\ue000-\uf8ff](?!\w) )
    | \band\s (?=not\b)
    | \b (?i: but | so | therefore | thus | hence | then | while | whereas | although | though | as ) \b
    """,
    re.VERBOSE,
)
DENIAL = re.compile(
    rf"""
    \b (?: not | cannot | never | without | neither | nor | no | none | wrong | incorrect | false | untrue | doubt
         | deny | unlikely | worst\s+(?:answer|option|choice)
         | except | reject\w* | exclud\w* | eliminat\w* | ruled?\s+out | opposite | least | less | instead
         | (?:other|remaining)\s+(?:options?|choices?|answers?|ones?) | the\s+others\s+(?:are|were)
         | which(?!\s(?:leaves|(?:is|means|matches|corresponds\sto)\s(?:option|choice|answer|letter)\b))
         | what | if | whether ) \b
    | n['’]t\b | \bis\s+out\b | [{REFUSED}¬❌✗✘]
    """,
    re.IGNORECASE | re.VERBOSE,
)
UNIT = re.compile(r"\d\s?[A-Za-z]{1,3}\Z")  # 20 m is not 20 m/s
# A text may leave it out, or have another.
OWN_ARTICLE = re.compile(r"\A(?:an?|the)\s+(?=\w{3})")
# "B. Lyon is wrong" denies both.
LETTER_AND_WORDS = re.compile(r"(?<![\w.(])([A-Z])[*_]{0,2}[.:)][*_]{0,2}\s?(?=[\ue000-\uf8ff])")
# Words after which a letter is the name of a choice; after "vitamin" it is not.
LEADS = (
    "ans|answers?|options?|choices?|letter|correct|right|response|yes|no|boxed|text|textbf|mathrm|mathbf"
    "|is|be|was|it's|that's|for|to|with|or|and|both|maybe|perhaps|rather|actually|probably|possibly|definitely|clearly"
    r"|(?:believe|think|say|sure|certain|confident)\sthat"
    "|certainly|likely|only|leaves|solution|choose|chose|pick|picked|select|selected|believe|think|say|guess|[A-H]"
)
LETTER = re.compile(
    rf"""
    (?: (?P<led> \A\W* (?:\d{{1,2}}[.)]\W{{0,3}})?
          | (?<![\w']) (?i:{LEADS}) [\W_]{{1,6}} | [(\[<{{*"“‘'`_] | : \s? )  (?P<capital>[A-Z])
      | [(\[<{{*"“‘'`_] \W? (?P<bracketed>[a-z]) (?= [)\]>}}*"”’'`_] )
      | \b(?i:answer|option|choice|letter|choose|pick|is|it's)\b\W{{1,6}} (?P<closing>[a-z]) (?= \W*\Z )
      | \A\W* (?P<opening>[a-z]) (?= [).:*_] | \W*\Z ) )
    (?! [^\W_] | ['’]\w | -\w | \.\d | [+#] )
    """,
    re.VERBOSE,
)
MENTION = re.compile(r"(?<![\w'’.])(?<![a-z]-)([A-Z])(?![\w'’]|-(?![A-Z]\b)\w|\.\w)")
# "A city" and "I think" are not choices; "A is right" is one.
ARTICLE = re.compile(
    r"[ ]+ (?! (?:is|was|or|and|because|since|seems?|looks?|fits?|makes?|would|has)\b ) [a-z]", re.VERBOSE
)
PRONOUN = re.compile(r"\s+[a-z]|['’]")
# The choice "no" stands alone or before a subject: "no, it is not" and "no it is not", but not "no idea".
DETERMINER = r"(?!\s+(?!(?:it|he|she|they|we|you|i|this|that|these|those|the|there|because|since)\b)\w)"


def choices_named(text: str, choices: Sequence[str] = ()) -> set[int]:
    """The indices of the choices that a text says are right.

    A final "answer: …" has the last say; else a first line that only names a choice has it, if the lines after it
    explain.

    Args:
        text: What the model wrote.
        choices: The texts of the choices A, B, …; without them only letters count.

    >>> choices_named("Lyon? No, Paris.", ["Paris", "Lyon"]), choices_named("A or B"), choices_named("not B")
    ({0}, {0, 1}, set())
    """
    if len(choices) > MOST_CHOICES:
        return set()
    text = PRIVATE.sub(" ", _checked(without_tags(answered(text)))).replace("’", "'")
    text = "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))
    marked = _marked(EXPLANATION.sub("", text), choices)
    statements = [
        match.end() if match["revision"] else match.start()
        for match in STATEMENT.finditer(marked)
        if not UNSTATED.search(marked[max(0, match.start() - 40) : match.start()])
    ]
    opening = FIRST_LINE.match(marked)
    if opening and not statements and not GOES_ON.search(marked, opening.end()):
        marked = opening[0]
    for start in [*statements[-1:], 0]:
        named = _chosen(marked[start:], _letters(choices))
        if len(named) == 1:
            return named
    return named


def _checked(text: str) -> str:
    """The text without the boxes of a list that are not ticked, if one is.

    >>> _checked("- [ ] A\\n- [x] B"), _checked("- A")
    (' B', '- A')
    """
    return "".join(TICKED.split(UNTICKED.sub("", text))) if TICKED.search(text) else text


def _letters(choices: Sequence[str]) -> dict[str, int]:
    """Letter → index of the choice it stands for; if a choice is itself a letter ("which comes next?"), that choice."""
    own = {choice.upper(): index for index, choice in enumerate(choices) if _is_letter(choice)}
    return own or {chr(ord("A") + index): index for index in range(min(26, len(choices) or 26))}


def _is_letter(choice: str) -> bool:
    return len(choice) == 1 and "a" <= choice.lower() <= "z"


def _marked(text: str, choices: Sequence[str]) -> str:
    """The text with a mark in place of each choice's words; no full stop ends a clause between a letter and them."""
    words = {choice: index for index, choice in reversed([*enumerate(choices)]) if choice and not _is_letter(choice)}
    if not words:
        return text
    # Longest first, so that "New York" does not also name "York".
    for choice in sorted(words, key=len, reverse=True):
        bare = OWN_ARTICLE.sub("", choice)
        pattern = _pattern(choice) if bare in words else rf"(?:\b(?:an?|the)\s+)?{_pattern(bare)}"
        text = re.sub(pattern, chr(FIRST_MARK + words[choice]), text, flags=re.IGNORECASE)
    return LETTER_AND_WORDS.sub(r"\1 ", text)


def _pattern(choice: str) -> str:
    """A pattern for the words of a choice where they are not part of another word or number."""
    words = r"[\s-]+".join(re.escape(word) for word in (choice.removesuffix("?") or choice).replace("’", "'").split())
    before = r"(?<![\w.,/^√−-])" if choice[0].isdigit() else r"(?<!\w)"
    after = (
        r"(?![\w%^²³]|[.,:/–-]\d)" if choice[-1].isdigit() else r"(?![\w/^²³])" if UNIT.search(choice) else r"(?!\w)"
    )
    after = rf"{after}\??" if choice.endswith("?") else after
    return before + words + after + (DETERMINER if choice == "no" else "")


def _chosen(text: str, letters: dict[str, int]) -> set[int]:
    """The choices that a text names outside of its reasons; if it names none and denies none, those in their words."""
    if ANALYSIS.search(text):
        text = UNDECIDED.sub("", text)
    text = CONCESSION.sub("", text)
    asserted = REASON.sub("", text)
    named = _named(OTHERS.sub("", asserted), letters)
    return named if named or DENIAL.search(asserted) else _named(text, {})


def _named(text: str, letters: dict[str, int]) -> set[int]:
    """The choices that a text's clauses name, and any others that they mention; empty if none is named."""
    named, mentioned = set[int](), set[int]()
    for clause in _clauses(text):
        marks = {ord(character) - FIRST_MARK for character in clause if 0 <= ord(character) - FIRST_MARK < MOST_CHOICES}
        labels = {letters[label] for label in _labels(clause) if label in letters}
        others = {
            letters[match[1]]
            for match in MENTION.finditer(clause)
            if match[1] in letters and not _is_article(clause, match)
        }
        named |= marks | labels
        mentioned |= others
    return named | mentioned if named else set()


def _clauses(text: str) -> list[str]:
    """The clauses of a text that assert something; those that ask or deny are left out."""
    text = INSTEAD.sub(f". {REFUSED} ", ALL_BUT.sub("except", NO_DENIAL.sub("", text)))
    clauses, start = [], 0
    for end in [*CLAUSE.finditer(text), None]:
        clause = text[start : end.start() if end else len(text)]
        if not (end and end[0] == "?") and not DENIAL.search(clause):
            clauses.append(clause)
        start = end.end() if end else start
    return clauses


def _labels(clause: str) -> set[str]:
    """The letters that a clause gives as its answer, as capitals."""
    labels = set()
    for match in LETTER.finditer(clause):
        if not (match["capital"] and _is_article(clause, match)):
            labels.add((match["capital"] or match["bracketed"] or match["closing"] or match["opening"]).upper())
    return labels


def _is_article(clause: str, match: re.Match[str]) -> bool:
    """Whether the A or I at the end of a match is an article or a pronoun."""
    follows = {"A": ARTICLE, "I": PRONOUN}.get(clause[match.end() - 1])
    return bool(follows and follows.match(clause, match.end()))
