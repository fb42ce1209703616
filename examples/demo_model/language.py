"""How people ask and how the model answers."""

from random import Random

DECLINE = (
    "I can't tell what this photo shows. I know emoji, simple drawings, shapes, colors, flags,"
    " small numbers and short words."
)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "name": (
        "What is this?",
        "What's this?",
        "What is that?",
        "What is in the picture?",
        "What's in this picture?",
        "What is in this image?",
        "What is shown here?",
        "What does this picture show?",
        "What does the image show?",
        "What do you see?",
        "What can you see?",
        "What do you see in this image?",
        "What do you see in the picture?",
        "What is shown in the image?",
        "Name this.",
        "Name the object.",
        "Name the object in the picture.",
        "Identify the object.",
        "Identify this image.",
        "What object is this?",
        "What is it?",
        "Which object is shown?",
        "Tell me what this is.",
        "Tell me what you see.",
        "Can you tell me what this is?",
        "Please identify this picture.",
        "What is depicted here?",
        "What is the object in this image?",
        "What emoji is this?",
        "Which emoji is this?",
        "What does this emoji show?",
        "What is drawn here?",
        "What is this a drawing of?",
        "What is this a picture of?",
        "Do you know what this is?",
        "Recognize this picture.",
        "What am I looking at?",
        "What's that in the picture?",
        "Please name the object you see.",
        "Label this image.",
    ),
    "describe": (
        "Describe the picture.",
        "Describe this image.",
        "Describe the image.",
        "Describe what you see.",
        "Describe this picture.",
        "Please describe this image.",
        "Please describe the image shortly.",
        "Please describe the picture.",
        "Can you describe this image?",
        "Describe the image in one sentence.",
        "Describe this image in detail.",
        "Write a caption for this picture.",
        "Give a short caption.",
        "Caption this image.",
        "Give a caption for the image.",
        "What is happening in this picture?",
    ),
    "kind": (
        "Is this a photo or a drawing?",
        "Is this a drawing or a photo?",
        "Is it a photograph or a drawing?",
        "Photo or drawing?",
        "Is the picture a photo or a drawing?",
        "What kind of picture is this?",
    ),
    "color": (
        "What color is the {}?",
        "What colour is the {}?",
        "Which color is the {}?",
        "Which colour does the {} have?",
        "What is the color of the {}?",
        "Tell me the color of the {}.",
        "Name the color of the {}.",
        "what color is the {}",
    ),
    "background": (
        "What color is the background?",
        "What colour is the background?",
        "What is the background color?",
        "Which color is the background?",
    ),
    "shape": (
        "What shape is this?",
        "What shape is it?",
        "Which shape is this?",
        "Which shape do you see?",
        "What shape is shown?",
        "What shape is in the image?",
        "What shape is in the picture?",
        "What shape do you see?",
        "What form is this?",
        "Name the shape.",
        "Identify the shape.",
        "What is the shape of the object?",
    ),
    "where": (
        "Where is the {}?",
        "Where is the {} in the picture?",
        "Where is the {} in the image?",
        "In which part of the picture is the {}?",
        "In what part of the image is the {}?",
        "What is the position of the {}?",
        "Where can I find the {}?",
        "Where do you see the {}?",
        "Whereabouts is the {}?",
    ),
    "count": (
        "How many {} are there?",
        "How many {} do you see?",
        "How many {} can you see?",
        "How many {} are in the picture?",
        "How many {} are in the image?",
        "How many {} are shown?",
        "Count the {}.",
        "Count the {} in the picture.",
        "Please count the {}.",
        "What is the number of {}?",
        "Tell me how many {} there are.",
    ),
    "word": (
        "What does it say?",
        "What does this say?",
        "What does the text say?",
        "What word is this?",
        "Which word is this?",
        "What is the word?",
        "What is written here?",
        "What is written in the picture?",
        "Read the word.",
        "Read the text.",
        "Read this.",
        "Please read the text in the image.",
        "What text is in the image?",
        "What is the text?",
        "Which word do you see?",
        "What word do you see?",
        "What is this?",
        "What do you see?",
        "Transcribe the text.",
        "Can you read this?",
    ),
    "number": (
        "What number is this?",
        "Which number is this?",
        "What number do you see?",
        "Read the number.",
        "What is the number?",
        "What does it say?",
        "What is written here?",
        "What is this?",
        "Which number is written here?",
    ),
    "flag": (
        "Which country's flag is this?",
        "What flag is this?",
        "Which flag is this?",
        "Whose flag is this?",
        "What country's flag is this?",
        "What country does this flag belong to?",
        "Which country has this flag?",
        "Which country is this?",
        "What country is this?",
        "Name the flag.",
        "Identify the flag.",
        "Do you know this flag?",
        "This is the flag of which country?",
        "To which country does this flag belong?",
        "Name the country of this flag.",
        "What is this?",
        "What do you see?",
        "What is in the picture?",
    ),
}
PLURALS = {"hexagon": "hexagons", "cross": "crosses"}
SINGULARS = {"bus", "cactus", "lens", "octopus", "rhinoceros", "compass", "canvas"}
MASS = {
    *("bread", "butter", "rice", "cooked rice", "curry rice", "salt", "garlic", "bacon", "popcorn"),
    *(
        "fire",
        "fog",
        "ice",
        "sake",
        "soap",
        "spaghetti",
        "sushi",
        "wood",
        "yarn",
        "thread",
        "money",
    ),
    *("badminton", "baseball", "basketball", "bowling", "ice hockey", "lacrosse", "ping pong"),
    *("tennis", "volleyball", "softball", "field hockey", "curling", "camping", "cooking", "oden"),
    *("broccoli", "coral", "dna", "mate", "pizza", "ginger root", "green salad", "leafy green"),
    *("nail polish", "sheaf of rice", "high voltage", "infinity", "recycling", "construction"),
}


def ask(kind: str, rng: Random, *names: str) -> str:
    """One of the phrasings, now and then typed carelessly."""
    question = rng.choice(QUESTIONS[kind]).format(*names)
    careless = rng.random()
    if careless < 0.08:
        question = question[0].lower() + question[1:]
    if careless < 0.04 or careless > 0.97:
        question = question.rstrip("?.")
    return question


def with_article(name: str) -> str:
    """`name` with "a" or "an" unless it is plural, a mass noun or a proper name."""
    head = name.split(" with ")[0].split(" in ")[0].split(" on ")[0].split(" of ")[0].split()[-1]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is")) and head not in SINGULARS
    if plural or name in MASS or name[0].isupper() or name[0].isdigit():
        return name
    return (
        f"an {name}"
        if name[0] in "aeiou" and not name.startswith(("eu", "uni", "one"))
        else f"a {name}"
    )


def plural(name: str) -> str:
    """A figure's name in the plural."""
    return PLURALS.get(name, f"{name}s")


def join(parts: list[str]) -> str:
    """The parts with commas and a last "and"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
