"""What each recipe needs, which published run it is, and in what it differs: for ``deixis recipes`` and the docs.

What a recipe's own tables say is read from them; a test builds every recipe and compares the rest. A file of recipes
may state its own: STATEMENTS, {recipe: Statement}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from deixis.tables import RECIPE_FILES
from deixis.training.recipes.soc import SOC_PUBLISHED
from deixis.training.recipes.statement import Statement
from deixis.training.recipes.vlp_rvos import BATCH, STAGES
from deixis.types import DeixisError

SOC_DIFFERS = (
    "flips with chance 0.5, as the authors mean (their code reaches 0.31 on videos); left and right are swapped as"
    " whole words; frames without the object have no box loss"
)
SCRATCH_CLASSES = "; one class, as in the authors' config file (their README gives 65: --set model.classes=65)"
ROWS = {
    "soc_a2d": "A2D-Sentences mAP 50.4",
    "soc_a2d_finetune": "A2D-Sentences mAP 54.8",
    "soc_ref_youtube_vos": "Ref-YouTube-VOS 59.2, Ref-DAVIS17 59.0",
    "soc_ref_youtube_vos_finetune": "Ref-YouTube-VOS 62.4, Ref-DAVIS17 63.5",
    "soc_joint": "Ref-YouTube-VOS 65.0, Ref-DAVIS17 64.2",
    "soc_b_a2d_finetune": "A2D-Sentences mAP 57.3, JHMDB-Sentences mAP 44.6",
    "soc_b_ref_youtube_vos_finetune": "Ref-YouTube-VOS 66.0, Ref-DAVIS17 64.2",
    "soc_b_joint": "Ref-YouTube-VOS 67.3, Ref-DAVIS17 65.8",
    "vlp_rvos_ref_youtube_vos": "Ref-YouTube-VOS 59.7, Ref-DAVIS17 60.3",
    "vlp_rvos_ref_youtube_vos_finetune": "Ref-YouTube-VOS 62.9, Ref-DAVIS17 65.1",
    "vlp_rvos_a2d": "A2D-Sentences mAP 53.3, JHMDB-Sentences mAP 44.2",
    "vlp_rvos_mevis": "MeViS 44.6",
    "vlp_rvos_vlmo_b_ref_youtube_vos": "Ref-YouTube-VOS 60.1, Ref-DAVIS17 61.2",
    "vlp_rvos_vlmo_b_ref_youtube_vos_finetune": "Ref-YouTube-VOS 63.1, Ref-DAVIS17 65.5",
    "vlp_rvos_vlmo_b_a2d": "A2D-Sentences mAP 53.9, JHMDB-Sentences mAP 44.6",
    "vlp_rvos_vlmo_b_mevis": "MeViS 45.4",
    "vlp_rvos_clip_l_ref_youtube_vos_finetune": "Ref-YouTube-VOS 66.0, Ref-DAVIS17 68.2",
    "vlp_rvos_clip_l_a2d": "A2D-Sentences mAP 59.4, JHMDB-Sentences mAP 46.0",
    "vlp_rvos_vlmo_l_ref_youtube_vos_finetune": "Ref-YouTube-VOS 67.6, Ref-DAVIS17 70.2",
    "vlp_rvos_vlmo_l_a2d": "A2D-Sentences mAP 63.1, JHMDB-Sentences mAP 47.1",
}
VLP_DIFFERS = (
    "epochs, drops and clip length are inferred, no configuration being public; both clips of a sample make one step"
    " instead of two; frames, crops and colours are drawn as in ReferFormer (inferred);"
    " the tower's own pixel statistics instead of ImageNet's"
)
OWN = "our own recipe"
CPU = "a CPU core"


def _soc() -> dict[str, Statement]:
    made = {}
    for name, plan, sources, _ in SOC_PUBLISHED:
        needs = tuple(dict.fromkeys(source.data for source in sources))
        plus = name.startswith("soc_plus_plus")
        made[name] = Statement(
            what=f"{'SOC++' if plus else 'SOC'} with Video Swin-{'B' if name.startswith('soc_b_') else 'T'}, "
            + {"soc_a2d": "A2D-Sentences from scratch"}.get(name, "trained on " + ", ".join(needs)),
            needs=(*needs, "kinetics|start"),
            takes=("roberta",),
            row=ROWS.get(name, ""),
            global_batch=plan.batch,
            epochs=plan.epochs,
            hardware="8 GPUs of one clip (as published); any number that divides the batch",
            differs=SOC_DIFFERS
            + ("; no audio guidance, which the released code does not hold either" if plus else "")
            + (SCRATCH_CLASSES if name == "soc_ref_youtube_vos" else ""),
        )
    return made


def _vlp() -> dict[str, Statement]:
    towers = {"": "CLIP ViT-B/16", "clip_l_": "CLIP ViT-L/14", "vlmo_b_": "VLMo-B", "vlmo_l_": "VLMo-L"}
    return {
        f"vlp_rvos_{tower}{stage}": Statement(
            what=f"VLP-RVOS on a frozen {words}, " + " and ".join(dict.fromkeys(s.data for s in plan.sources)),
            needs=(*dict.fromkeys(source.data for source in plan.sources), *(["start"] if plan.start else [])),
            takes=("tower", "start"),
            row=ROWS.get(f"vlp_rvos_{tower}{stage}", ""),
            global_batch=BATCH,
            epochs=plan.epochs,
            hardware="4 GPUs of one sample (published: 4 RTX 3090)",
            differs=VLP_DIFFERS,
        )
        for tower, words in towers.items()
        for stage, plan in STAGES.items()
    }


def _conv_clip(tower: str) -> Statement:
    return Statement(
        what=f"the frozen conv-CLIP solution for MeViS on ConvNeXt-{tower}",
        needs=("mevis",),
        takes=("tower", "start"),
        row="MeViS test 51.5 (PVUW 2024)" if tower == "L" else "",
        global_batch=8,
        steps=55_000,
        hardware="8 GPUs of one clip (its parent DsHmp: 17 hours on 8 RTX 3090)",
        differs="no start from COCO-trained FC-CLIP or Mask2Former weights, whose keys are not at hand: expect a clear"
        " drop; values of its parents LMPM and DsHmp, the report giving none",
    )


ONE_CORE = "one CPU core, hours"
_SMALL: dict[str, Any] = {"needs": (), "global_batch": 8, "steps": 600, "hardware": CPU, "differs": OWN}
STATEMENTS: Mapping[str, Statement] = {
    "light_proposals": Statement(
        what="the bundled model, stage 1: objects without words", needs=("features", "objects", "pictures"),
        takes=("weights", "minilm", "start"), global_batch=4, steps=12_000, hardware=ONE_CORE, differs=OWN,
    ),
    "light_namer": Statement(
        what="the bundled model, stage 2: names of regions", needs=("features", "objects", "pictures", "weights"),
        takes=("minilm", "start"), global_batch=256, steps=900, hardware=ONE_CORE, differs=OWN,
    ),
    "light_scorer": Statement(
        what="the bundled model, stage 3: words choose among tracks", needs=("start", "tokens"), takes=("pictures",),
        global_batch=16, steps=6000, hardware=ONE_CORE, differs=OWN,
    ),
    "light": Statement(
        what="the bundled model, all parts together on rendered films", needs=("pictures",),
        takes=("weights", "minilm", "start"), global_batch=2, steps=1500, hardware="two CPU cores, or a GPU",
        differs=OWN,
    ),
    "light_folder": Statement(
        what="the bundled model, on your own films", needs=("folder",), takes=("start",), global_batch=4, steps=400,
        hardware="two CPU cores, or a GPU", differs=OWN,
    ),
    "soc_folder": Statement(
        what="SOC, small, on your own films", needs=("folder",), takes=("start",), global_batch=8, steps=3000,
        hardware=CPU, differs=OWN,
    ),
    "tower_world": Statement(
        what="a small CLIP on generated films, a tower for the other small recipes",
        **{**_SMALL, "steps": 2000, "global_batch": 16},
    ),
    "soc_world": Statement(what="SOC, small, on generated films", **_SMALL, takes=("tower",)),
    "soc_plus_plus_world": Statement(what="SOC++, small, on generated films", **_SMALL),
    "vlp_rvos_world": Statement(what="VLP-RVOS, small, on generated films", **_SMALL, takes=("tower",)),
    "conv_clip_mevis_world": Statement(what="conv-CLIP, small, on generated films", **_SMALL, takes=("tower",)),
    "slvp_pretrain_world": Statement(
        what="SLVP-style pre-training, small, on generated films", **{**_SMALL, "steps": 1000, "global_batch": 16}
    ),
    "slvp_world": Statement(
        what="SLVP-style transfer, small, on generated films", **{**_SMALL, "steps": 400}, takes=("start",)
    ),
    "conv_clip_mevis": _conv_clip("L"),
    "conv_clip_mevis_b": _conv_clip("B"),
    "slvp_pretrain": Statement(
        what="SLVP-style pre-training on captioned films", needs=("videos",), takes=("flow", "kinetics", "roberta"),
        global_batch=32, steps=100_000, hardware="GPUs; nothing is public",
        differs="only the abstract is public: every number is ours; negatives of the contrast are those of the"
        " micro-batch in all processes and of a queue of 1,024: their number depends on that of the processes",
    ),
    "slvp_refcoco": Statement(
        what="SLVP-style, RefCOCO/+/g set in motion, before the videos", needs=("refcoco",),
        takes=("start", "kinetics", "roberta"), global_batch=8, epochs=12, hardware="GPUs; nothing is public",
        differs="only the abstract is public: every number is ours",
    ),
    "slvp_transfer": Statement(
        what="SLVP-style transfer to masks", needs=("ref-youtube-vos|visor",), takes=("start", "kinetics", "roberta"),
        global_batch=8, epochs=6, hardware="GPUs; nothing is public",
        differs="only the abstract is public: every number is ours",
    ),
    **_soc(),
    **_vlp(),
}  # fmt: skip


def statement_of(name: str) -> Statement:
    """What is stated of a recipe, here or in its own file; DeixisError where nothing is."""
    stated = dict(STATEMENTS)
    for file in RECIPE_FILES:
        stated |= getattr(import_module(f"deixis.training.recipes.{file}"), "STATEMENTS", {})
    if name not in stated:
        raise DeixisError(f"nothing is stated of the recipe {name}; give its file STATEMENTS with a Statement of it")
    return stated[name]


def table(names: Iterable[str]) -> list[str]:
    """A Markdown table of the recipes, as in docs/recipes.md."""
    rows = ["| recipe | needs | published row | batch | length |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        one = statement_of(name)
        needs = ", ".join(need.replace("|", " or ") for need in one.needs) or "nothing"
        rows.append(f"| `{name}` | {needs} | {one.row or '-'} | {one.global_batch} | {one.length} |")
    return rows


def describe_recipe(name: str) -> list[str]:
    """A recipe in lines: what it is, what it needs, its run, and in what it differs."""
    one = statement_of(name)
    needs = ", ".join(f"--data {need.replace('|', '=... or --data ')}=..." for need in one.needs) or "nothing"
    lines = [f"{name}: {one.what}", f"needs         {needs}"]
    if one.takes:
        lines.append(f"takes         {', '.join(f'--data {take}=...' for take in one.takes)}")
    lines += [
        f"published     {OWN if one.differs == OWN else one.row or 'no figure that could be read'}",
        f"global batch  {one.global_batch}, on any number of processes that divides it",
        f"length        {one.length}",
        f"hardware      {one.hardware}",
    ]
    if one.differs != OWN:
        lines.append(f"differs       {one.differs}")
    return lines
