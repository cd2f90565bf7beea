"""The words that may stand beside a number without changing it, and those that change it by a factor."""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


_UNITS = """
mm: millimeter millimetre | cm: centimeter centimetre | m: meter metre | km: kilometer kilometre
dm: decimeter | inch: in inches | ft: foot feet | yd: yard | mi: mile | nm: nanometer
mg: milligram | g: gram gm gms | kg: kilogram kgs | lb: lbs pound | oz: ounce | ton: tonne tons
s: sec second secs | ms: millisecond | min: minute mins | h: hour hr hrs | day | week | month
year: yr yrs | decade | century: centuries | ml: milliliter millilitre mL | l: liter litre L
gal: gallon | qt: quart | pt: pint | cup | tablespoon: tbsp | teaspoon: tsp
dollar: dollars usd bucks | cent: cents | euro: eur euros | pound_money: gbp | yen | rupee: rs
deg: degree degrees | rad: radian radians | degC: celsius | degF: fahrenheit | K: kelvin
N: newton | J: joule | W: watt | V: volt | A: ampere amp | ohm | Hz: hertz | Pa: pascal | mol: mole
kW: kilowatt | kJ: kilojoule | kWh | cal: calorie | kcal | eV | mph | kph: kmh | bit | byte
unit: units u | acre | hectare: ha | percent: percents pct | am: a.m | pm: p.m | square_unit: sq_unit
"""
_NOUNS = """
adult animal answer apple arrangement bag ball balloon banana bead bean bird block boat book bottle
box boy bracelet brick bus cake candy candle car card carton case cat chair chicken child children
choice circle class clip coin color combination committee cookie cow crayon customer cube day
diagonal dice digit dog donut doughnut dot edge egg element employee event face factor fan fish flower
friend function game girl goal grape guest hat hen horse house integer item jar job kid kitten lap
lawn lemon letter line link man men marble match meal member message mile minute mouse mice movie
move muffin multiple necklace number nut objects object option orange outcome page pair_of_shoes
painting parent partition pass path peach peaches pear pen pencil penny pennies people permutation
person photo piece pig pizza place plant player point post potato potatoes present problem puppy
puppies question quarter rabbit rectangle region ribbon ring root rose row runner score_points seat
section sequence set sheep shirt shoe shot side slice snack solution song square stamp star step stick
sticker stone story stories student subset sweater table teacher team term test ticket tile toy track
train tree triangle triple trip turn value vase vertex vertices visitor vote vowel watermelon way wheel
window woman women word worker yard zebra zero
"""
SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12,
}  # fmt: skip
_COUNTED = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: value for value, word in enumerate(_COUNTED.split())}
ADJECTIVES = words(
    """
    red blue green white black yellow orange purple different distinct possible positive full whole
    ordered unique such remaining small large new old
    """
)
"""Words that may stand between a number and what is counted."""
GLUE = words(
    """
    per in a an each the total altogether long wide high tall old apart away
    """
)
"""Words that may stand between or behind units: ``miles per hour``, ``cm long``."""
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
ARTICLES = frozenset(["a", "an", "the"])
CHANGING = words(
    """
    not no never wrong incorrect isn't false except unless but maybe perhaps possibly probably
    about roughly approximately approx around nearly almost over under above below less more
    fewer greater least most than between either neither times plus minus half twice double
    triple remainder
    """
)
"""Words that no label may hold: ``not x = 5`` does not say that x is 5."""


def _unit_table() -> dict[str, str]:
    table: dict[str, str] = {}
    for entry in re.split(r"[|\n]", _UNITS):
        name, _, others = entry.strip().partition(":")
        for word in (name.strip(), *others.split()):
            if word:
                table[word] = name.strip()
    return table


UNITS = _unit_table()
NOUNS = frozenset(_NOUNS.split()) - {"zero", "pair_of_shoes", "score_points", "set"}


def unit_name(word: str) -> str | None:
    """The one name of a unit however it is written, or None: ``Inches`` is ``inch``."""
    for form in (word, word.lower()):
        for candidate in (form, singular(form)):
            if candidate in UNITS:
                return UNITS[candidate]
    return None


def singular(word: str) -> str:
    """An English word without the ending of its plural."""
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def is_noun(word: str) -> bool:
    """Whether a word names things that are counted."""
    word = word.lower()
    return word in NOUNS or singular(word) in NOUNS


def is_word(run: str) -> bool:
    """Whether a run of letters outside ``\\text`` is a word, not a product of variables."""
    low = run.lower()
    return (
        len(run) > 4
        or low in SCALES
        or low in NUMBER_WORDS
        or low in CHANGING
        or low in _CONNECTING
        or (len(run) > 1 and (low in GLUE or low in POWERS or unit_name(run) is not None))
        or (len(run) > 2 and is_noun(run))
    )


_CONNECTING = words(
    """
    and or to by is are mod the if for all any some with yes no true false even odd none red
    blue both that this it be was so as at on from into onto when where
    """
)
