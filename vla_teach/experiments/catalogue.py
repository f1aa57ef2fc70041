"""What there is to run: every experiment as a task, models that differ in one thing, and settings for three sizes."""

from dataclasses import asdict, dataclass, field, replace

from vla_teach.tasks import TASKS, Copy, DelayedRecall, ListOps, Pathfinder, StackedMQAR
from vla_teach.tasks.base import Task
from vla_teach.tasks.lra import Official

SIZES = ("smoke", "cpu", "gpu")
RATES = (1e-3, 3e-3, 1e-2)
BASELINES = ("softmax", "linear", "delta", "gated_delta", "mamba2", "mesa")
# Three rivals in a second form: softmax without positions, as all others are; a decay that starts out slow.
RIVALS = (*BASELINES, "softmax_free", "gated_delta_slow", "mamba2_slow")
CONTROLS = ("vla_off", "vla_key", "vla_published")  # always there: no penalty; u = k; the paper to the letter
FAIR = (*BASELINES, "vla", "vla_interpolate", *CONTROLS)
RELATED = (*FAIR, "vla_relation", "softmax_related", "delta_related", "vla_related")
# DeltaNet has a write gate; here VLA has one, too. The paper to the letter is left to mqar_published: its nudge makes
# it a loop over tokens.
WIDE = (*RIVALS, "vla", "vla_interpolate", "vla_off", "vla_key", "vla_gated", "vla_key_gated")
LONG = (
    *(rival for rival in RIVALS if rival not in ("gated_delta", "mamba2")),
    "vla",
    "vla_interpolate",
    "vla_off",
    "vla_key",
)
ABLATIONS = (
    "delta", "vla_off", "vla", "vla_rank_2", "vla_rank_4", "vla_loose", "vla_stiff", "vla_learned", "vla_gated",
    "vla_interpolate", "vla_key", "mesa",
)  # fmt: skip


def variants(key_width):
    """{label: what sets a model apart}, as `models.matched` takes it. key_width: of a head, for lambda_0."""
    vla = {
        "vla": {},  # as it comes: unit gain, u = W_u k
        "vla_interpolate": dict(gain="interpolate"),
        "vla_gated": dict(write_gate="lambda"),  # the learned lambda_t, as DeltaNet's beta
        "vla_rank_2": dict(rank=2),
        "vla_rank_4": dict(rank=4),
        "vla_loose": dict(lambda_0=0.1 / key_width),
        "vla_stiff": dict(lambda_0=10.0),
        "vla_learned": dict(learn_lambda_0=True),
        "vla_off": dict(penalty=None),
        # u has a factor 1/sqrt(K), which makes lambda_0 act K times as strongly; here it acts as 0.1.
        "vla_key": dict(penalty="key", lambda_0=0.1 / key_width),
        "vla_key_gated": dict(penalty="key", lambda_0=0.1 / key_width, write_gate="lambda"),
        "vla_relation": dict(penalty="relation"),
    }
    same = {label: dict(layer=label) for label in (*BASELINES, "vla_published")}
    same["softmax_free"] = dict(layer="softmax", layer_options=dict(rope=False))
    same["gated_delta_slow"] = dict(layer="gated_delta", layer_options=dict(steps=(1e-5, 1e-3)))
    same["mamba2_slow"] = dict(layer="mamba2", layer_options=dict(rates=(0.01, 0.16)))  # its steps also scale writes
    same["vla_published_off"] = dict(layer="vla_published", layer_options=dict(penalty=None))
    every = same | {label: dict(layer="vla", layer_options=options) for label, options in vla.items()}
    # The task's relation as one more input, for a fair comparison with the penalty that is given it.
    return every | {f"{label}_related": every[label] | dict(related=True) for label in ("softmax", "delta", "vla")}


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers of one experiment at one size."""

    task: Task
    labels: tuple = FAIR  # keys of `variants`
    model: dict = field(default_factory=lambda: dict(width=64, depth=2, heads=2))  # for every model; see TaskModel
    shell: dict = field(default_factory=dict)  # options of every model's layers, whatever their memory
    batch: int = 64
    steps: int = 3000
    every: int = 100  # steps from one look at the validation set to the next
    patience: int = 10  # looks without a better score before a run stops
    rates: tuple = RATES
    more_rates: dict = field(default_factory=lambda: dict(softmax=(3e-4,)))  # by label
    sweep_seeds: int = 1  # seeds of every rate; the best rate goes on to all
    seeds: int = 5
    held_out: int = 1000  # examples to validate, and as many to test; at most as many as the task has
    pool: int = 0  # examples to draw once and train on again and again; 0 for fresh ones in every batch
    warm_up: float = 0.1  # share of the steps; then a cosine down to 0
    weight_decay: float = 0.1
    clip: float = 1.0
    tests: dict = field(default_factory=dict)  # more test sets: {name: task}

    @property
    def variants(self):
        """{label: what sets it apart} of the models to run."""
        known = variants(self.model["width"] // self.model["heads"])
        options = {label: known[label].get("layer_options", {}) | self.shell for label in self.labels}
        return {
            label: known[label] | (dict(layer_options=options[label]) if options[label] else {})
            for label in self.labels
        }

    def described(self):
        """As plain data for JSON, tasks by name and fields."""

        def task(one):
            return dict(name=type(one).__name__, **asdict(one))

        tests = {name: task(one) for name, one in self.tests.items()}
        plain = asdict(replace(self, task=None, tests={})) | dict(task=task(self.task), tests=tests)
        return {name: value for name, value in plain.items() if name != "shell" or value}


@dataclass(frozen=True)
class Experiment:
    """One line about it, its Settings by size, and how long size cpu takes."""

    about: str
    sizes: dict
    minutes: int | None  # two jobs on two cores; measured, of some beside other work, or reckoned


def sizes(gpu, cpu, smoke):
    """Settings by size; cpu and smoke are dicts of what differs from gpu, smoke from cpu."""
    small = replace(gpu, **cpu)
    quick = dict(
        model=small.model | dict(width=16, depth=1, heads=2), batch=4, steps=2, every=1, rates=(1e-3, 1e-2),
        more_rates={}, seeds=2, held_out=4, pool=0,
    )  # fmt: skip
    return dict(gpu=gpu, cpu=small, smoke=replace(small, **quick | smoke))


SMALL = dict(width=32, depth=1, heads=2)
MEAN = dict(width=64, depth=2, heads=2, pooling="mean")
CPU = dict(
    labels=FAIR,
    model=SMALL,
    batch=32,
    steps=600,
    every=50,
    rates=(3e-3, 1e-2, 3e-2),
    more_rates={},
    seeds=3,
    held_out=300,
)
REGRESSION = TASKS["in-context regression"]
UNEASY = replace(REGRESSION, pairs=16, K=8, V=4)
EASY = replace(UNEASY, condition=1.0)
# Longer than the other small ones, with more models and seeds: in 600 steps many seeds learned nothing.
CPU_REGRESSION = CPU | dict(labels=(*WIDE, "vla_published", "vla_loose"), patience=40, steps=2000, seeds=5)
TINY_REGRESSION = replace(REGRESSION, pairs=4, K=4, V=2)
PICTURE = Pathfinder(size=16, dashes=3, distractors=1, distractor_dashes=2, seed_distance=4.0)
TINY_PICTURE = replace(PICTURE, size=12, dashes=2, distractors=0, seed_distance=3.0)
MQAR_TESTS = (64, 8), (128, 8), (128, 16), (128, 32), (512, 8), (512, 32), (512, 64), (512, 128)  # length, pairs

CATALOGUE = {
    "copy": Experiment(
        "Repeat 32 symbols after a separator.",
        sizes(
            Settings(
                Copy(n=32, shown=True), labels=WIDE, steps=2000, tests={"n = 64": Copy(n=64, shown=True)},
            ),
            dict(CPU, task=Copy(n=12, symbols=16, shown=True), tests={"n = 24": Copy(n=24, symbols=16, shown=True)}),
            dict(task=Copy(n=3, symbols=4, shown=True), tests={"n = 6": Copy(n=6, symbols=4, shown=True)}),
        ),
        3,
    ),
    "delayed_recall": Experiment(
        "One pair, noise, the key again: which value? Trained at one delay, tested at longer ones.",
        sizes(
            Settings(
                DelayedRecall(100), labels=WIDE, steps=2000,
                tests={f"delay = {n}": DelayedRecall(n) for n in (10, 1000, 10_000)},
            ),
            dict(CPU, task=DelayedRecall(20, keys=16), tests={"delay = 200": DelayedRecall(200, keys=16)}),
            dict(task=DelayedRecall(4, keys=4), tests={"delay = 8": DelayedRecall(8, keys=4)}),
        ),
        3,
    ),
    "mqar": Experiment(
        "Many pairs, every key once more: which value? By Zoology's rules.",
        sizes(
            Settings(
                # Blank fillers: among random tokens, some of them keys, no model here learned within these steps.
                replace(TASKS["mqar"], length=128, pairs=(4, 8, 16, 32), vocab=1024, fillers="zeros"),
                labels=WIDE, steps=2500, patience=20,
                tests={f"{n} pairs, length {T}": replace(TASKS["mqar"], length=T, pairs=n, vocab=1024, fillers="zeros")
                       for T, n in MQAR_TESTS},
            ),
            dict(CPU, task=replace(TASKS["mqar"], length=48, pairs=8, vocab=128), patience=10, tests={}),
            dict(task=replace(TASKS["mqar"], length=12, pairs=2, vocab=16)),
        ),
        7,
    ),
    "mqar_published": Experiment(
        "The same as the paper ran it: no model has a convolution, one learning rate. Not a fair comparison.",
        sizes(
            Settings(
                replace(TASKS["mqar"], length=64, pairs=8, vocab=1024), shell=dict(conv=0), rates=(3e-4,),
                more_rates={}, labels=("softmax", "linear", "delta", "vla_published", "vla_published_off"),
                model=dict(width=128, depth=2, heads=4),
                tests={f"{n} pairs": replace(TASKS["mqar"], length=128, pairs=n, vocab=1024) for n in (16, 24, 32)},
            ),
            dict(model=SMALL, batch=32, steps=600, every=50, seeds=3, held_out=300, tests={},
                 task=replace(TASKS["mqar"], length=24, pairs=4, vocab=64)),
            dict(task=replace(TASKS["mqar"], length=12, pairs=2, vocab=16), rates=(3e-4,)),
        ),
        6,
    ),
    "mqar_stacked": Experiment(
        "Key and value in one token, one layer: the memory rule alone.",
        sizes(
            Settings(
                # No convolution: pairs come in any order, and the published layer has none.
                StackedMQAR(pairs=32, vocab=1024), labels=WIDE, shell=dict(conv=0),
                model=dict(width=64, depth=1, heads=2),
                tests={f"{n} pairs": StackedMQAR(pairs=n, vocab=1024) for n in (8, 16, 64, 128)},
            ),
            dict(
                CPU, task=StackedMQAR(pairs=16, vocab=128), steps=1000, patience=20, shell={},
                tests={"32 pairs": StackedMQAR(pairs=32, vocab=128)},
            ),
            dict(task=StackedMQAR(pairs=3, vocab=16), tests={}),
        ),
        9,
    ),
    "ablations": Experiment(
        "One layer on stacked pairs: rank, lambda_0 fixed and learned, gain and gate of VLA, one at a time.",
        sizes(
            Settings(
                StackedMQAR(pairs=32, vocab=1024), labels=ABLATIONS, shell=dict(conv=0),
                model=dict(width=64, depth=1, heads=2), tests={"64 pairs": StackedMQAR(pairs=64, vocab=1024)},
            ),
            dict(CPU, labels=ABLATIONS, task=StackedMQAR(pairs=16, vocab=128), steps=1000, patience=20, tests={}),
            dict(task=StackedMQAR(pairs=3, vocab=16)),
        ),
        20,
    ),
    "regression": Experiment(
        "Linear regression in context, keys of condition 100: the next value, before it is shown.",
        sizes(
            Settings(
                REGRESSION, labels=WIDE, steps=2500, patience=25,
                tests={"condition 1": replace(REGRESSION, condition=1.0)},
            ),
            dict(CPU_REGRESSION, task=UNEASY, tests={"condition 1": EASY}),
            dict(task=TINY_REGRESSION, tests={"condition 1": replace(TINY_REGRESSION, condition=1.0)}),
        ),
        40,
    ),
    "regression_1": Experiment(
        "The same with keys of condition 1, where any memory should do.",
        sizes(
            Settings(
                replace(REGRESSION, condition=1.0), labels=WIDE, steps=2500, patience=25,
                tests={"condition 100": REGRESSION},
            ),
            dict(CPU_REGRESSION, task=EASY, tests={"condition 100": UNEASY}),
            dict(task=replace(TINY_REGRESSION, condition=1.0), tests={"condition 100": TINY_REGRESSION}),
        ),
        40,
    ),
    "relations": Experiment(
        "Is one an ancestor of another? With the relation in the penalty, as an input, and without.",
        sizes(
            Settings(
                TASKS["relations"],
                labels=RELATED,
            ),
            dict(CPU, task=replace(TASKS["relations"], entities=24), labels=RELATED),
            dict(task=replace(TASKS["relations"], facts=2, entities=8)),
        ),
        4,
    ),
    "listops": Experiment(
        "Nested lists of digits under MIN, MAX, MED and SM.",
        sizes(
            Settings(  # a small budget, the same for all
                TASKS["listops"], labels=LONG, model=MEAN, batch=16, steps=1000, seeds=3, pool=16_000, held_out=500,
            ),
            dict(CPU, task=ListOps(8, 40), model=SMALL | dict(pooling="mean"), pool=4000),
            dict(task=ListOps(4, 12), pool=20),
        ),
        5,
    ),
    "pathfinder": Experiment(
        "Do two markers sit on the same dashed curve?",
        sizes(
            Settings(
                TASKS["pathfinder"], labels=LONG, model=MEAN, batch=32, steps=1000, seeds=3, pool=9000, held_out=500,
            ),
            dict(
                CPU, task=PICTURE, model=SMALL | dict(pooling="mean"), pool=4000, batch=16, steps=300,
                rates=(3e-3, 1e-2),
            ),
            dict(task=TINY_PICTURE, pool=20),
        ),
        24,
    ),
    "digits": Experiment(
        "Scikit-learn's handwritten digits, a pixel at a time.",
        sizes(
            Settings(TASKS["digits"], labels=WIDE, model=MEAN, steps=2000, every=50, patience=20),
            dict(CPU, model=SMALL | dict(pooling="mean"), steps=500, patience=20, held_out=500),
            {},
        ),
        9,
    ),
}  # fmt: skip

# Tasks whose files are not ours to ship: `--data FOLDER` says where they are. We have run them on made-up files alone.
OFFICIAL = {
    f"lra_{which}": Experiment(
        f"The Long Range Arena's {about}, from the official files.",
        sizes(
            Settings(Official(which), labels=LONG, model=MEAN, batch=16, steps=1000, seeds=3, held_out=500),
            dict(CPU, model=SMALL | dict(pooling="mean"), batch=4),
            dict(task=Official(which, most=24)),
        ),
        None,
    )
    for which, about in (
        ("text", "reviews, byte by byte: in favour or not?"),
        ("retrieval", "pairs of papers, byte by byte: does one cite the other?"),
        ("image", "pictures, a grey level at a time: what is it?"),
        ("path_x", "Pathfinder of 128 x 128 pixels"),
    )
}
