"""Tables, pictures and verdicts from run directories. These modules read records only and import no training code."""

try:
    from wdlab.analysis.load import load
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("wdlab"):
        raise
    text = f"wdlab.analysis needs {error.name}, a part of the lab; in a checkout: pip install -e '.[lab]'"
    raise ModuleNotFoundError(text, name=error.name) from error

__all__ = ["load"]
