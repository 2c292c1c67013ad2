"""What can be named on the command line, one line each. Imports nothing, so that ``deixis --help`` is quick.

A name is a file: ``systems/NAME.py`` states SYSTEM, PRESETS and what those need, NEEDS; ``benchmarks/NAME.py`` (with
``_`` for ``-``) has ``open_split``, SPLITS or ``splits`` and ``write_fixture``; ``writers/NAME.py`` states FORMAT;
``training/recipes/NAME.py`` states RECIPES.
"""

SYSTEM_FILES = (
    "conv_clip_mevis",
    "light",
    "slvp",
    "soc",
    "soc_plus_plus",
    "vlp_rvos",
)

BENCHMARK_FILES = (
    "ref-youtube-vos",
    "ref-davis17",
    "mevis",
    "a2d-sentences",
    "jhmdb-sentences",
    "refcoco",
    "visor",
    "world",
    "folder",
)

FORMAT_FILES = (
    "overlay",
    "png",
    "rle",
    "matte",
    "coco",
)

RECIPE_FILES = (
    "folder",
    "towers",
    "light",
    "conv_clip_mevis",
    "slvp",
    "soc",
    "vlp_rvos",
)
