"""How every figure looks: sizes, and one colour and line per method, told apart by the colour-blind and in grey."""

import matplotlib as mpl

# Okabe and Ito's palette; the second item is the line style.
METHODS = {
    "none": ("#000000", ":", "no regularization"),
    "l2": ("#0072B2", "--", "weight decay (SGD)"),
    "pathprox": ("#D55E00", "-", "PathProx"),
}

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
