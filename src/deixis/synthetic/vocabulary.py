"""Words for things: which nouns are true, uncertain or false of a labelled class. No pixels, no sentences.

Three-valued on purpose: a pick-up may or may not be called a car, so "car" is uncertain of a truck, and a sentence
that would need it to be false is not used. The names are COCO's 80, those of VOC and DAVIS mapped onto them, and
drawn objects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# name | other true nouns | uncertain nouns | groups it belongs to (also true nouns when in GROUP_WORDS)
_TABLE = """
person | human | man; woman; boy; girl; child; rider; player | people
bicycle | bike; cycle; push-bike | motorcycle; motorbike | vehicle wheels
car | automobile | truck; van; taxi; pickup truck | vehicle road
motorcycle | motorbike | bike; scooter; bicycle | vehicle wheels
airplane | plane; aeroplane; aircraft | jet | vehicle air
bus | coach | truck; van; car; minibus; tram; trolleybus | vehicle road
train | railway train | bus; tram; locomotive; train engine | vehicle rail
truck | lorry | car; van; bus; pickup truck; automobile | vehicle road
boat | vessel | ship; canoe; sailboat; speedboat; ferry; rowboat; motor boat | vehicle water
traffic light | stoplight; traffic signal | | street
fire hydrant | hydrant | | street
stop sign | | traffic sign; sign | street
parking meter | meter | | street
bench | | chair; seat; couch; dining table; table | furniture
bird | | duck; goose; gull; parrot; eagle; flamingo; penguin; chicken; rooster; owl; swan; turkey; dove | animal wing
cat | kitty; feline | kitten | animal pet
dog | canine | puppy; hound; wolf | animal pet
horse | | pony; foal; mare; donkey; carousel horse; unicorn | animal hoof
sheep | | lamb; goat; ram | animal hoof
cow | | bull; calf; ox; buffalo; bison | animal hoof
elephant | | mammoth | animal wild
bear | | brown bear; polar bear; teddy bear; panda | animal wild
zebra | | horse | animal wild
giraffe | | | animal wild
backpack | rucksack | bag; handbag; suitcase; school bag | bag_like
umbrella | parasol | | worn
handbag | purse | bag; backpack; suitcase; pouch | bag_like
tie | necktie | | worn
suitcase | travel case | bag; handbag; backpack; briefcase; luggage | bag_like
frisbee | flying disc | | sport
skis | pair of skis; ski | snowboard | sport
snowboard | | skis; ski; surfboard; skateboard | sport
sports ball | ball | football; soccer ball; tennis ball; baseball; basketball; volleyball | sport
kite | | parachute | sport
baseball bat | bat | | sport
baseball glove | baseball mitt; glove | | sport
skateboard | | snowboard; board | sport
surfboard | | board; snowboard; boat | sport
tennis racket | racket | | sport
bottle | | vase; jar; wine bottle; water bottle; glass | vessel
wine glass | glass; goblet | cup; bottle; vase; bowl | vessel
cup | | mug; glass; bowl; coffee cup; teacup; wine glass; vase | vessel
fork | | spoon; knife | cutlery
knife | | fork; spoon; scissors | cutlery
spoon | | fork; knife; ladle | cutlery
bowl | | cup; plate; dish; vase; sink | vessel
banana | | | food fruit
apple | | orange; peach; tomato | food fruit
sandwich | | hot dog; burger; hamburger; bread; toast; pizza; cake | food dish
orange | orange fruit | apple; tangerine; lemon; peach; carrot | food fruit
broccoli | | vegetable; potted plant; plant | food vegetable
carrot | | vegetable; orange | food vegetable
hot dog | | sandwich; sausage; hamburger | food dish
pizza | | pie; cake; sandwich; slice of pizza | food dish
donut | doughnut | cake; bagel; bread | food dish
cake | | bread; pie; donut; cupcake; sandwich; pizza; birthday cake | food dish
chair | seat | armchair; stool; couch; bench; sofa | furniture
couch | sofa; settee | chair; armchair; bench; seat; bed | furniture
potted plant | house plant; plant in a pot | plant; flower; vase; tree | greenery
bed | | couch; sofa | furniture
dining table | table | desk; bench | furniture
toilet | | sink; seat; chair | bathroom
tv | television; tv set | screen; monitor; laptop; computer | screen_like
laptop | notebook computer; laptop computer | screen; computer; keyboard; tv; monitor | screen_like
mouse | computer mouse | | desk_thing
remote | remote control | cell phone; phone | desk_thing
keyboard | computer keyboard | laptop; musical keyboard | desk_thing
cell phone | mobile phone; phone | remote; telephone; camera | desk_thing
microwave | microwave oven | oven; tv; toaster | kitchen
oven | stove | microwave; cooker; toaster | kitchen
toaster | | oven; microwave | kitchen
sink | wash basin | bowl; bathtub; toilet | bathroom
refrigerator | fridge | | kitchen
book | | magazine; notebook; box | desk_thing
clock | | watch; alarm clock | desk_thing
vase | | bottle; cup; bowl; jar; pot; wine glass; potted plant | vessel
scissors | pair of scissors | knife | desk_thing
teddy bear | stuffed bear; toy bear | bear; toy; doll; animal; dog | toy_thing
hair drier | hair dryer; blow dryer | | bathroom
toothbrush | | | bathroom
duck | mallard; bird | goose | animal wing
flamingo | bird | | animal wing
rhino | rhinoceros | | animal wild
"""

# Drawn objects by the name in their index: "its name = our name | other true nouns | uncertain | groups", or one name.
_DRAWN = """
cactus | | plant | greenery ; palm tree | tree | plant | greenery ; deciduous tree = tree | | plant | greenery
evergreen tree = fir tree | tree; pine tree | christmas tree | greenery ; tulip | flower | plant | flower
rose | flower | plant | flower ; sunflower | flower | plant | flower ; hibiscus | flower | | flower
cherry blossom | flower; blossom | | flower ; mushroom | | vegetable | vegetable
tomato | | apple; fruit | vegetable food ; aubergine = eggplant | aubergine | | vegetable food
grapes | bunch of grapes | | fruit food ; watermelon | slice of watermelon | melon | fruit food
lemon | | orange | fruit food ; tangerine | | orange | fruit food ; banana ; pineapple | | | fruit food
red apple = apple ; green apple = apple ; pear | | apple | fruit food ; peach | | apple | fruit food
cherries | cherry | | fruit food ; strawberry | | | fruit food ; hamburger | burger | sandwich | dish food
slice of pizza = pizza ; bread | loaf of bread | cake | dish food ; french fries | fries | | dish food
sushi | | | dish food ; soft ice cream = ice cream | | | dish food ; doughnut = donut
cookie | biscuit | donut | dish food ; lollipop | | candy | dish food ; shortcake = cake ; birthday cake = cake
hot dog ; taco | | | dish food ; wine glass ; beer mug | mug of beer | cup; glass; wine glass | vessel
bottle with popping cork = bottle ; hot beverage = cup ; popcorn | | | dish food
wrapped present = gift | present | box | toy_thing ; jack-o-lantern | carved pumpkin; pumpkin | | toy_thing
christmas tree | tree | fir tree | greenery ; balloon | | | toy_thing ; graduation cap | | hat; cap | worn
microphone | | | music ; movie camera | | camera | desk_thing ; headphone = headphones | | | music
artist palette | palette | | desk_thing ; top hat | hat | | worn ; circus tent | tent | | building
game die = dice | die | | toy_thing ; saxophone | musical instrument | | music
guitar | musical instrument | banjo; violin | music ; trumpet | musical instrument | | music
violin | musical instrument | guitar | music ; trophy | cup | | sport
american football | ball; football | sports ball | sport ; volleyball | ball | sports ball | sport
soccer ball | ball; football | sports ball | sport ; baseball | ball | sports ball | sport
racing car | race car | car; automobile | vehicle road ; racing motorcycle = motorcycle
house building = house | building | | building ; european castle = castle | building | | building
factory | building | | building ; hospital | building | | building ; rat | | mouse | animal small
ox | | cow; bull; buffalo | animal hoof ; water buffalo = buffalo | water buffalo | cow; ox; bull | animal hoof ; cow
tiger | | leopard | animal wild ; leopard | | tiger | animal wild ; rabbit | bunny | | animal small ; cat ; dog
horse ; sheep ; dragon | | | animal wild ; crocodile | alligator | | animal wild ; whale | | | animal sea
snail | | | animal small ; snake | | | animal small ; ram | | sheep; goat | animal hoof
goat | | sheep; ram | animal hoof ; rooster | chicken; bird | | animal wing ; pig | | boar | animal hoof
boar | | pig | animal hoof ; elephant ; octopus | | squid | animal sea
bug = caterpillar | | bug; worm | animal insect ; ant | insect | bug | animal insect
honeybee = bee | insect | bug | animal insect ; lady beetle = ladybug | insect; beetle | bug | animal insect
fish | | | animal sea ; tropical fish | fish | | animal sea ; turtle | tortoise | | animal sea
penguin | | bird | animal wing ; bird ; koala | | bear | animal wild ; poodle | dog; canine | | animal pet
dromedary camel = camel | | | animal hoof ; dolphin | | | animal sea ; chipmunk = squirrel | | | animal small
crown | | | worn ; eyeglasses | glasses | | worn ; necktie = tie ; t-shirt = shirt | | | worn
jeans | trousers; pants | | worn ; dress | | | worn ; handbag ; school satchel = backpack
athletic shoe | shoe; sneaker | | worn ; high-heeled shoe | shoe | | worn ; womans boots = boot | | shoe | worn
hiking boot | boot; shoe | | worn ; ghost | | | toy_thing ; robot face = robot | | | toy_thing ; skull | | | toy_thing
lipstick | | | worn ; pill | | | desk_thing ; ring | | | worn ; gem stone = diamond | gem; jewel | | worn
bomb | | | toy_thing ; money bag | | bag | bag_like ; seat = chair ; chair ; personal computer = laptop
briefcase | | bag; suitcase | bag_like ; floppy disk | | | desk_thing ; scroll | | | desk_thing ; closed book = book
green book = book ; blue book = book ; orange book = book ; package = box | cardboard box; package | | desk_thing
postbox = mailbox | post box | | street ; telephone receiver = telephone | phone | | desk_thing
mobile phone = cell phone ; camera | | | desk_thing ; television = tv ; radio | | | desk_thing
battery | | | desk_thing ; key | | | desk_thing ; lock = padlock | lock | | desk_thing ; bell | | | music
electric torch = flashlight | torch | | desk_thing ; wrench | spanner | | tool ; hammer | | | tool ; hocho = knife
microscope | | | desk_thing ; telescope | | | desk_thing ; candle | | | desk_thing
spider | | bug; insect | animal insect ; joystick | | | desk_thing ; printer | | | desk_thing
three button mouse = mouse ; wastebasket = trash can | bin | | street ; rocket | | | vehicle air
helicopter | | | vehicle air ; steam locomotive = locomotive | train engine | train | vehicle rail
high-speed train = train ; bus ; trolleybus | | bus | vehicle road ; ambulance | | truck; van; car | vehicle road
fire engine | fire truck | truck | vehicle road ; police car | | car; automobile | vehicle road
taxi | cab | car; automobile | vehicle road ; automobile = car
recreational vehicle = camper van | | car; van; bus | vehicle road ; delivery truck = truck
articulated lorry = truck ; tractor | | truck | vehicle road ; monorail | | train | vehicle rail
ship | | boat | vehicle water ; rowboat | boat | canoe | vehicle water ; speedboat | boat; vessel | | vehicle water
sailboat | boat; vessel | ship | vehicle water ; canoe | | boat | vehicle water ; airplane ; small airplane = airplane
vertical traffic light = traffic light ; door | | | building ; bicycle ; toilet ; bathtub | bath | sink | bathroom
shopping trolley = shopping cart | cart | | street ; bed ; scooter | kick scooter | bicycle; motorcycle; bike | wheels
motor scooter | scooter; moped | motorcycle; bike; motorbike | vehicle wheels ; flying saucer | ufo | | vehicle air
skateboard ; auto rickshaw | rickshaw; tuk-tuk | car | vehicle road
pickup truck | pickup | truck; car | vehicle road ; roller skate | | | sport ; tent | | | building
croissant | | bread | dish food ; avocado | | | fruit food ; cucumber | | | vegetable food ; carrot
potato | | | vegetable food ; baguette bread = baguette | bread | | dish food ; egg | | | dish food
pancakes | | cake | dish food ; pretzel | | bread | dish food ; sandwich ; broccoli
bagel | | donut; bread | dish food ; kiwifruit = kiwi | kiwi fruit | | fruit food ; coconut | | | fruit food
mango | | | fruit food ; crab | | lobster | animal sea ; lobster | | crab | animal sea ; scorpion | | | animal insect
turkey | bird | | animal wing ; eagle | bird | | animal wing ; duck ; bat = flying bat | | bird; bat | animal wing
shark | | fish | animal sea ; owl | bird | | animal wing ; butterfly | insect | bug | animal insect
deer | | | animal hoof ; gorilla | ape | monkey | animal wild ; monkey | | ape | animal wild
lizard | | | animal small ; rhinoceros = rhino ; squid | | octopus | animal sea ; hedgehog | | | animal small
sauropod = dinosaur | long-necked dinosaur | | animal wild ; t-rex = tyrannosaurus | dinosaur; t-rex | | animal wild
kangaroo | | | animal wild ; llama | | | animal hoof ; peacock | bird | | animal wing
hippopotamus = hippo | hippopotamus | | animal wild ; parrot | bird | | animal wing ; raccoon | | | animal small
badger | | | animal small ; swan | bird | | animal wing ; mammoth | | elephant | animal wild ; sloth | | | animal wild
otter | | | animal small ; orangutan | ape | monkey | animal wild ; skunk | | | animal small ; flamingo
beaver | | | animal small ; bison | | cow; buffalo; ox | animal hoof ; seal | | | animal sea
unicorn face = unicorn head | unicorn | horse | animal hoof ; cheese wedge = cheese | | | dish food
cupcake | | cake | dish food ; billed cap = cap | | hat | worn ; scarf | | | worn ; gloves | | | worn
coat | | | worn ; socks | | | worn ; compass | | | desk_thing ; abacus | | | desk_thing
fire extinguisher | | | street ; toolbox | | box | tool ; magnet | | | desk_thing ; luggage = suitcase
ball of yarn | yarn | ball | toy_thing ; teddy bear ; broom | | | tool ; basket | | | bag_like ; axe | | | tool
banjo | musical instrument | guitar | music ; accordion | musical instrument | | music
long drum = drum | musical instrument | | music ; screwdriver | | | tool ; ladder | | | tool ; mirror | | | bathroom
bucket | | | tool ; toothbrush ; rock | stone | | street ; worm | | snake | animal insect ; potted plant
teapot | | pot | vessel ; jar | | bottle | vessel ; blueberries | | | fruit food
bell pepper | pepper | | vegetable food ; watch | wristwatch | clock | worn ; hourglass | | | desk_thing ; keyboard
alarm clock | clock | | desk_thing ; umbrella ; snowman | | | toy_thing ; anchor | | | street
scales | | | desk_thing ; black telephone = telephone ; church | building | | building ; fountain | | | building
fuel pump | gas pump | | street ; black scissors = scissors ; pencil | | pen | desk_thing
red gift envelope = red envelope | | | desk_thing ; kite ; parachute | | kite | sport ; boomerang | | | sport
boxing glove | glove | | sport ; sled | | | sport ; guide dog = dog ; vampire | | person | toy_thing ; spoon
nut and bolt | | | tool ; magic wand | wand | | toy_thing
"""

GROUP_WORDS = ("animal", "vehicle", "food", "fruit", "furniture", "vegetable")
# Not in any group above, but a reader may well call them so: uncertain, so never needed false.
_GROUP_DOUBTS = {
    "animal": {"person", "teddy bear", "dragon", "carousel horse", "spider", "ghost", "robot"},
    "vehicle": {"skateboard", "surfboard", "bicycle", "skis", "snowboard", "scooter", "shopping cart", "sled", "bench"},
    "food": {"bowl", "bottle", "cup", "potted plant", "mushroom", "teapot", "jar", "beer mug", "egg", "wine glass"},
    "fruit": {"tomato", "carrot", "broccoli", "bell pepper", "eggplant", "cake"},
    "vegetable": {"potted plant", "apple", "orange", "sandwich", "pizza", "banana"},
    "furniture": {"sink", "toilet", "tv", "refrigerator", "oven", "door", "microwave", "book", "potted plant"},
}


@dataclass(frozen=True)
class Noun:
    """What a class may be called. ``true``: certain; ``maybe``: uncertain; any other noun is false of it."""

    name: str
    true: tuple[str, ...]
    maybe: frozenset[str]
    groups: tuple[str, ...]


def _split(field: str) -> list[str]:
    return [word.strip() for word in field.split(";") if word.strip()]


def _noun(name: str, other: str, maybe: str, groups: str) -> Noun:
    own = groups.split()
    supers = [g for g in own if g in GROUP_WORDS]
    true = tuple(dict.fromkeys([name, *_split(other), *supers]))
    doubts = {group for group, names in _GROUP_DOUBTS.items() if name in names}
    return Noun(name, true, frozenset([*_split(maybe), *doubts]) - set(true), tuple(own))


def _read() -> tuple[dict[str, Noun], dict[str, str]]:
    nouns: dict[str, Noun] = {}
    for line in _TABLE.strip().splitlines():
        fields = [part.strip() for part in line.split("|")]
        nouns[fields[0]] = _noun(*fields)
    drawn: dict[str, str] = {}
    for entry in (e.strip() for line in _DRAWN.strip().splitlines() for e in _entries(line)):
        head, *rest = [part.strip() for part in entry.split("|")]
        source, _, name = (part.strip() for part in head.partition("="))
        drawn[source] = name or source
        if rest:
            nouns.setdefault(name or source, _noun(name or source, *rest))
    return _both_ways(nouns), {source: name for source, name in drawn.items() if name in nouns}


def _both_ways(nouns: dict[str, Noun]) -> dict[str, Noun]:
    """Doubt goes both ways: a police car may be called a car, so a car may be a police car."""
    maybe = {name: set(noun.maybe) for name, noun in nouns.items()}
    for noun in nouns.values():
        for word in {*noun.true, *noun.maybe} & set(nouns) - {noun.name}:
            maybe[word] |= set(noun.true) - set(nouns[word].true) - set(GROUP_WORDS)
    return {name: replace(noun, maybe=frozenset(maybe[name])) for name, noun in nouns.items()}


def _entries(line: str) -> list[str]:
    """Entries of a line are parted by " ; " (blank before the sign); "; " parts words within an entry."""
    return line.split(" ; ")


NOUNS, DRAWN_NAMES = _read()
# Drawn shapes of the generated benchmark: a vocabulary of their own; no sentence on a real picture says "a circle".
SHAPES = {
    noun.name: noun
    for noun in (
        _noun("circle", "disc", "", "shape"), _noun("square", "", "", "shape"), _noun("triangle", "", "", "shape"),
        _noun("star", "", "", "shape"), _noun("heart", "", "", "shape"), _noun("cross", "plus sign", "", "shape"),
        _noun("hexagon", "", "circle; disc", "shape"), _noun("crescent", "moon", "", "shape"),
        _noun("arrow", "", "triangle", "shape"), _noun("hoop", "circular band", "circle; disc", "shape"),
        _noun("rhombus", "lozenge", "square", "shape"), _noun("drop", "teardrop", "", "shape"),
    )
}  # fmt: skip
COCO_NAMES = frozenset(line.split("|")[0].strip() for line in _TABLE.strip().splitlines()[:80])
SAME_AS = {"sofa": "couch", "tv monitor": "tv", "motorbike": "motorcycle", "aeroplane": "airplane"}  # VOC -> COCO
VOC_NAMES = frozenset({
    "dog", "cat", "person", "horse", "sheep", "cow", "chair", "couch", "car", "potted plant", "bottle", "tv",
    "dining table", "bird", "bicycle", "motorcycle", "boat", "bus", "train", "airplane",
})  # fmt: skip
INDOOR_GROUPS = frozenset(
    {"vessel", "cutlery", "dish", "food", "bathroom", "screen_like", "desk_thing", "kitchen", "music", "tool"}
)
# So common in any picture without a label that their absence is never certain.
EVERYWHERE = frozenset({
    "accordion", "athletic shoe", "bag", "balloon", "basket", "bath", "bathtub", "beer mug", "bell", "bin",
    "blossom", "boot", "box", "bread", "broom", "bucket", "bug", "building", "camera", "candle", "cap",
    "cardboard box", "cart", "castle", "cherry blossom", "christmas tree", "church", "coat", "door", "dress",
    "drum", "factory", "fir tree", "fire extinguisher", "flower", "food", "fountain", "fruit", "furniture", "gift",
    "glasses", "glove", "gloves", "guitar", "hammer", "hat", "headphones", "high-heeled shoe", "hiking boot",
    "hospital", "house", "insect", "jar", "jeans", "key", "ladder", "lantern", "lock", "mailbox", "meter",
    "microphone", "mirror", "mug", "mug of beer", "musical instrument", "package", "palm tree", "pants", "pen",
    "pencil", "pine tree", "plant", "plate", "pot", "present", "printer", "pumpkin", "radio", "ring", "robot",
    "rock", "roller skate", "saxophone", "scales", "scarf", "screen", "shirt", "shoe", "shopping cart", "sign",
    "sneaker", "socks", "stone", "teapot", "telephone", "tent", "tool", "trash can", "tree", "trophy", "trousers",
    "trumpet", "vegetable", "violin", "wand", "watch",
})  # fmt: skip


# Food that COCO and VOC do not label lies on many of their plates.
UNLABELLED_FOOD = frozenset(
    word
    for noun in NOUNS.values()
    if noun.name not in COCO_NAMES and {"food", "dish", "fruit", "vegetable"} & set(noun.groups)
    for word in noun.true
)


def article(noun: str) -> str:
    """The article of a noun: a, an, nothing for a plural, the for "one"."""
    if noun == "one":
        return "the"
    if noun in PLURALS:
        return ""
    return "an" if noun[0] in "aeiou" and not noun.startswith(("uni", "ufo")) else "a"


PLURALS = frozenset({
    "blueberries", "bread", "broccoli", "cheese", "cherries", "dice", "eyeglasses", "food", "french fries",
    "fries", "fruit", "furniture", "glasses", "gloves", "grapes", "headphones", "jeans", "luggage", "pancakes",
    "pants", "popcorn", "scales", "scissors", "skis", "socks", "sushi", "trousers", "yarn",
})  # fmt: skip


_IRREGULAR = {
    "person": "people", "sheep": "sheep", "mouse": "mice", "computer mouse": "computer mice", "knife": "knives",
    "fish": "fish", "tropical fish": "tropical fish", "deer": "deer", "bison": "bison",
    "aircraft": "aircraft",
}  # fmt: skip


def plural(noun: str) -> str:
    """The plural of a noun that has a regular one or stands in the short list of others."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun in PLURALS:
        return noun
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"
