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
actor adult angel animal answer ant apartment apple apricot arrangement athlete author babies baby bag
baker balconies balcony ball balloon banana banknote barrel basket bat batteries battery beach bead bean
bear bee beetle bell bench berries berry bicycle bike bill bird blanket block blouse board boat bone
book bottle bowl box boy bracelet branch brick brother bucket bug building bunnies bunny burger bus bush
butterflies butterfly button cabin cage cake camel camera camper canal candle candy cap car card carpet
carrot carton cartoon case castle cat chair cherries cherry chicken child children chocolate choice
church circle cities city class classroom climber clip clock cloud clown coat coconut coin color
combination comic committee computer cook cookie cop cousin cover cow crab crate crayon crow cube
cucumber cupcake curtain customer dancer daughter day deer desk diagonal diamond dice digit dinosaur
doctor dog doll dolphin donut door dot doughnut dragon drawer dress driver drum duck eagle edge egg
element elephant employee engine engineer envelope essay event exam face factor fan farmer fence ferries
ferry field finger fireman fish flag flies floor flower fly folder forest fork fossil fountain fox
friend frog fruit function game garden gate geese ghost giraffe girl glass glasses glove goal goat goose
grape guest guitar hammer hamster hand hat head heart hen hill hole hook horse hospital hotel house
insect integer island item jacket jar jewel job juice kangaroo key kid king kitchen kite kitten knife
knives ladder lake lamp lap lawn lawyer leaf leaves leg lemon lesson letter libraries library light
lilies lily line link lion lizard lunch magazine man mango map marble mask match meal melon member men
message mice mile minute monkey monster mountain mouse move movie muffin mug multiple musician napkin
necklace neighbor nest newspaper number nurse nut oak object objects octopus officer onion option orange
outcome owl ox oxen package paddle page painter painting pair_of_shoes palm pan panda paper parade
parent park parrot partition pass passenger path peach peaches peanut pear pebble pen pencil penguin
pennies penny people pepper permutation person photo piano picture piece pig pigeon pillow pilot pin
pineapple pipe pizza place planet plant plate player plum pocket poem point ponies pony pool post
postcard poster pot potato potatoes present prisoner prize problem program pumpkin puppies puppy puzzle
quarter queen question rabbit rat reader recipe record rectangle region ribbon ring river road robot
rock roof room root rope rose row ruler runner sail sailor salad sandwich school scientist scissor
score_points sculpture seal seat section seed sequence set shark sheep shelf shell shelves ship shirt
shoe shop shot shovel shrimp side singer sister skirt sled slice snack snail snake snowman snowmen sock
sofa soldier solution son song spider sponge spoon square squirrel stage stair stamp star statue step
stick sticker stone stories story strawberries strawberry street student subset suit suitcase swan
sweater swimmer table tail tank taxi teacher team teammate teeth tent term test ticket tiger tile tire
toad toe tomato tomatoes tooth tower town toy track tractor train traveler tree triangle trip triple
truck tulip turkey turn turtle umbrella uncle value van vase vegetable vertex vertices village violin
visitor volunteer vote voter vowel waiter wall wallet watermelon way whale wheel window wolf wolves
woman women word worker worm wrench writer yard zebra zero zoo
"""
SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12,
}  # fmt: skip
_COUNTED = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen
"""
NUMBER_WORDS = {word: value for value, word in enumerate(_COUNTED.split())}
_BY_TEN = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS = {word: 10 * value for value, word in enumerate(_BY_TEN.split(), 2)}
_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth"
PARTS = {"half": 2, "halve": 2, **{word: value for value, word in enumerate(_ORDINALS.split(), 3)}}
"""Names of parts of a whole, of one: ``third``. A quarter may be a coin, and is none."""
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
    """The one name of a unit however it is written, or None: ``Inches`` is ``inch``.

    The case of a single letter matters: ``5 M`` is not in meters.
    """
    for form in (word, word.lower()) if len(word) > 1 else (word,):
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
        or low in TENS
        or low in CHANGING
        or low in _CONNECTING
        or (len(run) > 1 and (low in GLUE or low in POWERS or unit_name(run) is not None))
        or (len(run) > 2 and is_noun(run))
    )


_CONNECTING = words(
    """
    and or to by is are mod the if for all any some with yes no true false even odd none red
    blue both that this it be was so as at on from into onto when where axis
    """
)
