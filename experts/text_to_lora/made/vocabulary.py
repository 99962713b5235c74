"""Common English nouns, such as "garden", and what several families do with letters and words."""

from __future__ import annotations

from string import ascii_lowercase

VOWELS = "aeiou"


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Each takes s, es or ies in the plural, holds a vowel before any y, and takes "an" if and only if it begins with one.
NOUNS = words(
    """
    ant arm axe bag bat bed bee box bus cap car cat cow cup dog ear egg elm eye fan fox hat hen inn jar jug key leg lid
    lip log map net nut oak oar owl pan pen pie pig pin pot rat row rug sea son sun tap tax toe toy van web wig zoo

    acre arch army atom aunt baby ball band bank barn bath beak bean bear bell belt bike bird boat bone book boot bowl
    cage cake camp card cart cave coin cook crab desk dish door drum duck exam farm film flag fork frog game gate gift
    girl goat hall hand harp hill hook idea inch item joke king kite lake lamp lane lion mask meal moon nail nest nose
    oven path pear pond pool ring road roof room rope rose sail seat ship shoe shop sink sock song star tail tent tile
    town tree tube vase vest wall wave week wing

    actor alarm angel ankle apple apron arrow award beach bench berry board brick bride broom brush cabin camel canal
    chain chair chest chief clock cloud coach couch crane crown curve daisy diary dress eagle elbow entry essay event
    fence ferry field flame flute frame fruit ghost giant glass glove grape guest guide horse hotel house image jewel
    judge label lemon lodge medal melon model month motor mouth movie novel nurse ocean olive onion opera orbit order
    organ otter panel party pearl phone photo piano pilot pizza plate poppy porch prize radio river robot ruler salad
    sauce scene shark shirt skirt snake spoon stage stamp stone stool storm story table tiger torch towel tower track
    train truck uncle video visit voice wagon watch whale wheel witch world

    anchor animal answer artist author avenue bakery ballet banana barber barrel basket battle beetle bottle branch
    bridge bucket button camera candle carpet carrot castle cellar cherry church circle coffee collar cookie corner
    cousin dancer desert dinner doctor dragon drawer driver editor effort empire engine eraser escape estate family
    farmer father finger flower forest friend garage garden guitar hammer helmet insect island jacket jungle kettle
    kitten ladder lawyer lesson letter lizard magnet market meadow melody mirror monkey mother museum needle number
    object office orange orchid oyster palace parrot pencil pigeon pillow pirate planet pocket poster prince puddle
    puzzle rabbit ribbon rocket saddle sailor school secret shadow singer sister spider spring stable statue street
    summer tailor temple ticket tunnel turkey turtle valley violin waiter wallet window winter writer

    account airport apology article athlete balloon bicycle blanket brother builder cabbage cabinet captain ceiling
    century chapter chicken chimney citizen college compass concert costume cottage country curtain cushion dentist
    diamond dolphin drawing edition emerald emperor evening factory feather gallery giraffe glacier gorilla hallway
    hammock highway holiday invoice journal journey kitchen lantern leopard library machine message mistake morning
    opinion orchard outline package painter panther partner peacock penguin picture problem pumpkin rainbow shelter
    slipper soldier station student sunrise surgeon teacher thimble toaster tractor trumpet village weekend whistle

    airplane alphabet ancestor antelope armchair attorney backpack bathroom birthday bookcase bracelet building
    calendar computer corridor cucumber cupboard customer daughter decision document doorbell elephant elevator
    employee entrance envelope exercise festival football footstep fountain hedgehog hospital keyboard landlord
    language magazine magician mountain necklace notebook opponent ornament overcoat painting passport password
    platform postcard princess raincoat reporter sandwich sculptor sentence shepherd snowball stranger suitcase
    teaspoon textbook treasure triangle umbrella vacation wardrobe windmill workshop

    accordion adventure afternoon alligator ambulance apartment architect artichoke assistant astronaut bookstore
    breakfast butterfly carpenter cathedral character chocolate classroom crocodile dandelion detective direction
    discovery dragonfly emergency fireplace hairbrush hamburger hurricane interview invention labyrinth landscape
    lifeguard limousine messenger microwave newspaper nightmare orchestra passenger pineapple porcupine president
    professor raspberry satellite scarecrow scientist sculpture secretary signature snowflake spaceship staircase
    submarine sunflower telephone telescope therapist toothpick vegetable volunteer warehouse waterfall whirlpool
    """
)


def is_vowel(letter: str) -> bool:
    return letter in VOWELS


def shifted(letter: str, steps: int) -> str:
    """The letter so many steps on in the alphabet, which is a ring.

    >>> shifted("a", 1), shifted("z", 1), shifted("a", -1)
    ('b', 'a', 'z')
    """
    return ascii_lowercase[(ascii_lowercase.index(letter) + steps) % 26]


def with_article(noun: str) -> str:
    """The noun after a or an.

    >>> with_article("garden"), with_article("apple")
    ('a garden', 'an apple')
    """
    return f"an {noun}" if is_vowel(noun[0]) else f"a {noun}"
