import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.vocabulary import CATEGORIES, VOCABULARY, Word, category_of, subject_names, subject_words

COCO = set(
    re.split(
        r",\s+",
        """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
    laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush""",
    )
)

CLIPS = {
    "A group of young girls are playing soccer on a green grass field with a goal in the background.": "girl",
    "An orange dodge challenger parked in front of a house.": "car",
    "A group of dolphins are swimming in the ocean.": "dolphin",
    "A cat laying on a rug with a leash around its neck.": "cat, rug",
    "A blue toyota tacoma truck is parked in a parking lot surrounded by trees.": "truck, tree",
    "A person is holding a long haired dachshund in their arms.": "person, dachshund",
    "There is a man in a white chef's coat standing in a commercial kitchen, holding a plate with a dessert on it.": (
        "man, plate, dessert"
    ),
    "A pink frosted cake sitting on a table.": "cake, table",
    "A man is standing in front of a white porsche race car, holding a cup of coffee and talking to another person.": (
        "man, race car, cup, person"
    ),
    "A star wars themed store with shelves full of merchandise.": "shelf",
    "A skateboarder performs a trick in a skate park.": "skateboarder",
    "A man and his dog walk through a snowy forest.": "man, dog",
    "A bmw car driving down a road with clouds in the background.": "car",
    "A rocket launches into space on the launch pad.": "rocket",
    "A shirtless man holding two dumbbells in his hands.": "man, dumbbell",
    "There is a lake surrounded by trees, and the sky is blue with white clouds.": "tree",
    "A little boy is playing with a basketball in the city.": "boy, basketball",
    "A video game screen with a red brick wall and stairs.": "",
    "A man is inspecting several large tortoises.": "man, tortoise",
    "A comedian is performing on stage and using a microphone.": "comedian, microphone",
    "A person is using a chef's knife to chop fresh parsley on a wooden cutting board.": "person, knife, cutting board",
    "Men in suits are sitting around a table talking.": "man, table",
    "A young woman is sitting in a recording studio wearing headphones and talking into a microphone.": (
        "woman, headphones, microphone"
    ),
    "A close up of a blender with strawberries in it.": "blender, strawberry",
    "Two men hugging each other in front of a trophy.": "man, trophy",
    "Woman eating at kitchen table.": "woman, table",
    "White car on winding road.": "car",
    "Echidna on grass.": "echidna",
    "Free diver under water.": "diver",
    "Two men talking in a garage.": "man",
    "Cartoon band.": "",
    'Man in grey t-shirt signs "bird" in an office.': "man",
    'Woman in orange hoodie signs "book" in an office.': "woman",
    'Man in black skull sweatshirt signs "student" in an office.': "man",
    "Hand places and takes three bottles.": "bottle",
    "People come and stand one by one, seen from behind (139 s).": "person",
    "Man juggles a football.": "man, football",
    "Two children jump on a bed.": "child, bed",
    "Hand pours coffee in blue mug.": "mug",
    "Brown bear walks.": "bear",
    "Woman face close-up.": "woman",
    "Red-haired woman in plant shop.": "woman",
    "Two young people, one combs hair.": "person",
    "Woman turns in red dress.": "woman",
    "Toy rabbit on wood.": "rabbit",
    "Sintel (animation), many cuts.": "",
    "The women's expressions suggest a friendly interaction. The camera remains static, focusing on the group.": "",
    "Tree, near static camera, overexposed.": "tree",
    "Person flips pancake, blurred.": "person, pancake",
    "Singer, 192x144, several shots.": "singer",
    "Dog rides skateboard.": "dog, skateboard",
    "Pov motorcycle ride, 3840x2160 (origin unknown).": "motorcycle",
    "People walk in a yard, surveillance view.": "person",
}

GRAMMAR = {
    "A hot dog on a plate.": "hot dog, plate",
    "A race car driver waves.": "driver",
    "A RACE-CAR and a motor bike, beside a rocking chair": "race car, motorcycle, chair",
    "A cat toy lies on the rug.": "toy, rug",
    "A soccer ball": "soccer ball",
    "A truck stop at night.": "",
    "A truck stops at the light.": "truck",
    "A bus station behind a car park full of cars.": "car",
    "Dog food in a bowl beside a cup holder.": "bowl",
    "A flower field, a dog park and tomato sauce": "",
    "The dogs' bowls and the girl's kite": "bowl, kite",
    "A dog-shaped cake": "cake",
    "Puppies in an automobile": "puppy, car",
    "Two wolves and three mice near some geese": "wolf, mouse, goose",
    "A dog. The same dog, two dogs.": "dog",
    "“A cat”": "cat",
    '"A cat"': "cat",
    "A glass of water on a table": "drinking glass, table",
}

FALSE_FRIENDS = {
    "The man rose from his chair.": "man, chair",
    "The sun rose over the sea.": "",
    "A red rose in a vase, two roses": "rose, vase",
    "An orange car and an orange.": "car, orange",
    "He peels an orange and eats it.": "orange",
    "A wall painted orange": "",
    "A bird flies over boys who fly kites.": "bird, boy",
    "A man trains a dog.": "man, dog",
    "Soldiers train in a yard.": "soldier",
    "To train is hard": "",
    "A toy train on a table": "train, table",
    "He ducks quickly. A duck swims": "duck",
    "A rocket leaves the earth.": "rocket",
    "A cat lounges while a woman peels an orange and a man signs it.": "cat, woman, orange, man",
    "A man saw a bird and took a saw.": "man, bird, saw",
    "A boy kayaks; a boy in a kayak": "boy, kayak",
    "Girls fish from a boat": "girl, boat",
    "A fish in a fish tank": "fish, fish tank",
    "Grilled chicken on a plate, beside a chicken": "plate, chicken",
    "She plays basketball; he throws a basketball.": "basketball",
    "The camera pans over a horse.": "horse",
    "A woman holds a camera.": "woman, camera",
    "A jaguar in a tree": "jaguar, tree",
    "A license plate, a bed of flowers": "flower",
}


def names(caption: str) -> str:
    return ", ".join(word.name for word in subject_words(caption))


@pytest.mark.parametrize(("caption", "expected"), [*CLIPS.items(), *GRAMMAR.items(), *FALSE_FRIENDS.items()])
def test_subject_words(caption: str, expected: str) -> None:
    assert names(caption) == expected


@pytest.mark.parametrize("word", VOCABULARY.values(), ids=lambda word: word.name)
def test_every_word_is_found_by_all_its_names(word: Word) -> None:
    assert subject_words(f"A {word.name}.") == [word]
    assert subject_words(f"Two {word.plural}") == [word]
    for synonym in word.synonyms:
        assert subject_words(f"A {synonym}.") == [word]


def test_names_are_unique() -> None:
    spellings = [spelling for word in VOCABULARY.values() for spelling in (word.name, *word.synonyms)]
    assert len(spellings) == len(set(spellings))
    assert all(name == word.name for name, word in VOCABULARY.items())


def test_categories_and_coco_names() -> None:
    assert {word.category for word in VOCABULARY.values()} == set(CATEGORIES)
    classes = {word.coco for word in VOCABULARY.values()} - {None}
    assert classes == COCO - {"tie"}, "a tie is clothing; everything else has a word"


def test_category_of() -> None:
    assert category_of("white porsche race car") == "vehicle"
    assert category_of("People") == "person"
    assert category_of("cacti") == "plant"
    assert category_of("toy rabbit") == "animal"
    assert category_of("hot dog") == category_of("gizmo") == category_of("") == "object"


@given(st.text())
def test_any_text_is_a_caption(text: str) -> None:
    found = subject_words(text)
    assert len(found) == len(set(found))
    assert category_of(text) in CATEGORIES


_PIECES = st.sampled_from(
    [*VOCABULARY, "the", "two", "-", ",", "'s", '"', "’", "runs", "to", "park", "  ", "\n", "Ünder", "42"]
)


@given(st.lists(_PIECES, max_size=12).map(" ".join))
def test_any_row_of_words_is_a_caption(text: str) -> None:
    assert set(subject_words(text)) <= set(VOCABULARY.values())
    assert subject_words(text.upper()) == subject_words(text)


@given(st.lists(st.sampled_from(list(VOCABULARY.values())), unique=True, max_size=6))
def test_order_of_appearance(words: list[Word]) -> None:
    assert subject_words("; ".join(f"a {word.name}" for word in words)) == words


def test_loads_without_heavy_imports() -> None:
    code = "import sys, models.vocabulary; assert not {'numpy', 'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("phrase", "names"),
    [
        ("dog", ["dog"]),
        ("the two young dogs", ["dog"]),
        ("Golden retriever pups", ["puppy"]),
        ("fire-engine", ["fire truck"]),
        ("3 men", ["man"]),
        ("an orange", ["orange"]),
        ("duck", ["duck"]),
        ("camera", ["camera"]),
        ("chef's knife", ["knife"]),
        ("cup of coffee", ["cup"]),
        ("man in a red hat", ["man"]),
        ("herd of elephants", ["elephant"]),
        ("dog, cat & dog", ["dog", "cat"]),
        ("an axolotl", ["axolotl"]),
        ("red Axolotl.", ["red axolotl"]),
        ("axolotl on a table", ["axolotl"]),
        ("slice of halva", ["slice of halva"]),
        ("someone's theremin", ["someone's theremin"]),
        ("群れ", ["群れ"]),
        ("hand", []),
        ("the man's left hand", []),
        ("head of a dog", []),
        ("T-shirts", []),
        ("branches", []),
        ("glasses", []),
        ("a blue sky", []),
        ("license plate", []),
        ("wrist watch", []),
        ("pocket watch", ["pocket watch"]),
        ("of the", []),
        ("and", []),
        ("", []),
    ],
)
def test_a_noun_phrase_stands_for_subjects(phrase: str, names: list[str]) -> None:
    assert subject_names(phrase) == names


@given(st.sampled_from(sorted(VOCABULARY)))
def test_every_word_of_the_vocabulary_stands_for_itself_in_both_numbers(name: str) -> None:
    assert subject_names(name) == [name]
    assert subject_names(f"The {VOCABULARY[name].plural}") in ([name], subject_names(VOCABULARY[name].plural))


@given(st.text(max_size=40))
def test_names_stand_for_themselves(phrase: str) -> None:
    for name in subject_names(phrase):
        assert subject_names(name) == [name]
