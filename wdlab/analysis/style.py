"""How every figure looks: sizes, and one colour and line per method, told apart by the colour-blind and in grey."""

import matplotlib as mpl

# Okabe and Ito's: blue, vermilion, green, purple, black, sky blue.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9")
LINES = ("-", "--", "-.", ":")

# Of each method its colour, line style and name.
METHODS = {
    "none": (PALETTE[4], ":", "no regularization"),
    "l2": (PALETTE[0], "--", "weight decay (SGD)"),
    "pathprox": (PALETTE[1], "-", "PathProx"),
}
MARKERS = {"none": "x", "l2": "o", "pathprox": "D"}

RC = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "wdlab",
}


def context() -> object:
    """The style, as a context manager around drawing and saving."""
    return mpl.rc_context(RC)
