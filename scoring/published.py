"""F1 as the STN-iCNN paper prints it, test splits, in the columns of ``data.labels.NINE.groups``."""

Row = tuple[float | None, ...]

OURS = ("iCNN (old cropper)", "STN-iCNN before end-to-end", "STN-iCNN")  # rows of reproduce.py that the paper has too
# Data set -> method -> F1: Tables 2 and 3. "before end-to-end" is the paper's STN-iCNN*.
PAPER: dict[str, dict[str, Row]] = {
    "helen": {
        "iCNN (Zhou 2015)": (0.778, 0.863, 0.920, 0.777, 0.824, 0.808, 0.889, 0.845),
        OURS[0]: (0.863, 0.790, 0.936, 0.812, 0.772, 0.830, 0.908, 0.865),
        OURS[1]: (0.891, 0.845, 0.956, 0.853, 0.792, 0.834, 0.920, 0.893),
        OURS[2]: (0.895, 0.848, 0.963, 0.856, 0.824, 0.866, 0.928, 0.910),
    },
    "celebamask": {
        OURS[0]: (0.883, 0.848, 0.910, 0.896, 0.712, 0.763, 0.849, 0.879),
        OURS[1]: (0.866, 0.834, 0.937, 0.906, 0.878, 0.893, 0.948, 0.915),
        OURS[2]: (0.900, 0.851, 0.943, 0.917, 0.877, 0.893, 0.948, 0.924),
    },
}
# Table 4, other methods on HELEN; its column of skin, which no iCNN labels, is left out.
OTHERS: dict[str, Row] = {
    "Smith et al. 2013": (0.785, 0.722, 0.922, 0.713, 0.651, 0.700, 0.857, 0.804),
    "Liu et al. 2015": (0.768, 0.713, 0.909, 0.808, 0.623, 0.694, 0.841, 0.847),
    "Liu et al. 2017": (0.868, 0.770, 0.930, 0.792, 0.743, 0.817, 0.891, 0.886),
    "Wei et al. 2017": (0.847, 0.786, 0.937, None, None, None, 0.915, 0.902),
}


def published_rows(dataset: str | None, others: bool = False) -> list[list[object]]:
    """The paper's rows on a data set (none: unknown), as cells of ``utils.tables.markdown``. others: Table 4 too."""
    rows = {**(OTHERS if others and dataset == "helen" else {}), **PAPER.get(dataset or "", {})}
    return [
        [f"*paper: {title}*", *(None if value is None else f"{value:.3f}" for value in values)]
        for title, values in rows.items()
    ]
