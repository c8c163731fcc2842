"""Common English words, by kind: what rule-made skills and the wide model's exercises are made of."""

from __future__ import annotations

__all__ = ["ADJECTIVES", "ANIMALS", "MONTHS", "NOUNS", "VERBS", "WORDS"]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _listed(
    """
    apple bag ball bank bed bell boat book bottle box bread bridge brush bucket cake camera candle car card
    chair clock cloud coat coin cup desk door dress drum engine fence field file flower fork garden gate glass
    hammer hat house key kite knife ladder lamp leaf letter map mirror needle paper pencil phone picture plate
    pocket ring road rock roof room rope school shelf ship shirt shoe spoon station stone street table ticket
    tower train tree wall wheel window
    """
)
ANIMALS = _listed(
    """
    bear bird camel cat cow deer dog duck fish fox frog goat hen horse lion mouse owl pig rabbit wolf
    """
)
ADJECTIVES = _listed(
    """
    big black blue bright broken clean cold dark deep dry empty fast full green heavy hot large light little
    long loud narrow new old open plain quiet red round sharp short small soft strong tall thick thin warm wet
    white wide yellow young
    """
)
VERBS = _listed(
    """
    bring build buy carry clean close count cover draw drop fill find fix hide hold keep leave lift lose move
    open paint pull push read sell send show take throw turn use wash watch
    """
)
MONTHS = _listed(
    """
    January February March April May June July August September October November December
    """
)
WORDS = (*NOUNS, *ANIMALS, *ADJECTIVES, *VERBS)
