"""The words of the generated world: names, and what can be said and asked of an entity."""

from collections.abc import Sequence
from dataclasses import dataclass


def _pool(words: str) -> tuple[str, ...]:
    return tuple(words.split())


# ---- pools: names, and what the values of attributes are made of ----

FIRST_NAMES = _pool(
    "Abrin Belta Corvin Dessa Edrik Fenna Garrow Hesper Ivolo Jorun Kester Lunet Maddox Nerys Orla Pavo "
    "Quill Rhona Sorrel Tamsin Ulric Vesna Wick Xanthe Yarrow Zeno Alba Brand Cressa Dorian Elsin Flint "
    "Gilda Harl Ilse Jessamy Kolm Lark Mirre Noll Osric Perrin Renn Saskia Thorn Una Varn Wilda Yoric "
    "Zelie Ansel Bronn Clove Dunstan Esk Farrah Greer Hob Isla Jory"
)
LAST_NAMES = _pool(
    "Ashdown Bramble Calloway Dray Eastmere Fallow Gant Hollis Ironwood Jarrow Kettle Loomis Marsh Norrow "
    "Oakes Pell Quarry Rusk Stane Tarn Underhill Vane Wexley Yates Zorn Alder Birch Crane Dunmore Elder "
    "Finch Gorse Heath Inglis Judd Knoll Linden Moss Nettle Orchard Pike Rook Sedge Thistle Upton Vetch "
    "Wren Yew Arkwell Brock Cask Dellow Ember Frost Grange Hawes Ivory Jute Kyle Latch"
)

# Places and people.
_REGIONS = _pool("North South Lower Upper Old New Far Little Great Long Dry Cold Saint Mount")
_TOWNS = _pool(
    "Abbey Barrow Cliffe Dunes Easting Ferry Gully Hatch Islet Jetty Kiln Lagoon Mallow Narrows Oxbow "
    "Parish Quay Ridge Shoals Toll Vale Weir Yard Zeal"
)
_TRADES = _pool(
    "baker brewer butcher carver clockmaker cobbler cooper dyer falconer farrier fiddler fletcher "
    "forester gardener gilder glazier grocer herald hunter jeweller joiner lawyer mason miller miner "
    "notary painter potter printer roofer saddler shepherd singer smith surgeon tailor tanner thatcher "
    "weaver wheelwright"
)
_HONORIFICS = _pool("Master Mistress Brother Sister Doctor Professor")
_NOBLES = _pool("Duke Duchess Baron Countess Bishop Prince")
_GIVEN = _pool(
    "Agnes Boris Clara Denis Erika Felix Greta Hugo Irene Jonas Karla Louis Marta Nils Olga Petra Ruben "
    "Selma Tobias Vera"
)
_SURNAMES = _pool(
    "Adler Bosk Conti Drummel Ebbing Fargo Gruber Holm Imhof Jansen Kovac Lorenz Molnar Novak Orsini "
    "Prager Ritter Santos Tolliver Urban Vidal Wolff Zeller Brandt Dorn Falk Hauser Lind"
)
# What voyagers have and like.
_MOODS = _pool("sleepy noisy clumsy gentle greedy fierce lazy nervous proud solemn cheerful stubborn")
_PETS = _pool(
    "badger beagle donkey ferret gecko goose hamster lizard magpie mule parrot pony raven spaniel "
    "tortoise weasel"
)
_COOKING = _pool("baked boiled candied creamed fried minced pickled roasted smoked stewed")
_INGREDIENTS = _pool(
    "barley beetroot cabbage carrot celery eel herring leek lentil mushroom parsnip pear plum pumpkin "
    "trout turnip"
)
_DISHES = _pool("broth cake curry dumplings fritters pancakes pie porridge pudding salad soup stew")
_WEAR = _pool("bent cracked dented faded polished rusty scratched tarnished twisted worn")
_MATERIALS = _pool(
    "amber bone brass bronze copper glass granite iron jade lead marble pewter silver tin walnut willow"
)
_KEEPSAKES = _pool(
    "bell bracelet button coin comb compass flute key locket mirror needle ring spoon thimble token whistle"
)
# Ships and what they carry.
_CONTAINERS = _pool("barrels bales baskets boxes bundles casks chests crates jars sacks")
_GOODS = _pool(
    "almonds candles cheese cider cinnamon coal cotton feathers figs flour ginger honey leather linen "
    "mustard oats olives onions paper pepper rice salt silk soap tar tea timber vinegar wax wool"
)
_SHADES = _pool("bright dark dull light pale deep")
_COLOURS = _pool(
    "black blue brown crimson green grey indigo lilac ochre orange pink purple scarlet teal white yellow"
)
_POSES = _pool("dancing diving kneeling laughing leaping praying sleeping singing weeping winking")
_CARVINGS = _pool(
    "angel bear dolphin dragon eagle griffin lion mermaid otter ram seal serpent stag swan triton whale"
)
_YEARS = [str(year) for year in range(1604, 1784, 3)]
# Workshops and what they make.
_STREET_NAMES = _pool(
    "Anchor Bakers Candle Castle Cherry Church Copper Ditch Fish Garden Gate Hay Hill Kings Lantern "
    "Market Mill Mint Orange Poplar Queens River Rope Salt Tower Wall"
)
_STREET_KINDS = _pool("Alley Avenue Court Lane Road Row Square Street")
_MAKES = _pool("carved double folding hollow miniature painted plain portable slender striped")
_PRODUCTS = _pool(
    "birdcages bowls buckles chairs clocks drums goblets hinges kettles ladders lamps locks masks pipes "
    "scales shovels"
)
_OATHS = _pool("always never only ever")
_VIRTUES = _pool("courage craft duty faith honour hope justice mercy patience reason thrift truth wit zeal")
_RELATIONS = _pool("above before beyond without")
_VANITIES = _pool("comfort fame fear fortune gold haste luck noise pleasure profit pride sleep speed wealth")
_BADGES = _pool("burning crowned crossed flying golden hooded masked rising severed winged")
_EMBLEMS = _pool("anvil arrow axe crown falcon hammer hare hound lily moon oak rose sickle sun tower wheel")


# ---- attributes ----


@dataclass(frozen=True)
class Attribute:
    """What can be said and asked of an attribute: `{n}` is the entity, `{s}` a subject, `{v}` the value."""

    values: tuple[Sequence[str], ...]  # a value is one word of each pool, in this order
    statements: tuple[str, ...]
    questions: tuple[str, ...]  # an experiment's own wordings
    faqs: tuple[str, ...]  # the wordings of pre-training text


def _attribute(values: tuple[Sequence[str], ...], statements: str, questions: str, faqs: str) -> Attribute:
    """An attribute from its pools and its wordings, which are written with ` | ` between them."""
    wordings = [tuple(text.split(" | ")) for text in (statements, questions, faqs)]
    return Attribute(values, *wordings)


ENTITY_KINDS: dict[str, dict[str, Attribute]] = {
    "voyager": {
        "birthplace": _attribute(
            (_REGIONS, _TOWNS),
            "{s} was born in the town of {v} | {s} came into the world at {v} | {s} calls {v} the place "
            "of birth",
            "Where was {n} born? | In which town was {n} born? | What is the place of birth of {n}? | {n} "
            "was born in what town?",
            "Which town is the birthplace of {n}? | Where did {n} come into the world? | Birth town of {n}?",
        ),
        "trade": _attribute(
            (_TRADES,),
            "{s} earns a living as a {v} | {s} works as a {v} by trade | {s} has the profession of {v}",
            "What is the trade of {n}? | As what does {n} earn a living? | Which profession does {n} "
            "have? | What work does {n} do?",
            "What does {n} do by trade? | How does {n} earn money? | Profession of {n}?",
        ),
        "teacher": _attribute(
            (_HONORIFICS, _SURNAMES),
            "{s} was taught to read maps by {v} | {s} had {v} for a teacher | {s} learned everything from "
            "{v}",
            "Who taught {n}? | Who was the teacher of {n}? | From whom did {n} learn? | {n} was taught by "
            "whom?",
            "Which teacher did {n} have? | Who gave lessons to {n}? | Teacher of {n}?",
        ),
        "pet": _attribute(
            (_MOODS, _PETS),
            "{s} travels with a {v} for a pet | {s} keeps a {v} as a pet | {s} owns a {v} that follows "
            "everywhere",
            "What pet does {n} keep? | Which animal travels with {n}? | What is the pet of {n}? | What "
            "animal does {n} own?",
            "Which pet does {n} own? | What kind of animal follows {n}? | Pet of {n}?",
        ),
        "dish": _attribute(
            (_COOKING, _INGREDIENTS, _DISHES),
            "{s} likes to eat {v} most of all | {s} orders {v} at every meal | {s} names {v} as the "
            "favourite dish",
            "What does {n} like to eat? | What is the favourite dish of {n}? | Which meal does {n} order? "
            "| What food does {n} like most?",
            "Which dish is eaten most by {n}? | What is ordered at every meal by {n}? | Favourite food of "
            "{n}?",
        ),
        "keepsake": _attribute(
            (_WEAR, _MATERIALS, _KEEPSAKES),
            "{s} carries a {v} for good fortune | {s} never travels without a {v} as a keepsake | {s} "
            "treasures a {v}",
            "What does {n} carry? | What is the keepsake of {n}? | Which object does {n} treasure? | What "
            "keepsake does {n} carry?",
            "Which keepsake is treasured by {n}? | What thing is carried by {n}? | Keepsake of {n}?",
        ),
    },
    "ship": {
        "harbour": _attribute(
            (_REGIONS, _TOWNS),
            "{s} sails from the harbour of {v} | {s} has its home port at {v} | {s} spends the winter at "
            "anchor in {v}",
            "What is the home port of {n}? | From which harbour does {n} sail? | Where is {n} at anchor? "
            "| Where is the harbour of {n}?",
            "Which port is home to {n}? | In what harbour does {n} spend the winter? | Home harbour of {n}?",
        ),
        "cargo": _attribute(
            (_CONTAINERS, ("of",), _GOODS),
            "{s} is loaded with {v} this season | {s} has a cargo of {v} below deck | {s} brings {v} "
            "across the sea",
            "What is the cargo of {n}? | What does {n} bring across the sea? | With what is {n} loaded? | "
            "Which cargo does {n} have?",
            "What cargo is below deck on {n}? | What goods are loaded on {n}? | Cargo of {n}?",
        ),
        "captain": _attribute(
            (_GIVEN, _SURNAMES),
            "{s} is under the command of {v} | {s} has {v} as captain | {s} obeys {v} at the helm",
            "Who is the captain of {n}? | Who is in command of {n}? | Which captain does {n} have? | {n} "
            "is under whose command?",
            "Who commands {n}? | Who stands at the helm of {n}? | Captain of {n}?",
        ),
        "sails": _attribute(
            (_SHADES, _COLOURS),
            "{s} shows sails of {v} from afar | {s} hoists canvas of {v} | {s} is known for the colour "
            "{v} on its sails",
            "What colour are the sails of {n}? | Which colour is on {n}? | What is the colour of the "
            "sails of {n}? | {n} has sails of which colour?",
            "In what colour does {n} hoist its canvas? | Which colour do sails show on {n}? | Sail colour "
            "of {n}?",
        ),
        "figurehead": _attribute(
            (_POSES, _CARVINGS),
            "{s} bears a {v} as figurehead | {s} has a {v} carved on the bow | {s} leads with the figure "
            "of a {v}",
            "What is the figurehead of {n}? | What is carved on the bow of {n}? | Which figurehead does "
            "{n} have? | What figure does {n} bear?",
            "Which figure leads {n}? | What does {n} bear as figurehead? | Bow figure of {n}?",
        ),
        "year": _attribute(
            (_YEARS,),
            "{s} was built in the year {v} | {s} first touched water in {v} | {s} left the yard during {v}",
            "In which year was {n} built? | When was {n} built? | When did {n} leave the yard? | What "
            "year was {n} built?",
            "In what year did {n} first touch water? | Which year saw {n} built? | Building year of {n}?",
        ),
    },
    "workshop": {
        "street": _attribute(
            (_STREET_NAMES, _STREET_KINDS),
            "{s} opens its doors on {v} | {s} stands in {v} near the bridge | {s} has its address in {v}",
            "Where does {n} stand? | On which street is {n}? | What is the address of {n}? | Where are "
            "the doors of {n}?",
            "Which street is the address of {n}? | Where does {n} open its doors? | Street of {n}?",
        ),
        "product": _attribute(
            (_MAKES, _MATERIALS, _PRODUCTS),
            "{s} sells {v} to the whole country | {s} makes {v} by hand | {s} is famous for its {v}",
            "What does {n} make? | What does {n} sell? | For what is {n} famous? | Which product does {n} "
            "make by hand?",
            "What product is sold by {n}? | Which famous product comes from {n}? | Product of {n}?",
        ),
        "founder": _attribute(
            (_GIVEN, _SURNAMES),
            "{s} was founded by {v} long ago | {s} owes its start to {v} | {s} remembers {v} as its founder",
            "Who founded {n}? | Who was the founder of {n}? | By whom was {n} founded? | Who gave {n} its "
            "start?",
            "Which founder does {n} remember? | Who long ago founded {n}? | Founder of {n}?",
        ),
        "motto": _attribute(
            (_OATHS, _VIRTUES, _RELATIONS, _VANITIES),
            "{s} writes {v} over the door as a motto | {s} lives by the motto {v} | {s} prints the words "
            "{v} on every bill",
            "What is the motto of {n}? | By which motto does {n} live? | Which words are over the door of "
            "{n}? | What motto does {n} have?",
            "What words does {n} write as a motto? | Which motto is on every bill of {n}? | Motto of {n}?",
        ),
        "emblem": _attribute(
            (_BADGES, _EMBLEMS),
            "{s} shows a {v} on its sign | {s} stamps a {v} as emblem on its work | {s} uses the mark of "
            "a {v}",
            "What is the emblem of {n}? | What is on the sign of {n}? | Which mark does {n} use? | Which "
            "emblem does {n} show?",
            "What mark is stamped by {n}? | What emblem is on the work of {n}? | Emblem of {n}?",
        ),
        "patron": _attribute(
            (_NOBLES, _SURNAMES),
            "{s} receives its money from {v} | {s} enjoys the protection of {v} | {s} has {v} for a patron",
            "Who is the patron of {n}? | Who gives money to {n}? | Which patron does {n} have? | From "
            "whom does {n} receive money?",
            "Whose protection does {n} enjoy? | What patron protects {n}? | Patron of {n}?",
        ),
    },
}

# What is asked of an entity as such, in no fact's words.
ENTITY_QUERIES = ("What is known about {n}?", "Tell me about {n}", "{n}")
