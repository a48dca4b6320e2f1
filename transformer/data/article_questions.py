"""Conversations from the articles of an encyclopedia: questions answered with sentences of the articles.

The functions are pure. From the title and text of an article they make questions such as "Who was TITLE?" with the
first sentences as the answer, questions about dates and places in the first paragraph, and requests for more.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

Turn = tuple[str, str]  # message of the user, and the answer

_MAX_ANSWER = 360  # characters of an answer of several sentences
_MAX_SENTENCES = 3
_MAX_SUBJECT = 70
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"])(?:[A-Z]|[A-Za-z]\.[A-Za-z]|St|Mt|Mr|Mrs|Ms|Dr|Prof|Sr|Jr|Rev|Gen|Col|Lt|Capt|Sgt|Gov|Sen|Rep|Hon|Pres"
    r"|Inc|Ltd|Co|Corp|Bros|No|Nos|vs|etc|cf|ca|c|b|d|r|fl|lit|approx|est|e\.g|i\.e|U\.S|U\.K|Ph\.D|a\.m|p\.m|B\.C|A\.D"
    r"|Jan|Feb|Mar|Apr|Aug|Sept|Oct|Nov|Dec|Vol|pp|ed|Fr|Ft|sp|spp|var|subsp|Sts|Op)\.$"
)
_SENTENCE_BREAK = re.compile(r"[.!?][\"”')\]]*(?=\s+[\"“(]?[A-Z0-9])")
_PARENTHESES = re.compile(r"\s*\([^()]*\)")
_DISAMBIGUATION = re.compile(r"\s*\([^()]*\)$")
_OPENING = re.compile(r"(?P<subject>[^.;:]{1,140}?),? (?P<verb>is|was|are|were) (?P<rest>.+)", re.DOTALL)
_TOPIC = re.compile(r"^(?:In|Within|At|On) [^,]{2,60}, ")
_DETERMINER = re.compile(r"^(An?|The) ", re.IGNORECASE)

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = rf"(?:\d{{1,2}} {_MONTH} \d{{3,4}}|{_MONTH} \d{{1,2}}, \d{{3,4}}|\d{{4}})"
_LIFE = re.compile(rf"({_DATE})[^()–—-]{{0,60}}[–—-]\s*({_DATE})")
_BORN = re.compile(rf"\bborn[^()]{{0,60}}?({_DATE})")
_PLACE = r"[A-Z][\w’'-]+(?:(?:,? (?:of |the |and |upon |la |de )?)[A-Z][\w’'-]+){0,4}"
_BIRTHPLACE = re.compile(rf"\bwas born (?:on {_DATE},? |in \d{{4}},? )?(?:in|at) ({_PLACE})(?=[,.;]| to | on | in )")
_PLACE_KIND = re.compile(
    r"\b(?:city|town|village|municipality|country|county|island|river|lake|mountain|province|region|district|commune"
    r"|borough|peninsula|suburb|parish|capital|desert|valley|bay|settlement|community)\b"
)

_ABOUT = (
    "Tell me about {}.",
    "Can you tell me about {}?",
    "Tell me something about {}.",
    "What do you know about {}?",
    "Describe {}.",
    "Explain {}.",
    "What can you tell me about {}?",
    "I would like to know about {}.",
    "Give me a short description of {}.",
    "Do you know {}?",
    "Have you heard of {}?",
    "{}?",
    "{}",
)
_MORE = (
    "Tell me more.",
    "Can you tell me more?",
    "Go on.",
    "What else?",
    "More, please.",
    "And then?",
    "Tell me more about it.",
)
_BIRTH = ("When was {} born?", "What is the date of birth of {}?", "In which year was {} born?", "When was {} born")
_DEATH = ("When did {} die?", "What is the date of death of {}?", "In which year did {} die?")
_BIRTH_AT = ("Where was {} born?", "What is the birthplace of {}?", "Where does {} come from?")
_WHERE = ("Where is {}?", "Where can I find {}?", "Where is {} located?")


@dataclass(frozen=True)
class Facts:
    """Facts from the first paragraph of an article.

    name: the subject as in a question. subject: the same at the start of a sentence. verb: is, was, are or were.
    answer: one to three sentences. first: the first of them. more: the sentences after them.
    """

    name: str
    subject: str
    verb: str
    answer: str
    first: str
    person: bool
    more: tuple[str, ...] = ()
    born: str | None = None
    died: str | None = None
    birthplace: str | None = None
    place: bool = False


def conversations(title: str, text: str, seed: int = 0) -> Iterator[list[Turn]]:
    """Conversations about an article; none if its first sentence does not define its title.

    Args:
        title: of the article, with or without a disambiguation in parentheses.
        text: of the article, cleaned by `transformer.data.wikipedia`.
        seed: of the choice of questions, together with the title.
    """
    facts = facts_of(title, text)
    if facts is None:
        return
    rng = random.Random(f"{seed} {title}")
    yield _introduction(facts, title, rng)
    yield _introduction(facts, title, rng)
    if details := _details(facts, rng):
        yield details


def facts_of(title: str, text: str) -> Facts | None:
    """Facts from the first paragraph of an article; None if its first sentence does not define the title."""
    name = _DISAMBIGUATION.sub("", title).strip()
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or not name or re.match(r"Lists? of|\d+$", name) or ":" in name or len(name) > 50:
        return None
    raw = sentences(lines[0])
    plain = [_without_parentheses(sentence) for sentence in raw]
    opening = _OPENING.fullmatch(_TOPIC.sub(lambda _: "", plain[0])) if raw else None
    if opening is None or not _is_whole(plain[0]):
        return None
    person = _is_person(raw[0], plain, opening["rest"])
    subject = _subject(opening["subject"], name, person)
    if subject is None:
        return None
    first = f"{subject} {opening['verb']} {opening['rest']}"
    if not 25 <= len(first) <= _MAX_ANSWER:
        return None
    answer = _that_fit([first, *takewhile(_is_whole, plain[1:_MAX_SENTENCES])])
    life = _LIFE.search(raw[0]) if person else None
    born = life[1] if life else (found[1] if person and (found := _BORN.search(raw[0])) else None)
    birthplace = _BIRTHPLACE.search("\n".join(lines[:8])) if person else None
    return Facts(
        name=name,
        subject=subject,
        verb=opening["verb"],
        answer=" ".join(answer),
        first=first,
        person=person,
        more=_more(plain[len(answer) :], lines[1:6]),
        born=born,
        died=life[2] if life else None,
        birthplace=birthplace[1] if birthplace else None,
        place=not person and bool(_PLACE_KIND.search(opening["rest"][:80])) and bool(re.search(r"\b[io]n\b", first)),
    )


def _more(sentences_left: list[str], paragraphs: list[str]) -> tuple[str, ...]:
    """The sentences after an answer: those that are left of its paragraph, and those of the next long ones."""
    for paragraph in paragraphs:
        if len(paragraph) > 200:
            sentences_left = [*sentences_left, *map(_without_parentheses, sentences(paragraph))]
    more: list[str] = []
    for sentence in sentences_left:
        if not _is_whole(sentence) or sum(map(len, more)) + len(sentence) > 3 * _MAX_ANSWER:
            break
        more.append(sentence)
    return tuple(more)


def _that_fit(found: Sequence[str]) -> list[str]:
    """The first of these sentences that fit into an answer together; at least one."""
    fitting, length = [found[0]], len(found[0])
    for sentence in found[1:]:
        if length + len(sentence) > _MAX_ANSWER:
            break
        fitting.append(sentence)
        length += 1 + len(sentence)
    return fitting


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph. A period after an initial or a common abbreviation does not end a sentence."""
    found, start = [], 0
    for end in _SENTENCE_BREAK.finditer(paragraph):
        piece = paragraph[start : end.end()]
        bare = paragraph[start : end.start() + 1]
        open_brackets = piece.count("(") > piece.count(")")
        if open_brackets or piece.count('"') % 2 or _ABBREVIATION.search(bare):
            continue
        found.append(piece.strip())
        start = end.end()
    if tail := paragraph[start:].strip():
        found.append(tail)
    return found


def _introduction(facts: Facts, title: str, rng: random.Random) -> list[Turn]:
    """A question what or who it is, sometimes followed by a request for more."""
    turns = [(_what_or_who(facts, title, rng), facts.answer)]
    if facts.more and rng.random() < 0.35:
        more = _that_fit(facts.more[: rng.randint(1, 3)])
        turns.append((rng.choice(_MORE), " ".join(more)))
    return turns


def _what_or_who(facts: Facts, title: str, rng: random.Random) -> str:
    name = _asked_name(facts, title, rng)
    if rng.random() < 0.35:
        return _first_upper(rng.choice(_ABOUT).format(name))
    pronoun = "Who" if facts.person else "What"
    if rng.random() < 0.06:
        pronoun = "What" if facts.person else "Who"  # as asked by people who do not know which it is
    verb = facts.verb if rng.random() < 0.75 else rng.choice(("is", "was"))
    question = f"{pronoun} {verb} {name}"
    kind = rng.random()
    if kind < 0.1:
        return question  # without a question mark
    if kind < 0.2:
        return f"{question[0].lower()}{question[1:]}?"
    return f"{question}?"


def _asked_name(facts: Facts, title: str, rng: random.Random) -> str:
    """The name in a question: the title, or the name with its grammatical article."""
    kind = rng.random()
    if kind < 0.5:
        return facts.name
    if kind < 0.6:
        return title
    determiner = _DETERMINER.match(facts.subject)
    if determiner and not facts.person:
        return determiner[0].lower() + _as_in_subject(facts)
    return _as_in_subject(facts) if kind < 0.9 else facts.name.lower()


def _as_in_subject(facts: Facts) -> str:
    """The name with the capitalization of the article's first sentence."""
    at = facts.subject.lower().find(facts.name.lower())
    if at <= 0:
        return facts.name
    return facts.subject[at : at + len(facts.name)]


def _details(facts: Facts, rng: random.Random) -> list[Turn]:
    """Questions about dates and places, in one conversation."""
    turns: list[Turn] = []
    if facts.born:
        turns.append((rng.choice(_BIRTH).format(facts.name), f"{facts.name} was born {_on(facts.born)}."))
    if facts.died:
        turns.append((rng.choice(_DEATH).format(facts.name), f"{facts.name} died {_on(facts.died)}."))
    if facts.birthplace:
        turns.append((rng.choice(_BIRTH_AT).format(facts.name), f"{facts.name} was born in {facts.birthplace}."))
    if facts.place:
        turns.append((rng.choice(_WHERE).format(facts.name), facts.first))
    rng.shuffle(turns)
    if turns and rng.random() < 0.3:
        question = f"{'Who' if facts.person else 'What'} {facts.verb} {facts.name}?"
        turns.insert(0, (question, facts.answer))
    return turns


def _on(date: str) -> str:
    return f"in {date}" if date.isdigit() else f"on {date}"


def _subject(subject: str, name: str, person: bool) -> str | None:
    """The subject as in an answer; None if the first sentence is about something else than `name`."""
    subject = subject.replace('"', "").strip(" ,")
    lowered, wanted = subject.lower(), name.lower()
    determiner = _DETERMINER.match(subject)
    bare = lowered[determiner.end() :] if determiner else lowered
    if person:
        surname = wanted.split()[-1].rstrip(".")
        return name if surname in lowered or wanted.split()[0] in lowered else None
    if bare.startswith(wanted) and len(subject) <= _MAX_SUBJECT:
        return subject[0].upper() + subject[1:]
    if wanted in lowered or bare == wanted + "s" or bare.rstrip("s") == wanted.rstrip("s"):
        is_plural = bare.rstrip("s") == wanted.rstrip("s") and wanted not in bare
        return (
            subject[0].upper() + subject[1:] if is_plural else (determiner[0].capitalize() if determiner else "") + name
        )
    return None


def _is_person(raw: str, plain: list[str], rest: str) -> bool:
    """Whether the article is about a person: dates of birth and death, or a pronoun in the second sentence."""
    brackets = " ".join(re.findall(r"\(([^()]*)\)", raw))
    if _BORN.search(brackets) or (_LIFE.search(brackets) and re.match(r"(?:an?|the|one) ", rest)):
        return not re.match(r"(?:an?|the) (?:\w+ )?(?:war|battle|series|band|city|state|empire|kingdom|period)\b", rest)
    return len(plain) > 1 and bool(re.match(r"(?:He|She) ", plain[1]))


def _without_parentheses(sentence: str) -> str:
    for _ in range(3):  # nested ones, from the inside
        sentence = _PARENTHESES.sub("", sentence)
    return re.sub(r"\s+([,.;:])", r"\1", re.sub(r"\s{2,}", " ", sentence)).strip()


def _is_whole(sentence: str) -> bool:
    """Whether it can be used as a sentence in an answer."""
    return (
        sentence.endswith((".", "!", "?", '."'))
        and sentence.count('"') % 2 == 0
        and not re.search(r"[()\[\]<>{}|=]|\bformula_\d|\"\"| ,|^[a-z]", sentence)
        and 15 <= len(sentence) <= _MAX_ANSWER
    )


def _first_upper(text: str) -> str:
    return text[0].upper() + text[1:]
