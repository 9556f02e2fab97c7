"""Installs detectron2_ddetr. detectron2 itself is used where it is present, and not required."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "detectron2_ddetr" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="detectron2_ddetr",
    version=VERSION,
    description="Deformable DETR for detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["detectron2_ddetr", "detectron2_ddetr.*"]),
    python_requires=">=3.10,<3.14",
    install_requires=[
        "torch>=2.10",
        "torchvision",
        "fvcore",
        "scipy",
        "numpy",
        "pillow",
        "pycocotools",
        "opencv-python",
        "matplotlib",
    ],
    extras_require={"test": ["pytest"]},
)
