"""The fixed vocabulary: which words of a caption can be the subject of a video, and of what kind they are.

A few hundred concrete nouns: people, animals, vehicles, single plants, things. Body parts, clothing, scenery,
colours, materials, abstract and collective words are not in it. The words and the exceptions stand in
``vocabulary.yaml``; the grammar here is deliberately small, since a caption that is read wrongly costs a
subject, while a grammar that parses English costs a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import yaml

CATEGORIES = ("person", "animal", "vehicle", "plant", "object")


@dataclass(frozen=True, slots=True)
class Word:
    """A noun. ``name``, ``plural`` and ``synonyms`` are lower case; synonyms are given in the singular.

    ``category`` is one of :data:`CATEGORIES`; ``coco`` is the COCO-80 class that the thing is a kind of, if any.
    """

    name: str
    category: str
    plural: str
    synonyms: tuple[str, ...]
    coco: str | None


def subject_words(caption: str) -> list[Word]:
    """The subjects that a caption names, in order of first appearance, each once.

    Terms of several words go before shorter ones. Left out are possessives ("chef's knife" is a knife), nouns that
    only qualify the next one ("cat toy" is a toy, "truck stop" nothing), verbs that look like nouns ("the man
    ducks") and words between double quotes, which somebody says or a sign shows.
    """
    tokens = _tokens(_without_quotes(caption))
    terms = _nouns(tokens, list(_terms(tokens)))
    subjects = (term.word for term, following in zip_longest(terms, terms[1:]) if _is_head(tokens, term, following))
    return list(dict.fromkeys(word for word in subjects if word is not None))


def subject_names(phrase: str) -> list[str]:
    """The subjects that a noun phrase such as "the two young dogs" stands for, in lower case.

    A subject goes by its name in the vocabulary ("puppies", "golden retriever pups": ``puppy``). A noun that the
    vocabulary does not know stays as it is, without articles and numbers ("an axolotl": ``axolotl``). Nothing comes
    of what is never a subject: parts of bodies, clothing, scenery, colours ("the man's left hand", "blue sky").
    """
    forms = _lexicon().forms
    tokens = _tokens(phrase)
    while tokens and (_is_function_word(tokens[0].text) or tokens[0].text.isdigit()):
        del tokens[0]
    if not tokens:
        return []
    whole = forms.get(" ".join(token.text for token in tokens))
    if whole is not None:
        return [whole.word.name] if whole.word is not None else []
    parts = re.split(r"[,;/&]|\b(?:and|or)\b", phrase)
    if len(parts) > 1:
        return list(dict.fromkeys(name for part in parts for name in subject_names(part)))
    return _names_of_noun(tokens)


def category_of(word: str) -> str:
    """Category of a word or noun phrase, by the longest known term at its end; ``object`` where none is known."""
    tokens = [token.text for token in _tokens(word)]
    for start in range(len(tokens)):
        form = _lexicon().forms.get(" ".join(tokens[start:]))
        if form is not None and form.word is not None:
            return form.word.category
    return "object"


_TOKEN = re.compile(r"(\w+)(['’]s\b|(?<=s)['’](?!\w))?")
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    gap: str
    """What stands between the token and the next one."""
    possessive: bool


@dataclass(frozen=True, slots=True)
class _Form:
    """One spelling of a word. ``word`` is nothing for a term that is no subject."""

    word: Word | None
    singular: str
    plural: bool


@dataclass(frozen=True, slots=True)
class _Term:
    """A form found at tokens ``start`` to ``end`` (exclusive)."""

    form: _Form
    start: int
    end: int

    @property
    def word(self) -> Word | None:
        return self.form.word


@dataclass(frozen=True, slots=True)
class _Lexicon:
    words: dict[str, Word]
    forms: dict[str, _Form]
    longest: int
    lists: dict[str, frozenset[str]]
    """The yaml's lists of words, by their names."""

    def has(self, kind: str, word: str) -> bool:
        return word in self.lists[kind]


def _names_of_noun(tokens: Sequence[_Token]) -> list[str]:
    """Like :func:`subject_names`, for a single noun with what stands around it."""
    lexicon = _lexicon()
    end = next((place for place, token in enumerate(tokens) if lexicon.has("closers", token.text)), None)
    core = tokens[:end]
    for start in range(len(core)):
        form = lexicon.forms.get(" ".join(token.text for token in core[start:]))
        if form is not None:
            return [form.word.name] if form.word is not None else []
    if _never_a_subject(core[-1].text):
        return []
    if end is None or tokens[end].text != "of":
        return [_text(core)]
    # "A herd of elephants" is not about its first noun.
    return [word.name for word in subject_words(f"a {_text(tokens)}")] or [_text(tokens)]


def _text(tokens: Sequence[_Token]) -> str:
    return " ".join(token.text + ("'s" if token.possessive else "") for token in tokens)


def _is_function_word(word: str) -> bool:
    return _lexicon().has("determiners", word) or _lexicon().has("closers", word)


def _never_a_subject(noun: str) -> bool:
    singulars = [noun, *(noun.removesuffix(ending) for ending in ("s", "es") if noun.endswith(ending))]
    return any(_lexicon().has("no_subjects", singular) for singular in singulars)


def _without_quotes(caption: str) -> str:
    text = caption.strip()
    if _QUOTED.fullmatch(text):
        return text[1:-1]
    return _QUOTED.sub(" . ", text)


def _tokens(text: str) -> list[_Token]:
    text = text.lower()
    found = list(_TOKEN.finditer(text))
    ends = [*(match.start() for match in found[1:]), len(text)]
    return [
        _Token(match[1], text[match.end() : end], match[2] is not None) for match, end in zip(found, ends, strict=False)
    ]


def _terms(tokens: Sequence[_Token]) -> Iterator[_Term]:
    """Longest matches from left to right, ignored terms among them."""
    lexicon = _lexicon()
    start = 0
    while start < len(tokens):
        end = start + 1
        for stop in range(min(start + lexicon.longest, len(tokens)), start, -1):
            inner = tokens[start : stop - 1]
            if any(token.possessive or not (token.gap.isspace() or token.gap == "-") for token in inner):
                continue
            form = lexicon.forms.get(" ".join(token.text for token in tokens[start:stop]))
            if form is not None:
                yield _Term(form, start, stop)
                end = stop
                break
        start = end


def _nouns(tokens: Sequence[_Token], terms: Sequence[_Term]) -> list[_Term]:
    kept: list[_Term] = []
    for term in terms:
        before = kept[-1] if kept and _adjacent(tokens, kept[-1], term) else None
        if term.word is not None and not _is_verb(tokens, term, before) and not _is_bare(tokens, term, before):
            kept.append(term)
    return kept


def _adjacent(tokens: Sequence[_Token], left: _Term, right: _Term) -> bool:
    return left.end == right.start and tokens[left.end - 1].gap.isspace()


def _is_verb(tokens: Sequence[_Token], term: _Term, before: _Term | None) -> bool:
    """A noun-like verb agrees with what stands before it: "dogs train", "a dog trains", never "a toy train"."""
    lexicon = _lexicon()
    if not lexicon.has("verbs", term.form.singular) or term.start == 0 or not tokens[term.start - 1].gap.isspace():
        return False
    if before is not None:
        return before.form.plural != term.form.plural
    previous = tokens[term.start - 1].text
    kind = "before_s_verb" if term.form.plural else "before_base_verb"
    return previous.endswith("ly") or lexicon.has(kind, previous)


def _is_bare(tokens: Sequence[_Token], term: _Term, before: _Term | None) -> bool:
    """Whether a word that is a thing only after a determiner, or with an end behind it too, stands without."""
    lexicon, name = _lexicon(), term.form.singular
    if term.form.plural:
        return False
    if lexicon.has("adjectives", name):
        return before is not None or not (_determiner(tokens, term) and _closed(tokens, term))
    determiner = _determiner(tokens, term)
    if lexicon.has("indefinite", name):
        return not determiner or lexicon.has("definite", determiner)
    return lexicon.has("determined", name) and not determiner


def _determiner(tokens: Sequence[_Token], term: _Term) -> str:
    """The determiner of a term, at most three words before it, or an empty string."""
    lexicon = _lexicon()
    for token in reversed(tokens[max(0, term.start - 4) : term.start]):
        if lexicon.has("determiners", token.text) or token.possessive:
            return token.text
        if lexicon.has("closers", token.text) or not (token.gap.isspace() or token.gap == "-"):
            return ""
    return ""


def _closed(tokens: Sequence[_Token], term: _Term) -> bool:
    gap = tokens[term.end - 1].gap
    return (
        term.end == len(tokens) or not (gap.isspace() or gap == "-") or _lexicon().has("closers", tokens[term.end].text)
    )


def _is_head(tokens: Sequence[_Token], term: _Term, following: _Term | None) -> bool:
    last = tokens[term.end - 1]
    if last.possessive or (last.gap == "-" and term.end < len(tokens)):
        return False
    if term.form.plural or term.end == len(tokens) or not last.gap.isspace():
        return True
    if following is not None and following.start == term.end:
        return False
    return not _lexicon().has("heads", tokens[term.end].text)


@cache
def _lexicon() -> _Lexicon:
    with Path(__file__).with_suffix(".yaml").open("rb") as handle:
        raw = yaml.load(handle, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    words: dict[str, Word] = {}
    forms: dict[str, _Form] = {}
    for category, classes in raw["words"].items():
        for coco, entries in classes.items():
            for entry in _entries(entries):
                _add(words, forms, entry, category, None if coco == "other" else coco)
    for term in _entries(raw["ignored"]):
        _add_form(forms, term, _Form(None, term, False))
    return _Lexicon(
        words=words,
        forms=forms,
        longest=max(form.count(" ") + 1 for form in forms),
        lists={name: frozenset(text.split()) for name, text in raw["lists"].items()},
    )


def _entries(text: str) -> list[str]:
    joined = re.sub(r",\s*\n", ", ", text)
    return [entry for part in re.split(r"[;\n]", joined) if (entry := part.strip())]


def _add(words: dict[str, Word], forms: dict[str, _Form], entry: str, category: str, coco: str | None) -> None:
    name, _, others = entry.partition(" = ")
    singular, *plurals = name.split("/")
    synonyms = [other.strip() for other in others.split(",")] if others else []
    word = Word(
        name=singular,
        category=category,
        plural=plurals[0] if plurals else _plural(singular),
        synonyms=tuple(synonym.partition("/")[0] for synonym in synonyms),
        coco=coco,
    )
    words[singular] = word
    for spelling in [name, *synonyms]:
        first, *rest = spelling.split("/")
        _add_form(forms, first, _Form(word, first, False))
        for plural in rest or [_plural(first)]:
            if plural != first:
                _add_form(forms, plural, _Form(word, first, True))


def _add_form(forms: dict[str, _Form], spelling: str, form: _Form) -> None:
    if forms.setdefault(spelling, form).word != form.word:
        raise ValueError(f"vocabulary.yaml: {spelling!r} stands twice")


def _plural(singular: str) -> str:
    if singular.endswith("man"):
        return singular[:-2] + "en"
    if singular.endswith(("s", "x", "z", "ch", "sh")):
        return singular + "es"
    if re.search(r"[^aeiou]y$", singular):
        return singular[:-1] + "ies"
    return singular + "s"


VOCABULARY: dict[str, Word] = _lexicon().words
"""Every word by its name."""
