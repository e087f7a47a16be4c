"""Imports point downwards only (ARCHITECTURE.md)."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "slidescreen"
STAGES = [
    *(
        "scale",
        "ruler",
        "monolayer",
        "detect",
        "patches",
        "model",
        "engines",
        "classify",
        "explain",
        "differential",
        "quality",
        "store",
        "stored",
    ),
    "report",
]
LAYERS: list[list[str]] = [
    ["errors", "geometry", "taxonomy", "logs", "overlap", "depthwise"],
    ["atomic", "settings_file"],
    ["records"],
    ["slide", "networks", "rejection"],
    STAGES,
    ["detector_card"],
    ["detector_model", "keras_import", "onnx_export"],
    ["stain"],
    ["outlines"],
    ["detector_network"],
    ["painting"],
    ["demo"],
    ["installed"],
    ["config"],
    ["pipeline"],
    ["batch", "evaluation"],
    ["training"],
    ["explain_cells"],
    ["cohort"],
    ["doctor", "selfcheck"],
    ["cli"],
    ["__main__"],
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
ALLOWED = {
    ("classify", "model"),
    ("classify", "engines"),
    ("engines", "model"),
    ("explain", "model"),
    ("stored", "store"),
    ("errors", "geometry"),
    ("demo", "errors"),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("slidescreen."):
            found.add(node.module.split(".")[1])
    return found


def test_every_module_has_a_layer() -> None:
    modules = {
        p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert modules - {"__init__"} == set(RANK)


def test_imports_point_downwards() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for target in imports(path) if module != "__init__" else ():
            if module != target and RANK[target] >= RANK[module] and (module, target) not in ALLOWED:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_only_cli_and_batch_swallow_errors() -> None:
    """`except Exception` stands only where failures are isolated, where a foreign decoder is called, or in the self-check."""
    allowed = {
        "slides.py",
        "worker.py",
        "output.py",
        "slide.py",
        "opening.py",
        "steady.py",
        "known_answers.py",
        "doctor.py",
        "plan.py",
    }
    for path in PACKAGE.rglob("*.py"):
        if path.name not in allowed:
            assert "except Exception" not in path.read_text(encoding="utf-8"), path
