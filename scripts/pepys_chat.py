"""Questions in plain modern English, answered with whole sentences of the diary.

Everything is chosen by hash, so the same diary gives the same set. Days that the package's own split holds out for
validation give no answer, and neither does a sentence with a coarse or hurtful word.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from itertools import chain, cycle, islice
from typing import Protocol

from pepys_persona import BEYOND, PERSONA
from pepys_questions import ASK_PERSON, ASK_PLACE, PEOPLE, PLACES, TOPICS

from tallow.data.split import is_held_out

HELD_OUT = 0.05  # larger than any validation fraction a recipe should set for this text; the sets are nested
MAX_ANSWER = 400
MAX_TALK = 600  # characters; so the quickstart, with 4,096 words and rows of 256 tokens, leaves no conversation out
SENTENCE_LENGTH = range(35, 280)
PER_PERSON, PER_PLACE = 16, 14
DAYS, EVENINGS, DINNERS, TALKS = 1000, 160, 160, 260

Message = dict[str, str]
Conversation = dict[str, object]


class Day(Protocol):
    """What is needed of a diary entry."""

    @property
    def date(self) -> str: ...
    @property
    def body(self) -> str: ...
    @property
    def text(self) -> str: ...


ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Dr|Sir|St|Capt|Captn|Col|Lieut|Lieutt|Gen|Esq|Thos|Wm|Rich|Jas|Chas|Geo|Robt|Edw|Matt|Jer|Sam|Ph"
    r"|Rev|Coll|Coz|Edwd|Saml|Balth|Arth|Fran|Fr|Mis|Law|Hon|Bab|Mich|Will|No|viz|vol|ult|Ld|Maj|Serj|Serjt|Sec|Com|Commr|Alderm|Ald|Bart|Jun|Sen|etc|Deb|Mons|Monsr|Parl|Jan|Febr?"
    r"|Aug|Sept|Octo?b?|Novemb|Nov|Decemb|Dec)|\b[A-Z]|\b\d+[sdl])\.$"
)

UNFIT = re.compile(
    r"[…⸻\[\]_\u0300-\u036f\u0370-\u03ff\u1f00-\u1fff]|\b("
    # coarse or cruel
    r"whor\w*|bawd\w*|bitch\w*|slut\w*|lewd\w*|rogue\w*|wench\w*|naked|breasts?|bub\w*|thigh\w*|bell(y|ies)|kiss\w*"
    r"|tous\w*|tumbl\w*|touch\w*|feel\w* her|lain|l[iy]e with|lay with|lying with|did with her|have her|amours?|"
    r"mistress|pox|clap|rape\w*|ravish\w*|stool|clyster|urine|piss\w*|shit\w*|turd\w*|fart\w*|arse|ass|privit\w*"
    r"|cod(piece)?|womb|courses|smock\w*|bastard\w*|cuckold\w*|adulter\w*|fornicat\w*|bugger\w*|sodom\w*"
    r"|hang(ed)?,? drawn|quartered|limbs|beat (her|him|my|the)|beating (her|him|my)|basted|whipt?|whipp\w*|kick\w*"
    r"|bagwells?|doll|deb|betty|martin|jervas\w*|michell?|bodied|brown beauty|jade|with child|kill\w*|jealous\w*"
    r"|caress\w*|pretty (girl|maid|wench|woman)|handsome|my stones"
    r"|cudgell?\w*|struck her|rabble|devil\w*|damn\w*|execut\w*|gallows"
    # contempt for a people, a faith or an illness
    r"|negro\w*|black(a)?moor\w*|moors?|blacks?|jews?|turks?|papists?|savages?|heathens?|gyps\w*|cripple\w*|idiots?"
    r"|lunatic\w*|slaves?|whites|irish|scotch|quakers?|fanatiques?|phanatiques?"
    # the mixture of tongues in which he writes what his wife should not read
    r"|para|ella|elle|que|mi|mano|cosa|hazer|ego|su|con|je|una|yo|jo|moher|mujer|ipsa|tocar|corps|avec|baiser|las|los"
    r")\b",
    re.IGNORECASE,
)
DANGLING = re.compile(
    r"^(He|She|They|It|His|Her|Hers|Their|Them|Him|This|That|These|Those|Which|Who|Whose|But|And|Nor|Or|Yet|So|Thence"
    r"|There|Then|Here|By and by|After that|Him|One|Another|Both|Where|For|Also|However|Besides|But|Being|Having)\b"
)
FIRST_PERSON = re.compile(r"\b(I|me|my|we|our|us|myself)\b")


def conversations(diary: Sequence[Day]) -> list[Conversation]:
    """The whole set, in an order given by hash."""
    days = [day for day in diary if not is_held_out(sha256(day.text.encode()).digest(), HELD_OUT)]
    spoken = {day.date: [_sentences(paragraph) for paragraph in day.body.split("\n\n")] for day in days}
    pool = [text for day in days for paragraph in spoken[day.date] for text in paragraph if _stands_alone(text)]
    pool = sorted(set(pool), key=_order)
    first_paragraphs = {date: paragraphs[0] for date, paragraphs in spoken.items() if len(paragraphs) == 1}

    made = [
        *_persona(),
        *_beyond(),
        *_by_subject(pool),
        *_by_day(first_paragraphs),
        *_talks(first_paragraphs),
    ]
    unique = {str(messages): messages for messages in made}
    return [{"messages": unique[key]} for key in sorted(unique, key=_order)]


def _persona() -> Iterator[list[Message]]:
    for questions, answers in PERSONA:
        for question in questions:
            for answer in answers:
                yield _talk(question, answer)


def _beyond() -> Iterator[list[Message]]:
    dates = ("4 July 1776", "1 January 1700", "25 December 1650", "14 July 1789", "3 May 1999", "2 June 1670",
             "11 November 1918", "6 April 1655", "20 July 1969", "9 October 2020")  # fmt: skip
    for date, answer in zip(dates, cycle(BEYOND), strict=False):
        yield _talk(f"What did you do on {date}?", answer)
        yield _talk(f"Tell me about {date}.", answer)


def _by_subject(pool: Sequence[str]) -> Iterator[list[Message]]:
    """Sentences about a topic, a person or a place; those that can be understood alone come first."""
    subjects = [(topic.questions, topic.says, topic.limit, topic.about_me) for topic in TOPICS]
    subjects += [(_fill(ASK_PERSON, who), rf"\b{says}", PER_PERSON, True) for who, says in PEOPLE.items()]
    subjects += [(_fill(ASK_PLACE, where), says, PER_PLACE, True) for where, says in PLACES.items()]
    apart = [text for text in pool if not DANGLING.match(text)]
    loose = [text for text in pool if DANGLING.match(text)]
    for questions, says, limit, about_me in subjects:
        start = int(_order(questions[0]), 16)  # elsewhere for each subject, so that answers differ
        candidates = chain(_from(start, apart), _from(start, loose))
        fitting = (text for text in candidates if re.search(says, text) and (FIRST_PERSON.search(text) or not about_me))
        for question, answer in zip(cycle(questions), islice(fitting, limit), strict=False):
            yield _talk(question, answer)


def _from(start: int, texts: Sequence[str]) -> Iterator[str]:
    """All texts, beginning somewhere in the middle."""
    middle = start % len(texts)
    return chain(texts[middle:], texts[:middle])


ASK_DAY = (
    "What did you do on {}?",
    "What happened on {}?",
    "How did you spend {}?",
    "Tell me about {}.",
    "What did you do first on {}?",
    "Where were you on {}?",
    "How did the day begin on {}?",
    "Can you tell me what you did on {}?",
)
ASK_EVENING = (
    "How did {} end?",
    "What did you do in the evening of {}?",
    "How did you end the day on {}?",
    "When did you go to bed on {}?",
)
ASK_DINNER = ("Where did you dine on {}?", "What did you do at noon on {}?", "Who dined with you on {}?")
ASK_NEXT = ("And then?", "What did you do after that?", "Go on.", "And what then?", "What next?", "Tell me more.")
ASK_END = ("And how did the day end?", "And in the evening?", "And at night?", "And before bed?")


def _by_day(days: dict[str, list[str]]) -> Iterator[list[Message]]:
    kinds: tuple[tuple[tuple[str, ...], int, Callable[[list[str]], str | None]], ...] = (
        (ASK_DAY, DAYS, _opening),
        (ASK_EVENING, EVENINGS, _ending),
        (ASK_DINNER, DINNERS, _dinner),
    )
    for questions, limit, find in kinds:
        found = ((date, find(days[date])) for date in sorted(days, key=lambda date: _order(questions[0] + date)))
        answered = [(date, answer) for date, answer in found if answer]
        for question, (date, answer) in zip(cycle(questions), answered[:limit], strict=False):
            yield _talk(question.format(_spoken_date(date)), answer)


def _talks(days: dict[str, list[str]]) -> Iterator[list[Message]]:
    """A day in three or four turns."""
    count = 0
    for date in sorted(days, key=lambda date: _order("talk" + date)):
        sentences = days[date]
        first, last = _opening(sentences), _ending(sentences)
        if not first or not last or count == TALKS:
            continue
        middle = [text for text in sentences[1:-1] if text not in first and text not in last and _fits(text)]
        middle = [text for text in middle if len(text) >= SENTENCE_LENGTH.start][: 1 + count % 2]
        if not middle or last in first:
            continue
        turns = [ASK_DAY[count % len(ASK_DAY)].format(_spoken_date(date)), first]
        for place, text in enumerate(middle):
            turns += [ASK_NEXT[(count + 2 * place) % len(ASK_NEXT)], text]
        turns += [ASK_END[count % len(ASK_END)], last]
        if sum(map(len, turns)) <= MAX_TALK:
            yield _talk(*turns)
            count += 1


def _opening(sentences: list[str]) -> str | None:
    return _join(sentences[:3])


def _ending(sentences: list[str]) -> str | None:
    last = sentences[-1]
    return last if len(sentences) > 2 and _fits(last) and re.search(r"\b(to bed|to supper|home)\b", last) else None


def _dinner(sentences: list[str]) -> str | None:
    return next((text for text in sentences if re.search(r"\bdin(ed|ner)\b", text) and _stands_alone(text)), None)


def _join(sentences: Iterable[str]) -> str | None:
    """As many whole sentences from the start as one answer takes; None if there is not one that is fit."""
    answer = ""
    for text in sentences:
        if not _fits(text) or len(answer) + len(text) > MAX_ANSWER or len(answer) > MAX_ANSWER // 3:
            break
        answer = f"{answer} {text}".strip()
    return answer if len(answer) >= SENTENCE_LENGTH.start else None


@cache
def _fits(text: str) -> bool:
    balanced = text.count("“") == text.count("”") and text.count("(") == text.count(")")
    return balanced and len(text) <= MAX_ANSWER and text[0].isupper() and text[-1] in ".!?”)" and not UNFIT.search(text)


def _stands_alone(text: str) -> bool:
    return len(text) in SENTENCE_LENGTH and _fits(text) and not text.endswith(("…", ","))


def _sentences(paragraph: str) -> list[str]:
    result, start = [], 0
    for match in re.finditer(r"[.!?][’”)]*\s+(?=[“‘(]?[A-Z£0-9])", paragraph):
        text = paragraph[start : match.end()].strip()
        if not ABBREVIATION.search(text):
            result.append(text)
            start = match.end()
    return [*result, paragraph[start:].strip()]


def _spoken_date(date: str) -> str:
    """A date in one of the ways in which people write it."""
    when = datetime.date.fromisoformat(date)
    ending = "th" if when.day in range(11, 14) else {1: "st", 2: "nd", 3: "rd"}.get(when.day % 10, "th")
    forms = (
        f"{when.day} {when:%B} {when.year}",
        f"{when:%B} {when.day}, {when.year}",
        f"the {when.day}{ending} of {when:%B}, {when.year}",
        f"{when:%B} {when.day}{ending}, {when.year}",
    )
    return forms[int(_order("form" + date), 16) % len(forms)]


def _fill(questions: Iterable[str], name: str) -> tuple[str, ...]:
    return tuple(question.format(name) for question in questions)


def _talk(*turns: str) -> list[Message]:
    """Messages of user and assistant by turns; every sixth question is typed as people type who are in a hurry."""
    roles = cycle(("user", "assistant"))
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    if int(_order(turns[0] + turns[1]), 16) % 6 == 0:
        for message in messages[::2]:
            message["content"] = message["content"].lower().rstrip("?.!")
    return messages


def _order(text: str) -> str:
    return sha256(text.encode()).hexdigest()
