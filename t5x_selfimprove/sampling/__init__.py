"""Drawing completions.

sampler.py      Sampler: N paths of every question, from a frozen model
slots.py        ... in a fixed number of places that are refilled
transforms.py   changes of the distribution, and the draw
stops.py        texts that end a path
adaptive.py     no more paths than a vote needs
"""
