"""Words that several kinds of documents share, with the concepts they carry.

Written by hand. A kind's own words stand in the file of that kind.
"""

from sae_lib.synthetic.world.concepts import declare, declare_family, tag

_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "wolf": "wolves",
    "fox": "foxes", "finch": "finches",
    "calf": "calves",
}  # fmt: skip


def plural(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def article(word: str) -> str:
    """``a`` or ``an``."""
    return "an" if word[0] in "aeiou" else "a"


# --- roles a word can have in a sentence ---------------------------------------------------------

for _id, _description, _words in (
    ("punctuation", "a punctuation mark", ". : ? ! 's"),
    ("determiner", "an article or another determiner", "the a an this that every some its"),
    ("preposition", "a preposition",
     "in of at on from to with for by near under after before into"),
    ("conjunction", "a word that joins two phrases", "and"),
    ("auxiliary", "a form of be, have or do",
     "is are was were has had does"),
    ("negation", "a word that negates", "not never"),
    ("question-word", "a word that opens a question", "what who where which"),
    ("adverb", "an adverb",
     "very really again there once home"),
    ("noun-singular", "a noun in the singular", ""),
    ("noun-plural", "a noun in the plural", ""),
    ("verb-past", "a verb in the past tense", ""),
    ("verb-present", "a verb in the present tense, third person singular", ""),
    ("verb-present-plural", "a verb in the present tense, plural", ""),
    ("verb-base", "a verb in its base form", ""),
    ("adjective", "an adjective", ""),
    ("pronoun", "a personal or possessive pronoun", "i it they my"),
    ("proper-name", "part of the name of a person, place or company", ""),
):  # fmt: skip
    declare(_id, f"The word is {_description}.", words=_words)

declare("female-pronoun", "The word is she or her.", parents=("pronoun",), words="she her")
declare("male-pronoun", "The word is he or his.", parents=("pronoun",), words="he his")
declare("full-stop", "The mark that ends a statement.", parents=("punctuation",), words=".")
declare("question-mark", "The mark that ends a question.", parents=("punctuation",), words="?")

# --- numbers and time ----------------------------------------------------------------------------

DIGITS = tuple("0123456789")
NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = ("january", "february", "april", "june", "july", "august", "october", "december")
SEASONS = ("spring", "summer", "autumn", "winter")
PARTS_OF_DAY = ("morning", "afternoon", "evening", "night")
declare("number", "The word is a digit or a number word.")
declare("digit", "The word is a digit.", parents=("number",), words=DIGITS)
declare("number-word", "The word spells a number.", parents=("number",), words=NUMBER_WORDS)
declare("time-word", "The word says when.", words="year week day")
declare_family(
    "time-word",
    {
        "weekday": " ".join(DAYS),
        "month": " ".join(MONTHS),
        "season": " ".join(SEASONS),
        "part-of-day": " ".join(PARTS_OF_DAY),
    },
    "The word names a {}.",
    part_of_speech="noun-singular",
)

# --- names ---------------------------------------------------------------------------------------

FEMALE_NAMES = listed(
    "mara elsa nadia greta ingrid helena clara bianca teresa sonia lydia paula marta irene "
    "judith agnes vera alice diana laura monica sylvia rachel naomi esther miriam louisa nora "
    "edith ursula wilma yvonne zelda olga petra hanna"
)
MALE_NAMES = listed(
    "tomas erik anton viktor hugo oscar felix leon martin stefan carlos diego pablo hector "
    "arthur edgar walter harold conrad dennis gordon howard julian kevin lewis marcus nolan "
    "otto philip quentin ralph simon trevor vincent warren yusuf"
)
NEUTRAL_NAMES = listed(
    "robin alex jordan taylor morgan casey jamie avery quinn riley rowan sasha kim "
    "lee noel ariel devon emery"
)
LAST_NAMES = listed(
    "quill harrow benton carver dalton ellery farrow grady hadley ivers jasper keller lambert "
    "mercer norris oakley porter ramsey sawyer thorpe upton vance weston yates zeller abbott "
    "barlow coburn draper egerton fenwick garner holloway ingram jarvis kendal lockhart maddox "
    "nesbit ormond pruitt quimby rourke selwyn tilden underhill vickers whitaker yardley ashby "
    "bristow cormack dunmore eastman forsyth gilmore hartwell irving kirby langley merrick "
    "northrop osborne paxton redmond stanwick tolliver usher varley winslow alcott bexley crosby "
    "denholm everett fairfax gresham huxley"
)
CITY_STEMS = listed(
    "arden belmor calder dovren elstow fenmark galdor hestin ivardo jorvale keldon lumen marrow "
    "nerith oswin pellam quorra rostok selby torvan ulmar vesper wendal yarrow zephra aldwin "
    "brisco corvin dunsel emberly frisk gorland hollin islet jundra kestra loxley mirren nolby "
    "orsay"
)
CITY_ENDINGS = ("falls", "springs", "heights", "crossing", "haven", "ridge")
COUNTRY_STEMS = listed(
    "velmar ostania quorland bredia calvonia drellin estoria falmark gorvia haldor istria "
    "jalmora karvell lorvane mordania nystria ombria pravia ruvania sarkel tarvia ulteria "
    "vostland zembla"
)
COUNTRY_HEADS = ("republic", "kingdom", "isle", "union")
COMPANY_ENDINGS = ("motors", "foods", "textiles", "airways", "optics", "mining")
RIVERS = listed(
    "aldra corva delph eskar foyle grenna halder isen jarra kolva lenne morva nadder "
    "orle pendra rhona sorne tavy uska veyra wharn yssel"
)
CURRENCIES = listed(
    "dorn krell lupa marn osk pelt quan rell sarn tolar umbra varn wend zloty crown florin "
    "ducat thaler groat shilling"
)
LANGUAGES = listed(
    "velmaric ostanian quorish bredian calvish drellic estorian falmar gorvic haldish istric "
    "jalmor lorvan mordic nystrian ombric pravian"
)
CONTINENTS = ("norda", "estra", "sudara", "vestia", "medara", "polara")

declare("person-name", "The word is part of a person's name.", parents=("proper-name",))
declare("first-name", "The word is a first name.", parents=("person-name",))
declare_family(
    "first-name",
    {
        "female-name": " ".join(FEMALE_NAMES),
        "male-name": " ".join(MALE_NAMES),
        "neutral-name": " ".join(NEUTRAL_NAMES),
    },
    "The word is a {}.",
)
declare("last-name", "The word is a last name.", parents=("person-name",), words=LAST_NAMES)
declare("place-name", "The word is part of the name of a place.", parents=("proper-name",))
declare_family(
    "place-name",
    {
        "city-name": " ".join(CITY_STEMS + CITY_ENDINGS),
        "country-name": " ".join(COUNTRY_STEMS),
        "country-head": " ".join(COUNTRY_HEADS),
        "river-name": " ".join(RIVERS),
        "continent-name": " ".join(CONTINENTS),
    },
    "The word is a {}, or part of one.",
)
declare(
    "company-ending",
    "The word ends the name of a company.",
    parents=("proper-name",),
    words=COMPANY_ENDINGS,
)
declare("currency", "The word names a currency.", words=CURRENCIES)
declare("language", "The word names a language.", words=LANGUAGES)
tag("noun-singular", CURRENCIES + LANGUAGES)

# --- animals -------------------------------------------------------------------------------------

ANIMALS = {
    "mammal": {
        "dog": "dog hound puppy", "cat": "cat kitten", "horse": "horse pony", "cow": "cow calf",
        "mouse": "mouse", "wolf": "wolf", "fox": "fox", "rabbit": "rabbit", "bear": "bear",
        "sheep": "lamb", "goat": "goat",
    },
    "bird": {
        "duck": "duck", "goose": "goose", "owl": "owl", "crow": "crow raven",
        "sparrow": "sparrow finch", "eagle": "eagle hawk",
    },
    "fish": {"pike": "pike", "eel": "eel", "carp": "carp"},
    "reptile": {"lizard": "lizard", "snake": "snake", "turtle": "turtle"},
    "insect": {"bee": "bee", "ant": "ant", "beetle": "beetle"},
}  # fmt: skip
PETS = listed("dog cat pony rabbit lizard turtle kitten puppy parrot hamster goat finch")
ANIMAL_WORDS = tuple(
    word
    for members in ANIMALS.values()
    for names in members.values()
    for word in names.split()
    if plural(word) != word  # so that number agreement can be read from the noun
)

declare("animal", "The word names an animal.")
for _group, _members in ANIMALS.items():
    declare(_group, f"The word names a {_group}.", parents=("animal",))
    for _leaf, _names in _members.items():
        _singular = _names.split()
        _plurals = [plural(word) for word in _singular]
        declare(_leaf, f"The word names a {_leaf}.", parents=(_group,), words=_singular + _plurals)
        tag("noun-singular", _singular)
        tag("noun-plural", _plurals)
tag("bird", "parrot")
tag("mammal", "hamster")
tag("noun-singular", "parrot hamster")

# --- professions ---------------------------------------------------------------------------------

PROFESSIONS = {
    "medical": "nurse surgeon dentist midwife pharmacist",
    "artistic": "painter singer dancer poet sculptor",
    "technical": "engineer mechanic electrician plumber programmer",
    "academic": "teacher librarian physicist chemist historian",
    "service": "waiter cook barber florist tailor",
    "outdoor": "farmer sailor miner carpenter gardener",
}
WORKPLACES = {
    "medical": ("hospital", "clinic"),
    "artistic": ("theater", "gallery"),
    "technical": ("factory", "workshop"),
    "academic": ("university", "college"),
    "service": ("shop", "inn"),
    "outdoor": ("estate", "yard"),
}
FAMILY_OF_PROFESSION = {
    word: family for family, names in PROFESSIONS.items() for word in names.split()
}
TYPED_FEMALE = listed(
    "nurse midwife pharmacist dancer singer poet programmer chemist teacher librarian florist "
    "tailor waiter gardener sailor"
)
TYPED_MALE = tuple(word for word in FAMILY_OF_PROFESSION if word not in TYPED_FEMALE)

declare("profession", "The word names a profession.")
for _family, _names in PROFESSIONS.items():
    declare(
        f"{_family}-profession",
        f"The word names a profession of the {_family} kind.",
        parents=("profession",),
    )
    for _word in _names.split():
        declare(_word, f"The word is {_word}.", parents=(f"{_family}-profession",), words=_word)
        tag("noun-singular", _word)
declare(
    "workplace",
    "The word names a place where people work.",
    words=[word for places in WORKPLACES.values() for word in places],
)
tag("noun-singular", [word for places in WORKPLACES.values() for word in places])

# --- things, qualities ---------------------------------------------------------------------------

COLORS = ("red", "blue", "green", "yellow", "black", "white", "purple", "orange", "silver", "brown")
INSTRUMENTS = ("piano", "violin", "flute", "cello", "trumpet", "guitar", "drum", "harp")
FOODS = listed("cheese honey bread apples soup berries cakes noodles olives pears")
CLIMATES = ("mild", "rainy", "dry", "cold", "hot", "windy")
declare("color", "The word is a color.", words=COLORS)
declare("instrument", "The word names a musical instrument.", words=INSTRUMENTS)
declare("food", "The word names food.", words=FOODS)
declare("climate", "The word describes a climate.", words=CLIMATES)
declare("kinship", "The word names a relative or friend.")
declare_family(
    "kinship",
    {"female-relative": "sister mother daughter aunt", "male-relative": "brother father son uncle"},
    "The word names a {}.",
    part_of_speech="noun-singular",
)
tag("kinship", "friends family children")
tag("adjective", COLORS + CLIMATES)
tag("noun-singular", (*INSTRUMENTS, "family", "bread", "honey", "soup"))
tag("noun-plural", "apples berries cakes noodles olives pears friends children")
tag("noun-singular", "year week day question answer birthplace profession instrument pet country "
    "river specialty climate capital currency language continent headquarters founder color city "
    "news review verdict rating unknown people request reply")  # fmt: skip
declare("unknown-answer", "The word is unknown.", words="unknown")

# --- words of stories and of other kinds ----------------------------------------------------------

PLACES = ("forest", "village", "garden", "cave", "hill", "mill", "bridge", "pond")
SIZES = ("little", "tiny", "large", "young", "old", "clever", "lazy")
# base form, third person singular
MOTIONS = (("run", "runs"), ("walk", "walks"), ("jump", "jumps"), ("crawl", "crawls"),
           ("wander", "wanders"), ("rush", "rushes"))  # fmt: skip
HAPPY = ("happy", "glad", "proud", "joyful", "grateful")
SAD = ("sad", "lonely", "afraid", "angry", "hungry", "tired")

declare("story-place", "The word names a place where stories happen.", words=PLACES)
declare("size-word", "The word describes how big, old or clever somebody is.", words=SIZES)
declare("emotion", "The word names a feeling.")
declare("happy-feeling", "The word names a happy feeling.", parents=("emotion",), words=HAPPY)
declare("sad-feeling", "The word names an unhappy feeling.", parents=("emotion",), words=SAD)
declare("motion-verb", "The verb is about moving.",
        words=[form for forms in MOTIONS for form in forms])  # fmt: skip

# --- letters -------------------------------------------------------------------------------------

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""In upper case, so that they differ from the words a and i."""
declare("letter", "The word is a single letter.", words=LETTERS)
declare("vowel", "The word is a vowel letter.", parents=("letter",), words="A E I O U")
