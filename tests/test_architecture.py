"""The shape of the library: who may import whom, where things live, what they are called."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest
from discovery import public_factories, public_spaces

import momentax

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "momentax"
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(file.relative_to(PACKAGE)) for file in FILES]
MAX_LINES = 300
MAX_IMPORT_SECONDS = 0.3  # beyond importing optax

# What each part may import of ours. Arrows never turn back.
TOOLS = {
    "typing",
    "checks",
    "leaves",
    "paths",
    "slots",
    "varying",
    "decaying",
    "scalars",
    "clocks",
    "conventions",
    "linalg",
    "sharding",
    "convex",
    "routing",
    "matrices",
}
MAY_IMPORT = {
    "typing": set(),
    "checks": set(),
    "paths": set(),
    "varying": set(),
    "linalg": {"typing", "varying"},
    "sharding": {"typing", "paths", "slots", "varying"},
    "leaves": {"typing", "paths"},
    "slots": {"paths"},
    "clocks": {"typing", "leaves"},
    "decaying": {"typing", "leaves"},
    "conventions": {"typing"},
    "routing": {"typing", "checks", "leaves", "paths"},
    "scalars": {"typing", "leaves", "routing"},
    "matrices": {"typing", "leaves", "paths", "routing", "sharding"},
    "convex": {"typing", "checks", "leaves", "routing", "linalg", "sharding"},
    "transforms": TOOLS,
    "decays": TOOLS,
    "wrappers": TOOLS | {"transforms", "decays"},
    "optimizers": TOOLS | {"transforms", "decays", "wrappers"},
    "telemetry": TOOLS | {"transforms", "decays", "wrappers"},
    "migration": {"typing", "leaves", "paths", "transforms"},
    "testing": set(),
}
# One technique per file, named after its public function.
TECHNIQUES = ("transforms", "decays", "wrappers", "optimizers")
ALWAYS = {"jax", "numpy", "optax", "momentax", *sys.stdlib_module_names}
INSIDE_FUNCTIONS = {"testing": {"flax", "orbax"}}
PLOTTING = {"matplotlib"}  # inside the function that draws

# One spelling for each hyperparameter in the whole library.
GLOSSARY = {
    "adam_b1": "decay of the average gradient of Adam, where b1 is that of matrices",
    "adam_b2": "decay of the average squared gradient of Adam, where matrices have none",
    "amsgrad": "whether to divide by the largest average of squares so far",
    "axis": "whether inputs or outputs of a matrix have factors of their own",
    "axis_name": "axes of a map along which devices hold copies",
    "b1": "decay of the momentum",
    "b1_max": "largest decay of a momentum whose decay is chosen at every step",
    "b2": "decay of the second average: squares (Adam), differences (Adan), memory (Lion)",
    "b3": "decay of the third average",
    "bias_correction": "whether Muon's momentum is debiased as optax does",
    "block_learning_rate": "step size where blocks are orthogonalised",
    "blocks": "parts of a matrix that are orthogonalised by themselves",
    "clamp": "share of their mean within which factors stay",
    "clip_after": "steps at the start and after resets that are not clipped",
    "compute_dtype": "dtype of an iteration",
    "convex": "convex function of Lion-K",
    "dampen_first": "whether dampening applies to the first gradient",
    "dampening": "share of the gradient that heavy ball leaves out",
    "damping": "share of the identity that is added to a factor",
    "debias": "whether and how an average is divided by its total weight",
    "decay": "form of the weight decay",
    "delta": "threshold of the cosine test",
    "density": "share of the entries that are kept",
    "density_mask": "which leaves are sparse",
    "dtype": "dtype of the master weights",
    "eps": "floor of a root or norm",
    "eps_hat": "whether eps is added before debiasing",
    "eta_min": "share to which a decay shrinks",
    "every": "steps between resets",
    "gamma": "factor inside AuON's cosine",
    "gamma1": "decay of the average norm",
    "gamma2": "decay of the average squared norm",
    "gamma3": "decay of the average largest entry",
    "head": "path pattern of output heads",
    "inner": "the transformation that a wrapper holds",
    "input_dtype": "dtype to which matrices are rounded before an iteration",
    "kappa": "spectral norm of a step, relative to the aspect ratio",
    "keep": "state fields that are not reset",
    "key": "seed of what is random",
    "layout": "what is assumed where nobody can tell how parameters lie",
    "learning_rate": "step size",
    "masks": "masks to replay",
    "max_dim": "longest side that has a factor",
    "max_grad_norm": "bound of the joint gradient norm inside an optimizer",
    "max_norm": "bound of the joint gradient norm",
    "mesh": "mesh on which the parameters lie",
    "method": "coefficients of a polynomial iteration, or another way to orthogonalise",
    "metric": "geometry of the two-plane model",
    "mu_dtype": "dtype of the momentum",
    "nesterov": "whether to look ahead",
    "norm_eps": "added to the norm of a matrix that is orthogonalised, where eps is that of a root",
    "normalize": "what a matrix is divided by before an iteration",
    "normalize_stats": "whether statistics are divided by their mean size",
    "nu_dtype": "dtype of the average of squares",
    "offset": "height of the memory plane",
    "param_specs": "partitions of the parameters over the axes of the mesh",
    "period": "steps between orthogonalisations of whole matrices",
    "precision": "precision of matrix products",
    "project_buffer": "whether the momentum itself is projected",
    "proximity": "weight of staying near the step of the memory",
    "radius": "which norm a matrix on a sphere keeps",
    "refresh": "steps between choices of entries",
    "rescale": "what is restored after rows were normalised",
    "reset_every": "steps between resets of the momentum inside an optimizer",
    "rest": "transformation of what is no hidden matrix",
    "rest_learning_rate": "step size of the default rest",
    "restart": "whether the inner transformation starts again",
    "restart_bias": "whether the debiasing restarts at resets",
    "restart_counts": "whether integers are reset too",
    "restart_every": "steps between restarts",
    "restart_when": "predicate of a restart",
    "rms": "root mean square entry of an orthogonal matrix after scaling",
    "root": "how inverse roots are computed",
    "rounding": "how numbers are rounded",
    "routing": "rules that tell the axes of leaves",
    "safety": "margin of the coefficients against rounding",
    "scale": "factor of the shape of a matrix",
    "scope": "what shares a coefficient or a norm: a matrix, a leaf, all leaves",
    "shards": "devices over which an axis may lie",
    "skip_non_finite": "whether steps with non-finite gradients are left out",
    "slots": "state fields that are stored in another way",
    "steps": "iterations",
    "tangent": "whether the largest singular value is left alone",
    "threshold": "largest square in units of its average",
    "total_steps": "steps over which a schedule runs",
    "transforms": "transformations by kind of leaf",
    "update_every": "steps between computations of what is cached",
    "variant": "paper or official code, where they differ",
    "views": "rows in which a weight is projected",
    "warmup": "steps over which the step size returns after a reset",
    "wd_ratio": "factor of the decay where a projection was made",
    "weight_decay": "pull of the weights to zero, per unit of learning rate",
    "weight_decay_mask": "which leaves decay",
    "when": "before or after the step",
    "wire_dtype": "dtype in which matrices travel between devices",
}


def part_of(file: pathlib.Path) -> str:
    """The room of the house a file lives in: `transforms`, `typing`, or `` for the root."""
    first = file.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(tree: ast.AST):
    """Dotted names that are imported, and whether that happens inside a function."""
    inner = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, id(node) in inner) for name in names)


def parse(file: pathlib.Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_imports_point_one_way(file):
    part = part_of(file)
    assert part == "" or part in MAY_IMPORT, f"say in MAY_IMPORT what `{part}` may import"
    for name, _ in imports(parse(file)):
        root, *rest = name.split(".")
        if root == "momentax" and part and rest[0] != part:
            assert rest[0] in MAY_IMPORT[part], f"`{part}` must not import {name}"


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_needs_only_jax_and_optax(file):
    for name, inside in imports(parse(file)):
        root = name.split(".")[0]
        allowed = ALWAYS | (INSIDE_FUNCTIONS.get(part_of(file), set()) | PLOTTING if inside else set())
        assert root in allowed, f"{name} is imported {'inside a function' if inside else 'at the top'}"


def test_underscore_files_are_private_to_their_package():
    outside = [
        *FILES,
        *(file for folder in ("tests", "examples", "benchmarks") for file in (ROOT / folder).rglob("*.py")),
    ]
    for file in outside:
        for name, _ in imports(parse(file)):
            match = re.fullmatch(r"(momentax\.\w+)\._\w+(\..*)?", name)
            at_home = match and file.is_relative_to(ROOT / match.group(1).replace(".", "/"))
            assert not match or at_home, f"{file.relative_to(ROOT)} imports {name}, which is private"


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_files_are_short_and_folders_shallow(file):
    lines = len(file.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it"
    assert len(file.relative_to(PACKAGE).parts) <= 2, "folders are one level deep"


@pytest.mark.parametrize("room", TECHNIQUES)
def test_a_technique_lives_in_the_file_of_its_name(room):
    files = sorted(file.stem for file in (PACKAGE / room).glob("*.py") if file.stem != "__init__")
    for stem in files:
        functions = [
            node.name for node in parse(PACKAGE / room / f"{stem}.py").body if isinstance(node, ast.FunctionDef)
        ]
        assert stem.startswith("_"), f"{room}/{stem}.py: file names start with an underscore"
        assert stem.removeprefix("_") in functions, f"{room}/{stem}.py holds no function {stem.removeprefix('_')}"
    exported = sorted(name for name in exports(PACKAGE / room / "__init__.py") if not name.endswith("State"))
    assert exported == [stem.removeprefix("_") for stem in files]


def exports(file: pathlib.Path) -> list[str]:
    """The names that an `__init__.py` hands on as `X as X`; anything else in it but text and a version fails."""
    names, order = [], []
    for node in parse(file).body:
        if isinstance(node, ast.ImportFrom):
            assert [alias.name for alias in node.names] == [alias.asname for alias in node.names], "write `X as X`"
            names += [alias.name for alias in node.names]
            order += [(node.module, alias.name) for alias in node.names]
            continue
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        version = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
        assert text or version, f"{file.relative_to(ROOT)}: `{ast.unparse(node)}` does not belong here"
    assert order == sorted(order), "imports are in alphabetical order"
    return names


@pytest.mark.parametrize("file", [f for f in FILES if f.name == "__init__.py"], ids=lambda f: f.parent.name)
def test_packages_only_hand_on_names(file):
    assert exports(file)


def test_optimizers_contain_no_arithmetic():
    operators = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)
    for file in sorted((PACKAGE / "optimizers").glob("*.py")):
        for node in ast.walk(parse(file)):
            arithmetic = isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, operators)
            assert not arithmetic, f"{file.name}:{node.lineno}: an optimizer is a chain, write a transform for this"


def test_public_names_are_documented():
    for space, module in public_spaces().items():
        for name, member in vars(module).items():
            if not name.startswith("_") and str(getattr(member, "__module__", "")).startswith("momentax"):
                assert inspect.getdoc(member), f"{space}.{name} has no docstring"
    assert re.fullmatch(r"\d+\.\d+\.\d+", momentax.__version__)


def test_arguments_are_spelled_one_way():
    for name, factory in public_factories().items():
        unknown = set(inspect.signature(factory).parameters) - set(GLOSSARY)
        assert not unknown, f"{name}: {sorted(unknown)} is not in GLOSSARY: use a name that is, or add it"


def test_the_glossary_has_no_unused_words():
    used = {name for factory in public_factories().values() for name in inspect.signature(factory).parameters}
    assert set(GLOSSARY) == used


def states():
    for room in TECHNIQUES:
        for file in sorted((PACKAGE / room).glob("*.py")):
            for node in parse(file).body:
                if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases):
                    yield file, node


def test_states_are_named_after_their_transform_and_say_what_they_hold():
    for file, node in states():
        if node.name.startswith("_"):
            continue
        words = file.stem.removeprefix("_").split("_")
        assert node.name == "".join(word.capitalize() for word in words) + "State", f"{file.name}: {node.name}"
        doc = ast.get_docstring(node) or ""
        for field in (item.target.id for item in node.body if isinstance(item, ast.AnnAssign)):
            assert re.search(rf"^  {field}: ", doc, re.MULTILINE), f"{node.name}.{field} is not documented"


def test_count_means_the_same_everywhere():
    docs = [ast.get_docstring(node) or "" for _, node in states()]
    meanings = {meaning for doc in docs for meaning in re.findall(r"^  count: (.*)$", doc, re.MULTILINE)}
    assert meanings == {"steps taken, int32 scalar."}


IMPORT = """
import sys, time, optax
before, start = set(sys.modules), time.process_time()
import momentax
print(time.process_time() - start)
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {"momentax"}))
"""


def test_import_is_light():
    runs = [subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, cwd=ROOT) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    seconds = [float(run.stdout.split("\n")[0]) for run in runs]
    pulled_in = runs[0].stdout.split("\n")[1].split()
    assert not pulled_in, f"importing momentax pulls in {pulled_in} beyond what optax does"
    fastest = min(seconds)
    assert fastest <= MAX_IMPORT_SECONDS, (
        f"importing momentax takes {fastest:.2f} s beyond optax, in the best of {seconds}"
    )
