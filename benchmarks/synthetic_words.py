"""The words of SyntheticQA: a closed vocabulary, so that a tiny model can learn it.

`vocabulary()` returns every word that a passage, a question or a demonstration may use.
"""

from __future__ import annotations

import re

KINDS = ("person", "company", "city")
FIRST = (
    "Ada Arno Bela Bruno Cara Cyril Dana Dario Edda Emil Fara Felix Gala Gerd Hana Hugo Ines "
    "Ivo Jana Joel Kara Kurt Lena Leo Maja Milo Nora Nils Olga Otto Pia Paul Rana Rolf Sara "
    "Sven Tara Theo Uma Viktor"
).split()
LAST = (
    "Adler Berger Clarke Dorn Engel Falk Graf Hahn Iversen Jansen Keller Lang Moser Novak "
    "Ortega Peters Quist Reiter Sander Torres Ulrich Vogel Weber Xavier Yilmaz Ziegler Abel "
    "Brandt Conrad Duval Ebner Fuchs Gruber Huber Imhof Jensen Koch Lorenz Maier Nagel"
).split()
TRADE = (
    "Amber Basalt Cobalt Delta Ember Falcon Garnet Harbor Indigo Jasper Kestrel Lumen Marble "
    "Nimbus Onyx Pioneer Quartz Raven Saffron Tundra Umber Vector Willow Zephyr Beacon Cedar "
    "Drift Flint Granite Halo Ivory Juniper Keystone Lotus Meteor Nectar Opal Prism Quill "
    "Ridge"
).split()
SUFFIX = (
    "Mills Works Labs Foods Motors Press Bank Mining Optics Textiles Airlines Records Energy "
    "Media Tools Glass Shipping Brewery Studios Pharma Robotics Games Steel Timber Paper Farms "
    "Dairy Bakery Tailors Cameras Clocks Boats Bikes Trains Cables Lamps Paints Soaps Salts Spices"
).split()
PLACE = (
    "North South East West Upper Lower Old New Great Little High Deep Silver Golden Green "
    "White Black Red Stone Iron Long Wide Clear Dark Bright Cold Warm Fair Grand Still Broad "
    "Calm Dry Early Fallen Gentle Hidden Inner Lonely Misty"
).split()
TERRAIN = (
    "Bay Bridge Brook Field Ford Grove Haven Hill Lake Meadow Point Valley Beach Cliff Creek "
    "Falls Harbour Island Forest Heath Moor Marsh Spring River Rapids Canyon Plain Summit Crest "
    "Pass Cove Shore Dale Glen Knoll Thicket Orchard Park Gate Port"
).split()

ASKED = {
    "birthplace": "birthplace",
    "employer": "employer",
    "founder": "founder",
    "headquarters": "headquarters",
    "mayor": "mayor",
    "age": "age",
    "employees": "staff",
    "bridges": "bridges",
}
"""The word by which a question asks for a relation or attribute."""

SENTENCES = {
    "birthplace": (
        "The birthplace of {s} is {o}.",
        "{s} was born in {o}.",
        "{s} was born and raised in {o}.",
    ),
    "employer": (
        "The employer of {s} is {o}.",
        "{s} works for {o}.",
        "{s} earns a living at {o}.",
    ),
    "founder": (
        "The founder of {s} is {o}.",
        "{s} was founded by {o}.",
        "{s} was started by {o}.",
    ),
    "headquarters": (
        "The headquarters of {s} is in {o}.",
        "{s} is based in {o}.",
        "{s} has its main office in {o}.",
    ),
    "mayor": (
        "The mayor of {s} is {o}.",
        "{s} is governed by {o}.",
        "{s} elected {o}.",
    ),
    "age": ("The age of {s} is {o}.", "{s} is {o} years old.", "{s} turned {o} this year."),
    "employees": (
        "The staff of {s} is {o}.",
        "{s} employs {o} people.",
        "{s} has {o} workers.",
    ),
    "bridges": (
        "The number of bridges of {s} is {o}.",
        "{s} has {o} bridges.",
        "{s} is crossed by {o} bridges.",
    ),
}
"""Wordings of each fact; {s} is the subject, {o} the object."""

OTHER = (
    "What is the plus minus of and so I need look for find Page found again think answer".split()
)


def vocabulary() -> list[str]:
    """Return every word of the world, sorted; the tokenizer adds digits and punctuation."""
    sentences = " ".join(s for wordings in SENTENCES.values() for s in wordings)
    words = set(re.findall(r"[A-Za-z]+", re.sub(r"\{.\}", "", sentences)))
    words.update(FIRST, LAST, TRADE, SUFFIX, PLACE, TERRAIN, ASKED.values(), OTHER)
    return sorted(words)
