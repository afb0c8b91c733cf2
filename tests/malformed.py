"""Command lines that cannot be meant, made from good ones by a seeded mutator. Used by ``test_fuzz.py``.

Every mutation is wrong for certain, so that every line it makes must be refused.
"""

import random
import string
from collections.abc import Callable
from pathlib import Path

CHOICES = {
    "dataset": ("digits",),
    "model": ("mlp", "mlp_factorized"),
    "optimizer": ("sgd", "adam", "amsgrad", "adamw", "adams", "sgds", "padam"),
    "regularizer": ("none", "l2", "l1", "lp", "decoupled", "cautious", "pnorm", "pathprox", "coherent", "early"),
    "lr_schedule": ("constant", "cosine"),
    "runtime": ("auto", "cpu"),
    "logger": ("disabled", "offline"),
}
NUMBERS = {  # these keys exist for every choice
    "seed": "whole",
    "train.steps": "whole",
    "train.batch_size": "whole",
    "train.log_every": "whole",
    "train.eval_every": "whole",
    "model.width": "whole",
    "model.depth": "whole",
    "dataset.val_size": "whole",
    "optimizer.lr": "number",
    "regularizer.strength": "number",
    "runtime.checkpoint_seconds": "number",
    "runtime.threads": "whole",
}
Line = list[str]
Mutation = Callable[[random.Random, Line, Path], Line]


def good_line(dice: random.Random) -> Line:
    """Return some choices and some values, with which a short run would be trained."""
    line = [f"{group}={dice.choice(names)}" for group, names in CHOICES.items() if dice.random() < 0.5]
    values = {"seed": dice.randrange(9), "train.steps": 10, "model.width": 8, "optimizer.lr": 0.01}
    line += [f"{key}={value}" for key, value in values.items() if dice.random() < 0.5]
    dice.shuffle(line)
    return line


def _key(dice: random.Random) -> str:
    return dice.choice(list(NUMBERS))


def typo_in_key(dice: random.Random, line: Line, _: Path) -> Line:
    key = _key(dice)
    at = dice.randrange(len(key))
    wrong = dice.choice([key[:at] + key[at + 1 :], key[:at] + "q" + key[at:], key + "x", f"{key}.more", f"a.{key}"])
    return [*line, f"{wrong}=1"]


def typo_in_group(dice: random.Random, line: Line, _: Path) -> Line:
    return [*line, f"{dice.choice(list(CHOICES))}s={dice.choice(['l2', 'mlp', '1', ''])}"]


def unknown_choice(dice: random.Random, line: Line, _: Path) -> Line:
    word = "".join(dice.choices(string.ascii_lowercase, k=dice.randint(1, 9))) + "_none"
    return [*line, f"{dice.choice([*CHOICES, 'regularizer/over_time', 'hydra/launcher', 'hydra/sweeper'])}={word}"]


def no_value(dice: random.Random, line: Line, _: Path) -> Line:
    key = dice.choice([_key(dice), dice.choice(list(CHOICES)), "paths.runs", "paths.data", "logger.mode", "fail_fast"])
    return [*line, dice.choice([key, f"{key}=", f"{key}=null" if key not in ("runtime.threads", *CHOICES) else key])]


def wrong_type(dice: random.Random, line: Line, _: Path) -> Line:
    wrong = dice.choice(
        ["fast", "true", "[1,2]", "{a:1}", "'1'", "1e", "0x", "--1", "1_", "nan", "[]", "{}", "ten percent"]
    )
    return [*line, f"{_key(dice)}={wrong}"]


def bad_number(dice: random.Random, line: Line, _: Path) -> Line:
    key = _key(dice)
    wrong = ["-1", "-1e30", "nan", "-inf"]
    wrong += ["1.5", "1e400", "-0.5", "9" * 30] if NUMBERS[key] == "whole" else []
    return [*line, f"{key}={dice.choice(wrong)}"]


def zero_or_too_large(dice: random.Random, line: Line, _: Path) -> Line:
    key = dice.choice([key for key, kind in NUMBERS.items() if kind == "whole" and key != "seed"])
    return [*line, f"{key}={dice.choice([0, 10**40])}"]


def unbalanced(dice: random.Random, line: Line, _: Path) -> Line:
    key = dice.choice([_key(dice), "lr_schedule.milestones", "dataset.shape", "model"])
    wrong = ["[", "]", "{", "}", "[1,2", "1,2]", "{a:", "(", ")", "'", '"', "[(])", "${", "${a"]
    return [*line, f"{key}={dice.choice(wrong)}"]


def bad_interpolation(dice: random.Random, line: Line, _: Path) -> Line:
    wrong = dice.choice(
        ["${nowhere}", "${oc.env:WDLAB_NOT_SET}", "${no_resolver:1}", "???", "${.}", "${seed.a}", "${oc.env}"]
    )
    return [*line, f"{_key(dice)}={wrong}"]


def other_alphabet(dice: random.Random, line: Line, _: Path) -> Line:
    word = dice.choice(["größe", "学习率", "λ", "π=3", "ш", "é", "\u200b", "🙂", "a\u0301"])
    return [*line, dice.choice([f"{word}=1", f"optimizer.{word}=1", f"seed={word}", f"model={word}"])]


def bad_sign(dice: random.Random, line: Line, _: Path) -> Line:
    key = dice.choice(
        ["optimizer.extra", "train.epochs", "foo", "model.deep.er", "runtime.gpu", "paths.out", "logger.team"]
    )
    there = dice.choice(["seed", "train.steps", "optimizer.lr"])
    return [
        *line,
        dice.choice([f"+{key}=1", f"++{key}=1", f"~{key}", f"~{there}", f"-{there}=1", f"*{there}=1", f"+{there}=3"]),
    ]


def delete_group(dice: random.Random, line: Line, _: Path) -> Line:
    group = dice.choice(list(CHOICES))
    line = [word for word in line if not word.startswith((f"{group}=", f"{group}."))]
    return [*line, f"~{group}"]


def conflicting_group(dice: random.Random, line: Line, _: Path) -> Line:
    group = dice.choice(["model", "optimizer", "regularizer"])
    line = [word for word in line if not word.startswith(f"{group}=")]
    one, other = dice.sample(CHOICES[group], 2)
    return [*line, f"{group}={one}", f"{group}={other}"]


def garbage(dice: random.Random, line: Line, _: Path) -> Line:
    word = "".join(dice.choices(",;:!%^&*()[]{}<>|\\'\"@#~`? ", k=dice.randint(1, 8)))
    return [
        *line,
        dice.choice([f"={word}", word + "=", f"seed=={word}", f"seed={word}]", f"{word}seed", "=", "==", ".=1"]),
    ]


def unknown_flag(dice: random.Random, line: Line, _: Path) -> Line:
    flags = ["--sed=1", "-z", "--multiple", "--cfg", "--cfg=nothing", "--config-name", "--resolve"]
    return [dice.choice([*flags, "--info=nothing", "--jobs", "--experimental-rerun"]), *line]


def bad_config_place(dice: random.Random, line: Line, _: Path) -> Line:
    names = ["--config-name=nowhere", "--config-dir=nowhere", "--config-path=nowhere", "--config-path=train.yaml"]
    return [dice.choice([*names, "--config-name=model/mlp", "--experimental-rerun=nowhere"]), *line]


def bad_config_file(dice: random.Random, line: Line, aside: Path) -> Line:
    """A config of the user's own that is no good."""
    wrong = [
        "a: [",
        "name: mine\n\tb: 1",
        "- 1\n- 2",
        "just words",
        "",
        "name: mine",
        "_target_: nowhere.Nothing\nname: mine",
    ]
    wrong += [
        "defaults:\n  - nothing\nname: mine",
        "a: 1\na: 2",
        "%",
        "name: ${nowhere}",
        "\x00",
        "a: \xff\xe4",
        "name: mine\n_target_: 3",
    ]
    (aside / "mine" / "model").mkdir(parents=True, exist_ok=True)
    (aside / "mine" / "model" / "mine.yaml").write_text(dice.choice(wrong), "latin-1")
    line = [word for word in line if not word.startswith("model=")]
    return [f"--config-dir={aside / 'mine'}", *line, "model=mine"]


def bad_sweep(dice: random.Random, line: Line, _: Path) -> Line:
    wrong = [
        "range(",
        "range(1,2,3,4)",
        "choice(",
        "choice()",
        "1,,2",
        "interval(0,1)",
        "glob(",
        "sort(3,2",
        "range(a,b)",
    ]
    wrong += ["1,two", "0,-1", "shuffle()", "tag(", "nothing(1,2)", "0,1,", "glob(*)", "range(0,3,0)"]
    return ["-m", *[word for word in line if not word.startswith("seed=")], f"seed={dice.choice(wrong)}"]


def bad_search(dice: random.Random, line: Line, _: Path) -> Line:
    wrong = ["tag(log,interval(0,1))", "interval(1,0)", "interval(0,inf)", "tag(ln,interval(1,2))", "interval(0,1),2"]
    wrong += ["int(interval(0,1.5))", "interval(1)", "tag(interval(a,b))", "int(interval(0,inf))", "[interval(0,1)]"]
    good = "optimizer.lr=interval(0.1,0.2)"
    trials = dice.choice(["0", "-1", "1.5", "many", "null", "1,2", "true", "[2]", "1e3", str(10**30)])
    words = [[f"optimizer.lr={dice.choice(wrong)}", "hydra.sweeper.trials=2"], [good, f"hydra.sweeper.trials={trials}"]]
    words += [["hydra.sweeper.trials=2"], [good, "hydra.sweeper.trials=2", "hydra.sweeper.search_seed=-1"]]
    return ["-m", *[word for word in line if not word.startswith("optimizer.lr=")], *dice.choice(words)]


def sweep_without_m(dice: random.Random, line: Line, _: Path) -> Line:
    line = [word for word in line if not word.startswith("seed=")]
    return [*line, dice.choice(["seed=0,1", "seed=range(3)", "seed=choice(1,2)", "model=mlp,vgg11", "seed=glob(*)"])]


def bad_launcher(dice: random.Random, line: Line, _: Path) -> Line:
    wrong = [
        "hydra/launcher=cluster",
        "hydra.launcher.n_jobs=2",
        "hydra/launcher=",
        "hydra.launcher=local",
        "~hydra/launcher",
    ]
    wrong += ["hydra.sweeper.job=x", "hydra/sweeper=none", "hydra.launcher._target_=nowhere.Nothing", "fail_fast=maybe"]
    wrong += [
        "hydra.sweeper.params=3",
        "hydra.sweeper.params={nowhere:'1,2'}",
        "hydra/launcher=joblib hydra.launcher.jobs=2",
    ]
    return ["-m", *line, *dice.choice(wrong).split()]


def bad_jobs_file(dice: random.Random, line: Line, aside: Path) -> Line:
    wrong = [
        "",
        "[",
        "{}",
        "3",
        '"a"',
        "null",
        "[1]",
        '[["seed=0"], "seed=1"]',
        '[["seed=-1"]]',
        '[["sed=1"]]',
        '[[["seed=1"]]]',
    ]
    wrong += [
        '[["seed="], []]',
        '[["seed=0", {"a": 1}]]',
        '[[""]]',
        "\x00\xff",
        '[["seed=1,2"]]',
        "[[null]]",
        "[]",
        '[["-m"]]',
    ]
    path = aside / "jobs.json"
    path.write_text(dice.choice(wrong), "latin-1")
    return [
        "-m",
        *line,
        f"hydra.sweeper.jobs={dice.choice([path, path, path, path, aside, aside / 'none.json', '[1]', ''])}",
    ]


def bad_path(dice: random.Random, line: Line, aside: Path) -> Line:
    (aside / "file").write_text("")
    wrong = [
        f"paths.runs={aside / 'file' / 'runs'}",
        "paths.runs=3",
        "paths.runs=[a]",
        "paths=here",
        "paths.data=3",
        "paths.runs=''",
    ]
    wrong += [
        "dataset.name=a/b",
        "dataset.name=..",
        "model._target_=os.system",
        "model._target_=wdlab",
        "optimizer._target_=1",
    ]
    wrong += [
        "model._target_=builtins.print",
        "regularizer._target_=wdlab.models.MLP",
        "optimizer._target_=torch.nn.Linear",
    ]
    return [
        *line,
        dice.choice([*wrong, "paths.runs=/dev/null/runs", "paths.runs=/proc/runs", f"paths.runs={'a/' * 3000}b"]),
    ]


MUTATIONS: list[Mutation] = [
    *(typo_in_key, typo_in_group, unknown_choice, no_value, wrong_type, bad_number, zero_or_too_large, unbalanced),
    *(bad_interpolation, other_alphabet, bad_sign, delete_group, conflicting_group, garbage, unknown_flag),
    *(bad_config_place, bad_config_file, bad_sweep, sweep_without_m, bad_launcher, bad_jobs_file, bad_path),
    bad_search,
]


def malformed(seed: int, aside: Path) -> Line:
    """Return the command line of a seed, and write the files that it needs to ``aside``. The mutations take turns."""
    dice = random.Random(seed)
    return MUTATIONS[seed % len(MUTATIONS)](dice, good_line(dice), aside)
